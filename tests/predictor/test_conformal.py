import json

import numpy as np
import pytest

from lengthwise.data.errors import InputError
from lengthwise.predictor.conformal import (
    SCORE_GRID,
    ConformalLevels,
    read_levels,
    scores_from,
    scores_of,
)

LEVELS = (0.1, 0.5, 0.9)


def overconfident(n: int, rng: np.random.Generator) -> np.ndarray:
    """Scores of an estimator whose spread is half the true one: too many fall in the tails."""
    from scipy.stats import norm

    return norm.cdf(2.0 * rng.normal(size=n))


def test_the_wanted_share_falls_below_the_level_asked_for() -> None:
    rng = np.random.default_rng(0)
    levels = ConformalLevels.fit(overconfident(2000, rng), ["a"] * 2000, LEVELS)
    fresh = overconfident(20_000, rng)
    for wanted, asked in zip(LEVELS, levels.of("a"), strict=True):
        assert (fresh <= asked).mean() == pytest.approx(wanted, abs=0.02)
    assert levels.of("a")[0] < 0.03


def test_scores_are_where_the_truth_falls() -> None:
    rows = np.tile(np.log(100.0) + SCORE_GRID, (3, 1))
    truth = np.log(100.0) + np.array([0.3, -1.0, 2.0])
    np.testing.assert_allclose(scores_of(rows, truth), [0.3, 0.0005, 0.9995])


def test_a_small_class_leans_on_the_pool() -> None:
    scores = np.concatenate((np.linspace(0.01, 0.99, 1000), np.full(5, 0.9)))
    levels = ConformalLevels.fit(scores, ["big"] * 1000 + ["tiny"] * 5, LEVELS)
    assert levels.of("big")[1] < levels.of("tiny")[1] < 0.6


def test_json_round_trip_and_unknown_classes() -> None:
    levels = ConformalLevels(LEVELS, np.array(LEVELS), {"a": np.array([0.05, 0.5, 0.95])})
    again = ConformalLevels.from_json(json.loads(json.dumps(levels.to_json())))
    for name in ("a", "new", None):
        np.testing.assert_array_equal(levels.of(name), again.of(name))
    np.testing.assert_array_equal(levels.of("new"), LEVELS)
    with pytest.raises(InputError, match="pooled"):
        ConformalLevels.from_json({"levels": [0.5], "by_class": {}})


def test_scores_and_levels_are_read_as_interp_does() -> None:
    rng = np.random.default_rng(4)
    rows = np.sort(np.round(rng.normal(4.0, 1.0, (200, SCORE_GRID.size)), 1), axis=1)  # with ties
    truths = np.round(rng.normal(4.0, 1.5, 200), 1)
    wanted = [
        np.interp(truth, row, SCORE_GRID, left=0.0005, right=0.9995)
        for truth, row in zip(truths, rows, strict=True)
    ]
    np.testing.assert_array_equal(scores_from(rows, truths, SCORE_GRID), wanted)
    levels = np.array([0.0005, 0.001, 0.0499, 0.05, 0.5, 0.987, 0.999, 0.9995])
    read = [np.interp(levels, SCORE_GRID, row) for row in rows]
    np.testing.assert_allclose(read_levels(rows, levels), read, rtol=1e-12)
