"""What a server runs is what the parts say one by one, to the bit."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lengthwise.predictor.distribution import DEFAULT_LEVELS
from lengthwise.predictor.estimators.blend import LGBMBlendRegressor
from lengthwise.predictor.estimators.one_block import in_one_block
from lengthwise.predictor.estimators.packed_trees import (
    add_leaves,
    fill_keys,
    ordered_keys,
    pack_trees,
)
from lengthwise.predictor.estimators.trees import FlatTrees, Nodes

COLUMNS = 5
LEVELS = np.array(DEFAULT_LEVELS)
ODD = (0.0, -0.0, 1e-45, -1e-45, 0.1, 1e-35, 3.4e38, -3.4e38, np.inf, -np.inf)
thresholds = st.sampled_from((*ODD[:8], 1e300, -1e300)) | st.floats(-10.0, 10.0)
values = st.sampled_from((*ODD, np.nan)) | st.floats(-10.0, 10.0, width=32)


@st.composite
def forests(draw):
    """Trees of two outputs as LightGBM numbers them, and how many leaves each has."""
    splits, leaves, roots, leaf_starts = [], [], [], []
    for _ in range(draw(st.integers(1, 9))):
        count = draw(st.integers(1, 8))
        roots.append(len(splits) if count > 1 else -1)
        leaf_starts.append(len(leaves))
        leaves += [draw(st.floats(-1.0, 1.0)) for _ in range(count)]
        places = [None]  # of every leaf so far: the split and the side that lead to it
        for at in range(count - 1):
            leaf = draw(st.integers(0, at))
            if places[leaf] is not None:
                parent, side = places[leaf]
                splits[roots[-1] + parent][side] = at
            split = {"left": -1 - leaf, "right": -2 - at, "threshold": draw(thresholds),
                     "feature": draw(st.integers(0, COLUMNS - 1)),
                     "nan_left": draw(st.integers(0, 1))}  # fmt: skip
            splits.append(split)
            places[leaf] = (at, "left")
            places.append((at, "right"))
    kinds = FlatTrees.from_model_texts([], 2).nodes.splits.dtype
    table = np.zeros(len(splits), kinds)
    for at, split in enumerate(splits):
        for name, value in split.items():
            table[at][name] = value
    starts = np.array(roots, np.int32), np.array(leaf_starts, np.int32)
    return FlatTrees(Nodes(*starts, table, np.array(leaves)), 2)


def walked(trees: FlatTrees, row: np.ndarray) -> np.ndarray:
    """The plain twin: one tree after another, in doubles."""
    out = np.zeros(trees.outputs)
    roots, leaf_starts, splits, leaves = trees.nodes
    for tree, root in enumerate(roots):
        node = 0 if root >= 0 else -1
        while node >= 0:
            split = splits[root + node]
            value = float(row[split["feature"]])
            left = split["nan_left"] == 1 if np.isnan(value) else value <= split["threshold"]
            node = int(split["left"] if left else split["right"])
        out[tree % trees.outputs] += leaves[leaf_starts[tree] - 1 - node]
    return out


def packed_sums(trees: FlatTrees, row: np.ndarray) -> np.ndarray:
    packed = pack_trees(trees)
    keys = np.zeros(max(packed.room, row.size), np.int64)
    unknown = fill_keys(row, np.empty(row.size, np.float32), keys)
    assert unknown == np.isnan(row).any()
    out = np.zeros(2)
    nodes = packed.nodes, packed.roots, packed.leaf_starts, packed.leaves
    add_leaves(keys, unknown, *nodes, out)
    return out


@settings(deadline=None)
@given(forests(), st.lists(values, min_size=COLUMNS, max_size=COLUMNS))
def test_packed_trees_say_what_the_trees_say(trees, drawn):
    row = np.array(drawn, np.float32)
    want = walked(trees, row)
    assert packed_sums(trees, row).tobytes() == want.tobytes()
    assert trees.predict(row[None])[0].tobytes() == want.tobytes()


@given(st.lists(values, min_size=2, max_size=2))
def test_keys_are_in_the_order_of_the_numbers(drawn):
    one, other = np.array(drawn, np.float32)
    if not np.isnan([one, other]).any():
        low, high = ordered_keys(np.array([one, other], np.float32))
        assert (low < high, low == high) == (one < other, one == other)


def test_trees_that_do_not_fit_are_not_packed():
    kinds = FlatTrees.from_model_texts([], 2).nodes.splits.dtype
    split = np.zeros(1, kinds)
    split["left"], split["right"], split["feature"] = -1, -2, 1 << 15
    starts = np.zeros(1, np.int32), np.zeros(1, np.int32)
    assert pack_trees(FlatTrees(Nodes(*starts, split, np.zeros(2)), 2)) is None
    split["feature"] = (1 << 15) - 1
    assert pack_trees(FlatTrees(Nodes(*starts, split, np.zeros(2)), 2)) is not None


@pytest.fixture(scope="module")
def fitted():
    rng = np.random.default_rng(4)
    rows = rng.normal(size=(400, 12)).astype(np.float32)
    rows[rng.random(rows.shape) < 0.05] = np.nan
    lengths = np.exp(4.0 + np.nan_to_num(rows[:, 0]) + 0.3 * rng.normal(size=400))
    return LGBMBlendRegressor(n_estimators=8, epochs=4, folds=3).fit(rows, lengths)


@given(st.integers(1, 5), st.integers(0, 2**32 - 1), st.floats(0.0, 1.0))
@settings(deadline=None, max_examples=30)
def test_a_server_is_told_what_the_parts_say_one_by_one(fitted, count, seed, share):
    rng = np.random.default_rng(seed)
    rows = (3.0 * rng.normal(size=(count, 12))).astype(np.float32)
    rows[rng.random(rows.shape) < 0.1] = np.nan
    rows[rng.random(rows.shape) < 0.05] = np.inf
    fitted.net_share = share
    said = fitted.predict_log_quantiles(rows, LEVELS)
    wide = rows.astype(np.float64)
    parts = {name: part.predict_log_quantiles(wide, LEVELS) for name, part in fitted.fitted()}
    assert said.tobytes() == fitted.mixed(parts).tobytes()
    assert said.tobytes() == fitted.predict_log_quantiles(wide, LEVELS).tobytes()


@given(st.lists(st.tuples(st.integers(0, 40), st.sampled_from("?bdfiQ")), max_size=6))
def test_arrays_in_one_block_are_equal_and_apart(drawn):
    arrays = [np.arange(3 * size).astype(kind).reshape(size, 3) for size, kind in drawn]
    copies = in_one_block(*arrays)
    for array, copy in zip(arrays, copies, strict=True):
        assert (copy.dtype, copy.shape) == (array.dtype, array.shape)
        assert copy.tobytes() == array.tobytes()
        assert copy.flags.c_contiguous
        assert copy.flags.aligned
        copy[...] = 1
    assert all((copy == 1).all() for copy in copies)


def test_a_part_that_was_dropped_is_not_asked(fitted):
    rows = np.zeros((2, 12), np.float32)
    alone = LGBMBlendRegressor(n_estimators=4, epochs=2, folds=1)
    alone.fit(np.random.default_rng(0).normal(size=(60, 12)), np.arange(1.0, 61.0))
    alone.drop("nets")
    said = alone.predict_log_quantiles(rows, LEVELS)
    assert (said == alone.student_.predict_log_quantiles(rows, LEVELS)).all()
