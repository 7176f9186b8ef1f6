from statistics import NormalDist

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lengthwise.predictor.distribution import DEFAULT_LEVELS
from lengthwise.predictor.serving.online_lengths import FIRST_ROWS, OnlineLengths, refit
from lengthwise.predictor.serving.residual import (
    Misses,
    Residual,
    _Regression,
    fit_residual,
    squash,
    squashed_dot,
    warm_up,
)

LEVELS = np.array(DEFAULT_LEVELS)
TEN, HALF, NINETY = (DEFAULT_LEVELS.index(level) for level in (0.1, 0.5, 0.9))
WIDTH = 12


def said(median: float, spread: float = 0.5) -> np.ndarray:
    """A log-normal prediction at all levels."""
    normal = NormalDist(np.log(median), spread)
    return np.maximum(np.exp([normal.inv_cdf(level) for level in LEVELS]), 1.0)


def drawn(rng: np.random.Generator, rows: int, slope: float, spread: float = 0.5) -> Misses:
    """Answers to prompts of two classes, longer by ``slope`` for each unit of the first feature."""
    features = rng.normal(size=(rows, WIDTH)).astype(np.float32)
    median = np.exp(rng.uniform(3.0, 6.0, rows))
    truth = median * np.exp(slope * features[:, 0] + rng.normal(0.0, spread, rows))
    three = np.array([said(value)[[TEN, HALF, NINETY]] for value in median])
    classes = rng.choice(["chat", "code"], rows).tolist()
    return Misses(features, three, np.maximum(truth, 1.0), np.zeros(rows, bool), classes)


def taught(misses: Misses, lengths: OnlineLengths | None = None) -> OnlineLengths:
    """What a server has learned once it has answered these."""
    lengths = lengths or OnlineLengths()
    for i in range(len(misses)):
        told = float(misses.output_tokens[i]), misses.classes[i], bool(misses.censored[i])
        lengths.update(misses.predicted[i].tolist(), *told, misses.features[i])
        if (due := lengths.to_fit()) is not None:
            lengths.adopt(refit(due, lengths.in_force))
    return lengths


def shifts(lengths: OnlineLengths, misses: Misses) -> np.ndarray:
    """By how much the residual moves these, log-tokens."""
    fitted = lengths.residual
    if fitted is None:
        return np.zeros(len(misses))
    rows = zip(misses.features, misses.predicted, misses.classes, strict=True)
    return np.array([fitted.shift(*row) for row in rows])


@pytest.mark.parametrize("seed", range(3))
def test_an_order_that_the_predictor_does_not_know_is_learned(seed):
    rng = np.random.default_rng(seed)
    lengths, fresh = taught(drawn(rng, 400, 0.8)), drawn(rng, 400, 0.8)
    wanted = 0.8 * fresh.features[:, 0]
    assert np.corrcoef(shifts(lengths, fresh), wanted)[0, 1] > 0.95
    assert np.abs(shifts(lengths, fresh) - wanted).mean() < 0.2


@pytest.mark.parametrize("seed", range(6))
def test_a_predictor_that_is_right_is_left_alone(seed):
    rng = np.random.default_rng(seed)
    lengths = taught(drawn(rng, 600, 0.0))
    assert np.abs(shifts(lengths, drawn(rng, 200, 0.0))).mean() < 0.12


def test_what_a_class_alone_tells_is_left_to_the_correction():
    misses = drawn(np.random.default_rng(1), 500, 0.0)
    longer = np.where(np.array(misses.classes) == "code", 3.0, 1.0)
    told = Misses(
        misses.features, misses.predicted, misses.output_tokens * longer, misses.censored,
        misses.classes,
    )  # fmt: skip
    lengths = taught(told)
    row, levels = said(100.0), LEVELS
    code = lengths.correct(row, levels, "code", np.zeros(WIDTH, np.float32))[HALF]
    chat = lengths.correct(row, levels, "chat", np.zeros(WIDTH, np.float32))[HALF]
    assert 2.3 < code / chat < 3.6


def test_the_compiled_sum_is_numpys():
    rng = np.random.default_rng(4)
    means, scales, weights = rng.normal(size=9), rng.uniform(0.1, 2.0, 9), rng.normal(size=9)
    scales[3] = np.inf  # a column that never changed
    for size in (1e-3, 1.0, 1e6):
        row = (size * rng.normal(size=9)).astype(np.float32)
        columns = np.clip((squash(row) - means) / scales, -3.0, 3.0)
        assert squashed_dot(row, means, scales, weights) == pytest.approx(columns @ weights)


def test_what_a_served_prompt_is_told_by_was_compiled_before():
    warm_up()
    known = list(squashed_dot.signatures)
    fitted = Residual(
        np.zeros(3), np.ones(3), np.split(np.ones(6), 2)[1], (5.0, 1.0), (0.1, 0.0, 0.0), {}
    )
    assert fitted.shift(np.ones(3, np.float32), [50.0, 100.0, 300.0], None) > 0.0
    assert list(squashed_dot.signatures) == known


