import numpy as np
import pytest

from lengthwise.predictor.distribution import LengthDistribution
from lengthwise.predictor.fitting import metrics

LEVELS = (0.1, 0.9)


def test_pinball_tells_a_level_from_its_mirror() -> None:
    y = np.array([100.0])
    d = LengthDistribution.from_rows(LEVELS, [[90.0, 90.0]])
    # the truth lies 10 above: level .1 pays 1, level .9 pays 9
    assert metrics.pinball(y, d) == pytest.approx((1.0 + 9.0) / 2)
    above = LengthDistribution.from_rows(LEVELS, [[90.0, 120.0]])
    assert metrics.pinball(y, above) == pytest.approx((1.0 + 2.0) / 2)


def test_crps_of_a_certain_prediction_is_its_error() -> None:
    d = LengthDistribution.from_rows((0.001, 0.999), [[50.0, 50.0]])
    assert metrics.crps([80.0], d) == pytest.approx(30.0, rel=0.02)


def test_within_25_counts_the_edge() -> None:
    assert metrics.within_25([100, 100, 100, 100], [125, 75, 126, 10]) == 0.5


def test_within_task_tau_ignores_what_lies_between_tasks() -> None:
    y = np.concatenate((np.arange(50), 1000 + np.arange(50)))
    predicted = np.concatenate((np.full(50, 10), np.full(50, 1000)))
    groups = ["a"] * 50 + ["b"] * 50
    assert metrics.kendall_tau(y, predicted) > 0.6
    assert list(metrics.task_taus(y, predicted, groups).values()) == [0.0, 0.0]
    assert metrics.task_taus(y[:30], predicted[:30], groups[:30]) == {}


def test_coverage_and_width() -> None:
    assert metrics.coverage([1, 5, 9], [0, 6, 9], [2, 8, 9]) == pytest.approx(2 / 3)
    assert metrics.coverage([96, 96], [50, 96.004], [95.9996, 99]) == 1.0
    assert metrics.coverage([96, 96], [50, 96.1], [95.9, 99]) == 0.0
    assert metrics.width([0.0, 2.0], [4.0, 4.0]) == 3.0


def test_an_interval_at_the_cap_should_hold_what_is_cut_there() -> None:
    levels, rows = [0.05, 0.1, 0.2, 0.5, 0.9, 0.95], [[40, 50, 60, 70, 97, 98]] * 2
    free = LengthDistribution.from_rows(levels, rows)
    assert metrics.interval_due(free) == pytest.approx(0.8, abs=1e-3)
    capped = LengthDistribution.from_rows(levels, rows, cap=[60.0, 45.0])
    assert metrics.interval_due(capped) == pytest.approx(0.9, abs=1e-3)
