"""The arithmetic of quantile rows, against a twin that interpolates and sums."""

from __future__ import annotations

import naive_lengths as naive
import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from lengthwise.data.lengths import (
    TAIL_CAP,
    cdf_at,
    fresh_mean,
    quantile_at,
    quantile_rows,
    remaining_mean,
    remaining_rows,
)
from lengthwise.predictor.distribution import LengthDistribution

LEVELS = np.array((0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99))
NO_CAP = np.zeros(1)

rows = st.lists(st.floats(1.0, 3000.0), min_size=12, max_size=12).map(
    lambda values: np.sort(np.array(values))
)
strict = st.lists(st.floats(0.05, 0.5), min_size=12, max_size=12).map(
    lambda steps: np.exp(1.0 + np.cumsum(steps))
)
caps = st.sampled_from((0.0, 1.0, 2.5, 9.0))  # as multiples of the last quantile; 0: none given


def longest(row: np.ndarray, cap: float) -> float:
    return cap if cap > 0 else TAIL_CAP * row[-1]


@settings(deadline=None)
@given(row=strict, p=st.floats(0.001, 0.9999), share=caps)
def test_quantiles_are_the_twins(row, p, share):
    cap = share * row[-1]
    expected = naive.quantile(LEVELS, row, np.array([p]), longest(row, cap))[0]
    assert quantile_at(LEVELS, row, p, cap) == pytest.approx(expected)


@settings(deadline=None)
@given(row=rows, place=st.floats(0.0, 5.0), share=caps)
def test_probabilities_are_the_twins(row, place, share):
    cap, tokens = share * row[-1], place * row[-1]
    known = np.abs(row - tokens).min() > 1e-6 * tokens and tokens > 1.001
    if known:  # a jump is open to rounding in the twin
        expected = naive.cdf(LEVELS, row, tokens, longest(row, cap))
        assert cdf_at(LEVELS, row, tokens, cap) == pytest.approx(expected, abs=1e-6)


@settings(deadline=None, max_examples=40)
@given(row=strict, place=st.floats(0.0, 1.3), share=st.sampled_from((0.0, 2.5)))
def test_the_mean_left_is_the_twins(row, place, share):
    cap, generated = share * row[-1], float(place * row[-1])
    expected = max(1.0, naive.mean_left(LEVELS, row, generated, longest(row, cap)))
    found = remaining_mean(LEVELS, row, generated, cap)
    assert found == pytest.approx(expected, rel=1e-3, abs=0.02)


@settings(deadline=None)
@given(row=strict)
def test_the_short_way_to_the_mean_is_the_long_one(row):
    assert fresh_mean(LEVELS, row, np.log(row)) == pytest.approx(remaining_mean(LEVELS, row, 0.0))


@settings(deadline=None)
@given(row=rows)
def test_the_levels_are_met_and_order_is_kept(row):
    values = [quantile_at(LEVELS, row, p) for p in LEVELS]
    assert values == pytest.approx(row)
    grid = [cdf_at(LEVELS, row, t) for t in np.linspace(0.5, 4 * row[-1], 200)]
    assert (np.diff(grid) >= -1e-12).all()
    assert grid[-1] == 1.0


@settings(deadline=None)
@given(row=strict, g=st.floats(0.0, 3.9), share=st.sampled_from((0.0, 4.0)))
def test_what_is_left_is_bayes_on_the_cdf(row, g, share):
    generated, cap = g * row[-1], share * row[-1]
    past = cdf_at(LEVELS, row, generated, cap)
    assume(past < 1.0 - 1e-6)  # an outlived row is another case
    left, most = remaining_rows(LEVELS, row[None], np.array([cap]), np.array([generated]))
    assert (np.diff(left) >= 0).all()
    assert (left >= 1.0).all()
    assert left[0, -1] <= most[0]
    uniforms = past + (1.0 - past) * LEVELS
    whole = quantile_rows(LEVELS, row[None], np.array([cap]), uniforms[:, None])[:, 0]
    assert left[0] == pytest.approx(np.maximum(whole - generated, 1.0))


def test_an_outlived_row_leaves_half_of_what_was_written():
    left, most = remaining_rows(LEVELS, np.linspace(50.0, 400.0, 12)[None], NO_CAP, np.array([1e6]))
    assert (left == 5e5).all()
    assert most[0] == TAIL_CAP * 5e5


def test_a_certain_length_stays_certain():
    row = np.full(12, 120.0)
    assert remaining_mean(LEVELS, row, 0.0) == pytest.approx(120.0, rel=0.05)
    assert cdf_at(LEVELS, row, 119.0) < 0.05
    assert cdf_at(LEVELS, row, 120.0) == 1.0


@settings(deadline=None)
@given(row=rows, tokens=st.floats(0.5, 9000.0))
def test_the_predictors_distribution_is_a_frame_over_it(row, tokens):
    """The same numbers, not almost: there is one arithmetic."""
    frame = LengthDistribution(LEVELS, row[None])
    assert frame.cdf([tokens])[0] == cdf_at(LEVELS, row, tokens)
    assert frame.mean()[0] == remaining_mean(LEVELS, row, 0.0)
    assert frame.quantile(0.97)[0] == quantile_at(LEVELS, row, 0.97)
    left, _ = remaining_rows(LEVELS, row[None], NO_CAP, np.array([tokens]))
    assert (frame.remaining([tokens]).quantiles == left).all()
