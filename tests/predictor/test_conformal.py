import json

import numpy as np

from predictor.conformal import ConformalOffsets

LEVELS = (0.1, 0.5, 0.9)


def narrow_rows(n: int) -> np.ndarray:
    return np.tile(np.log([90.0, 100.0, 110.0]), (n, 1))


def test_too_narrow_intervals_are_widened_to_their_share() -> None:
    rng = np.random.default_rng(0)
    truth = np.log(100.0) + 0.5 * rng.normal(size=4000)
    offsets = ConformalOffsets.fit(narrow_rows(2000), truth[:2000], ["a"] * 2000, LEVELS)
    fixed = offsets.apply(narrow_rows(2000), ["a"] * 2000)
    inside = (truth[2000:] >= fixed[:, 0]) & (truth[2000:] <= fixed[:, 2])
    assert 0.77 < inside.mean() < 0.83


def test_a_small_class_leans_on_the_pool() -> None:
    rng = np.random.default_rng(0)
    truth = np.concatenate((rng.normal(np.log(100), 0.2, 1000), rng.normal(np.log(200), 0.2, 5)))
    classes = ["big"] * 1000 + ["tiny"] * 5
    offsets = ConformalOffsets.fit(narrow_rows(1005), truth, classes, LEVELS)
    tiny, big = offsets.by_class["tiny"][1], offsets.by_class["big"][1]
    own = np.log(2.0) / np.log(110 / 90)
    assert big < tiny < 0.4 * own


def test_json_round_trip_and_unknown_classes() -> None:
    offsets = ConformalOffsets(LEVELS, np.array([-0.1, 0.0, 0.2]), {"a": np.array([0.0, 1.0, 2.0])})
    again = ConformalOffsets.from_json(json.loads(json.dumps(offsets.to_json())))
    rows = narrow_rows(3)
    classes = ["a", "new", None]
    np.testing.assert_array_equal(offsets.apply(rows, classes), again.apply(rows, classes))
    np.testing.assert_array_equal(offsets.apply(rows, classes)[1], offsets.apply(rows, classes)[2])
