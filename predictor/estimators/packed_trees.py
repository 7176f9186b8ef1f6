"""The same trees in half the memory, for rows in single precision: how a server walks them.

What a prediction costs in a server is the trees' way from far memory to the processor, and one
access after another. So a node is one word of 8 bytes, children of a node stand side by side, and
some trees are walked at once, whose accesses then run side by side too. Thresholds are compared as
whole numbers in the order of the floats. A leaf is a node that leads to itself.

    high 32 bits  threshold, as ordered integer
    bit 31        whether NaN goes left
    bits 16-30    the feature; of a leaf, its number
    bits 0-15     the left child, of the tree; the right one stands behind it
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from lengthwise.data.arrays import njit
from lengthwise.predictor.estimators.trees import FlatTrees

_MOST_FEATURES, _MOST_NODES = 1 << 15, 1 << 16
_NAN_KEY = 0x7FFFFFFF  # behind every threshold, and not behind a leaf's
_AT_ONCE = 4  # trees; their number is filled up with trees of one leaf that adds nothing


class PackedTrees(NamedTuple):
    """Nodes of all trees behind one another; where each tree, and its leaves' values, begin."""

    nodes: NDArray[np.int64]
    roots: NDArray[np.int64]
    leaf_starts: NDArray[np.int64]
    leaves: NDArray[np.float64]
    room: int
    """A row must have so many columns, as leaves are numbers of columns too."""


def pack_trees(trees: FlatTrees) -> PackedTrees | None:
    """The trees, packed; None where a feature or a node has a number too high for its bits."""
    roots, leaf_starts, splits, leaves = trees.nodes
    ends = np.append(leaf_starts[1:], leaves.size)
    counts = ends - leaf_starts
    fits = 2 * counts.max(initial=1) <= _MOST_NODES
    if not fits or splits["feature"].max(initial=0) >= _MOST_FEATURES:
        return None
    thresholds = ordered_keys(_below(splits["threshold"])).astype(np.int64)
    numbers = splits["feature"].astype(np.int64) | (splits["nan_left"].astype(np.int64) << 15)
    upper = (thresholds << 32) | (numbers << 16)
    starts = np.concatenate(([0], np.cumsum(2 * counts - 1)))
    nodes = np.empty(starts[-1], np.int64)
    for tree, (root, start) in enumerate(zip(roots.tolist(), starts.tolist(), strict=False)):
        inner = int(counts[tree]) - 1
        own = slice(root, root + inner)
        tree_nodes = _ordered(
            upper[own].tolist(), splits["left"][own].tolist(), splits["right"][own].tolist()
        )
        nodes[start : start + len(tree_nodes)] = tree_nodes
    missing = -roots.size % _AT_ONCE
    return PackedTrees(
        np.append(nodes, _leaf(0, 0)),
        np.append(starts[:-1], np.full(missing, nodes.size)),
        np.append(leaf_starts, np.full(missing, leaves.size)).astype(np.int64),
        np.append(leaves, 0.0),
        int(counts.max(initial=1)),
    )


def _ordered(upper: list[int], left: list[int], right: list[int]) -> list[int]:
    """One tree's nodes, level by level; a negative child -1 - k is leaf k."""
    if not upper:
        return [_leaf(0, 0)]
    waiting, nodes = [0], []
    for at in waiting:  # it grows by the children, two by two
        if at < 0:
            nodes.append(_leaf(-1 - at, len(nodes)))
        else:
            nodes.append(upper[at] | len(waiting))
            waiting += (left[at], right[at])
    return nodes


def _leaf(number: int, at: int) -> int:
    return (_NAN_KEY << 32) | (number << 16) | at


def _below(thresholds: NDArray[np.float64]) -> NDArray[np.float32]:
    """The highest single-precision numbers that are not above: they part such numbers alike."""
    with np.errstate(over="ignore"):
        near = thresholds.astype(np.float32)
    return np.where(near > thresholds, np.nextafter(near, np.float32(-np.inf)), near)


def ordered_keys(values: NDArray[np.float32]) -> NDArray[np.int32]:
    """Whole numbers in the order of the values; zeros are alike."""
    bits = (values + np.float32(0.0)).view(np.int32)
    return np.where(bits >= 0, bits, bits ^ np.int32(0x7FFFFFFF))


@njit(nogil=True)
def fill_keys(row: np.ndarray, scratch: np.ndarray, keys: np.ndarray) -> bool:
    """Ordered keys of a row, (f,) float32, into (f,) int64; whether it has a NaN.

    `scratch`, (f,) float32, is room.
    """
    unknown = False
    for column in range(row.size):
        scratch[column] = row[column] + np.float32(0.0)
        unknown |= np.isnan(row[column])
    bits = scratch.view(np.int32)
    for column in range(row.size):
        key = np.int64(bits[column])
        keys[column] = key if key >= 0 else key ^ np.int64(0x7FFFFFFF)
    if unknown:
        for column in range(row.size):
            if np.isnan(row[column]):
                keys[column] = _NAN_KEY
    return unknown


@njit(nogil=True)
def _step(nodes: np.ndarray, keys: np.ndarray, unknown: bool, root: int, at: int) -> int:
    """The node behind a node, for a row's keys."""
    node = nodes[at]
    key = keys[(node >> 16) & 0x7FFF]
    to = root + (node & 0xFFFF) + (key > (node >> 32))
    if unknown and key == _NAN_KEY and node & 0x80000000:
        to = root + (node & 0xFFFF)
    return to


@njit(nogil=True)
def add_leaves(
    keys: np.ndarray,
    unknown: bool,
    nodes: np.ndarray,
    roots: np.ndarray,
    leaf_starts: np.ndarray,
    leaves: np.ndarray,
    out: np.ndarray,
) -> None:
    """Add each tree's leaf to output tree modulo (outputs,), in the order of the trees.

    keys : (room,) int64, of which the row's come first
    """
    outputs = out.size
    for first in range(0, roots.size, _AT_ONCE):
        root0, root1, root2, root3 = (
            roots[first], roots[first + 1], roots[first + 2], roots[first + 3],
        )  # fmt: skip
        at0, at1, at2, at3 = root0, root1, root2, root3
        moved = True
        while moved:  # until the deepest of them is at its leaf
            to0 = _step(nodes, keys, unknown, root0, at0)
            to1 = _step(nodes, keys, unknown, root1, at1)
            to2 = _step(nodes, keys, unknown, root2, at2)
            to3 = _step(nodes, keys, unknown, root3, at3)
            moved = (to0 != at0) | (to1 != at1) | (to2 != at2) | (to3 != at3)
            at0, at1, at2, at3 = to0, to1, to2, to3
        for k, at in enumerate((at0, at1, at2, at3)):
            leaf = leaf_starts[first + k] + ((nodes[at] >> 16) & 0x7FFF)
            out[(first + k) % outputs] += leaves[leaf]
