from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lengthwise.data.arena.arrivals import gamma_arrivals, poisson_arrivals, trace_arrivals
from lengthwise.data.errors import InputError

counts = st.integers(1, 300)
rates = st.floats(0.01, 1000)
seeds = st.integers(0, 2**32)
TRACE = np.cumsum(np.random.default_rng(5).gamma(0.2, 5.0, size=80))


def rng(seed=0):
    return np.random.default_rng(seed)


@given(counts, rates, seeds)
def test_arrivals_start_at_zero_sorted_and_repeat_with_their_seed(n, rate, seed):
    for draw in (
        lambda r: poisson_arrivals(n, rate, r),
        lambda r: gamma_arrivals(n, rate, r, cv=3.0),
        lambda r: trace_arrivals(n, rate, TRACE, r),
    ):
        times = draw(rng(seed))
        assert times.shape == (n,)
        assert times[0] == 0
        assert (np.diff(times) >= 0).all()
        assert np.isfinite(times).all()
        assert (times == draw(rng(seed))).all()


def test_poisson_has_the_mean_and_spread_of_an_exponential():
    gaps = np.diff(poisson_arrivals(50_000, 4.0, rng()))
    assert gaps.mean() == pytest.approx(0.25, rel=0.02)
    assert gaps.std() / gaps.mean() == pytest.approx(1.0, rel=0.03)


def test_gamma_keeps_the_rate_and_has_the_burstiness_asked_for():
    gaps = np.diff(gamma_arrivals(100_000, 4.0, rng(), cv=3.0))
    assert gaps.mean() == pytest.approx(0.25, rel=0.05)
    assert gaps.std() / gaps.mean() == pytest.approx(3.0, rel=0.1)


@given(st.integers(2, 300), rates, seeds)
def test_trace_window_has_exactly_the_rate(n, rate, seed):
    times = trace_arrivals(n, rate, TRACE, rng(seed))
    assert times[-1] == pytest.approx((n - 1) / rate)


def test_trace_keeps_the_shape_of_its_gaps():
    trace = np.array([0.0, 1.0, 3.0, 7.0])
    gaps = np.diff(trace_arrivals(4, 1.0, trace, rng(3)))
    # mean gap of the trace is 7/3, which also joins its end to its start
    recorded = np.array([1.0, 2.0, 4.0, 7 / 3])
    shapes = [np.roll(recorded, -k)[:3] / np.roll(recorded, -k)[:3].mean() for k in range(4)]
    assert any(np.allclose(gaps, shape) for shape in shapes)


def test_a_window_of_equal_stamps_moves_on():
    trace = np.array([0.0, 0.0, 0.0, 5.0])
    for seed in range(20):
        assert trace_arrivals(2, 4.0, trace, rng(seed))[-1] == 0.25


@pytest.mark.parametrize(
    ("trace", "message"),
    [
        ([], "at least two"),
        ([1.0], "at least two"),
        ([2.0, 1.0], "must be sorted, got 1 s after 2 s"),
        ([0.0, math.nan], "finite"),
        ([3.0, 3.0, 3.0], "span some time"),
        ([[0.0, 1.0]], "at least two"),
    ],
)
def test_a_bad_trace_is_refused(trace, message):
    with pytest.raises(InputError, match=message):
        trace_arrivals(5, 1.0, trace, rng())


@pytest.mark.parametrize(
    ("n", "rate"), [(0, 1.0), (-1, 1.0), (3, 0.0), (3, math.nan), (3, math.inf)]
)
def test_nonsense_is_refused(n, rate):
    with pytest.raises(InputError):
        poisson_arrivals(n, rate, rng())
    with pytest.raises(InputError):
        trace_arrivals(n, rate, TRACE, rng())
    with pytest.raises(InputError, match="cv must be positive"):
        gamma_arrivals(3, 1.0, rng(), cv=0.0)