def test_a_rows_left_out_shift_is_that_of_a_fit_without_it():
    rng = np.random.default_rng(5)
    columns, ratios = rng.normal(size=(40, 5)), rng.normal(size=40)
    weights, scales, known = rng.uniform(0.2, 2.0, 40), np.ones(40), np.ones(40, bool)
    _, left_out = _Regression(columns, 2, ratios, scales, known).fit(3.0, weights)
    for row in (0, 17, 39):
        rest = np.arange(40) != row
        others = _Regression(columns[rest], 2, ratios[rest], scales[rest], known[rest])
        found, _ = others.fit(3.0, weights[rest])
        assert left_out[row] == pytest.approx(columns[row] @ found)


def test_answers_cut_short_do_not_teach_that_answers_are_short():
    misses = drawn(np.random.default_rng(6), 300, 0.8)
    cut = misses.features[:, 0] > 0.0
    tokens = np.where(cut, np.minimum(misses.output_tokens, 5.0), misses.output_tokens)
    told = Misses(misses.features, misses.predicted, tokens, cut, misses.classes)
    found = fit_residual(told)
    assert found is None or found[0].weights[0] >= 0.0


def test_rows_that_are_not_the_predictors_teach_level_and_spread_only():
    lengths = taught(drawn(np.random.default_rng(7), 200, 0.8))
    answers = lengths.answers
    narrow, unknown = np.zeros(3, np.float32), np.full(WIDTH, np.nan, np.float32)
    for row in (None, narrow, unknown):
        lengths.update((50.0, 100.0, 200.0), 100.0, "chat", False, row)
        assert np.isfinite(lengths.correct(said(100.0), LEVELS, "chat", row)).all()
    assert lengths.answers == answers


def test_what_came_while_a_fit_was_made_is_learned_after_it():
    misses = drawn(np.random.default_rng(8), 400, 0.8)
    lengths = OnlineLengths()
    due = None
    for i in range(len(misses)):
        told = float(misses.output_tokens[i]), misses.classes[i], False, misses.features[i]
        lengths.update(misses.predicted[i].tolist(), *told)
        due = due or lengths.to_fit()
    assert len(due) == FIRST_ROWS
    late = refit(due)
    alone = len(late.correction._all.misses)
    lengths.adopt(late)
    if lengths.residual is not None:
        assert len(late.correction._all.misses) == min(alone + 340, late.correction.window)
    assert lengths.fits == 1


def test_a_fit_reads_what_it_was_given_though_more_comes():
    rng = np.random.default_rng(9)
    lengths = OnlineLengths(window=FIRST_ROWS)
    first = drawn(rng, FIRST_ROWS, 0.0)
    for i in range(FIRST_ROWS):
        lengths.update(first.predicted[i].tolist(), 10.0 + i, "chat", False, first.features[i])
    due = lengths.to_fit()
    taught(drawn(rng, 5 * FIRST_ROWS, 0.0), lengths)
    assert due.output_tokens.tolist() == [10.0 + i for i in range(FIRST_ROWS)]
    assert np.array_equal(due.features, first.features)


def test_only_the_last_answers_are_fitted_to():
    lengths = OnlineLengths(window=FIRST_ROWS)
    misses = drawn(np.random.default_rng(10), 7 * FIRST_ROWS, 0.0)
    sizes = []
    for i in range(len(misses)):
        told = float(misses.output_tokens[i]), misses.classes[i], False, misses.features[i]
        lengths.update(misses.predicted[i].tolist(), *told)
        if (due := lengths.to_fit()) is not None:
            sizes.append(len(due))
            last = misses.output_tokens[i + 1 - FIRST_ROWS : i + 1]
            assert due.output_tokens.tolist() == last.tolist()
    assert set(sizes) == {FIRST_ROWS}
    with pytest.raises(ValueError, match="window must be at least 60 rows, got 3"):
        OnlineLengths(window=3)


def test_bounds_alone_teach_nothing():
    misses = drawn(np.random.default_rng(11), 200, 0.8)
    misses.censored[:] = True
    assert fit_residual(misses) is None


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    rows=st.integers(1, 150),
    size=st.sampled_from([0.0, 1.0, 1e30]),
    tokens=st.sampled_from([1.0, 100.0, 1e7]),
)
def test_whatever_is_learned_a_mended_prediction_is_one(seed, rows, size, tokens):
    rng = np.random.default_rng(seed)
    misses = drawn(rng, rows, 1.0)
    misses.features[:] *= np.float32(size)
    misses.output_tokens[:] = rng.choice([tokens, 1.0], rows)
    misses.censored[:] = rng.random(rows) < 0.3
    lengths = taught(misses)
    for row in misses.features[:5]:
        mended = lengths.correct(said(rng.uniform(1.0, 1e4), 1.0), LEVELS, "chat", row)
        assert np.isfinite(mended).all()
        assert (mended >= 1.0).all()
        assert (np.diff(mended) >= 0.0).all()
