"""Arrival times, drawn in full before anything is sent, so that a client only has to wait."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from lengthwise.data.arrays import FloatArray
from lengthwise.data.errors import InputError, shown


def poisson_arrivals(n: int, rate_rps: float, rng: np.random.Generator) -> FloatArray:
    """(n,) seconds, sorted, from 0, with exponential gaps of mean 1 / rate_rps."""
    return gamma_arrivals(n, rate_rps, rng, cv=1.0)


def gamma_arrivals(n: int, rate_rps: float, rng: np.random.Generator, cv: float) -> FloatArray:
    """(n,) seconds, sorted, from 0; gamma gaps, `cv` their coefficient of variation (1: Poisson).

    Shape 1 / cv^2 and scale cv^2 / rate, as ServeGen (arXiv 2505.09999) fits production clients.
    """
    _check(n, rate_rps)
    if not (math.isfinite(cv) and cv > 0):
        raise InputError(f"cv must be positive, got {shown(cv)}")
    gaps = rng.gamma(1.0 / cv**2, cv**2 / rate_rps, size=n)
    gaps[0] = 0.0
    return np.cumsum(gaps)


def trace_arrivals(
    n: int, rate_rps: float, trace_times: Sequence[float] | FloatArray, rng: np.random.Generator
) -> FloatArray:
    """(n,) seconds, sorted, from 0: a random window of a recorded trace, rescaled to the rate.

    The window is `n` consecutive arrivals from a random start, wrapping round the end (the trace
    repeats after one mean gap); its time axis is scaled so that the mean gap is 1 / rate_rps,
    which keeps the bursts' shape and makes loads comparable.
    """
    _check(n, rate_rps)
    times = np.asarray(trace_times, dtype=np.float64)
    if times.ndim != 1 or len(times) < 2:
        raise InputError(f"a trace needs at least two arrival times, got shape {times.shape}")
    if not np.isfinite(times).all():
        raise InputError("a trace's arrival times must be finite, got NaN or infinity")
    if (np.diff(times) < 0).any():
        row = int(np.argmax(np.diff(times) < 0)) + 1
        raise InputError(f"a trace must be sorted, got {times[row]:g} s after {times[row - 1]:g} s")
    span = float(times[-1] - times[0])
    if span <= 0:
        raise InputError("a trace must span some time, got one instant")
    period = span + span / (len(times) - 1)
    start = int(rng.integers(len(times)))
    window = _window(times, start, n, period)
    while n > 1 and window[-1] == 0:  # recorded clocks are coarse: a window may be one instant
        start = (start + 1) % len(times)
        window = _window(times, start, n, period)
    return window / window[-1] * ((n - 1) / rate_rps) if n > 1 else window


def _window(times: FloatArray, start: int, n: int, period: float) -> FloatArray:
    index = start + np.arange(n)
    window = times[index % len(times)] + (index // len(times)) * period
    return window - window[0]


def _check(n: int, rate_rps: float) -> None:
    if n < 1:
        raise InputError(f"n must be at least 1, got {n}")
    if not (math.isfinite(rate_rps) and rate_rps > 0):
        raise InputError(f"rate_rps must be positive, got {shown(rate_rps)}")
