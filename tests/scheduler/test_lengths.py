import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from planning_cases import LEVELS

from lengthwise.predictor.distribution import LengthDistribution
from lengthwise.scheduler.lengths import (
    cdf_at,
    fresh_mean,
    quantile_at,
    remaining_mean,
    remaining_rows,
    sample_rows,
)

rows = st.lists(st.floats(1.0, 3000.0), min_size=12, max_size=12).map(
    lambda values: np.sort(np.array(values))
)
strict = st.lists(st.floats(0.05, 0.5), min_size=12, max_size=12).map(
    lambda steps: np.exp(1.0 + np.cumsum(steps))
)


@given(row=strict, p=st.floats(0.001, 0.995))
def test_cdf_inverts_the_quantile_function(row, p):
    tokens = quantile_at(LEVELS, row, p)
    if tokens < 4.0 * row[-1]:
        assert cdf_at(LEVELS, row, tokens) == pytest.approx(p, abs=1e-9)


@given(row=rows)
def test_the_levels_are_met_and_order_is_kept(row):
    values = [quantile_at(LEVELS, row, p) for p in LEVELS]
    assert values == pytest.approx(row)
    grid = [cdf_at(LEVELS, row, t) for t in np.linspace(0.5, 4 * row[-1], 200)]
    assert (np.diff(grid) >= -1e-12).all()
    assert grid[-1] == 1.0


@given(row=strict, share=st.floats(0.0, 1.2))
def test_the_mean_left_is_the_integral_of_the_quantile_function(row, share):
    generated = float(share * row[-1])
    p = (np.arange(20_000) + 0.5) / 20_000
    lengths = sample_rows(LEVELS, row[None], p[:, None])[:, 0]
    left = lengths[lengths > generated] - generated
    if len(left) > 500:
        expected = max(1.0, float(left.mean()))
        assert remaining_mean(LEVELS, row, generated) == pytest.approx(expected, rel=0.03, abs=0.5)


def test_what_is_left_shrinks_to_the_tail_and_never_below_a_token():
    row = np.linspace(50.0, 400.0, 12)
    left = remaining_rows(LEVELS, row[None].repeat(3, axis=0), np.array([0.0, 300.0, 1e6]))
    assert left[0] == pytest.approx(row)
    assert (left[1] < row).all()
    assert (left >= 1.0).all()


def test_a_certain_length_stays_certain():
    row = np.full(12, 120.0)
    assert remaining_mean(LEVELS, row, 0.0) == pytest.approx(120.0, rel=0.05)
    assert cdf_at(LEVELS, row, 119.0) < 0.05
    assert cdf_at(LEVELS, row, 120.0) == 1.0


@given(row=strict, flat=st.booleans(), share=st.floats(0.0, 5.0))
def test_equal_to_the_predictors_distribution(row, flat, share):
    """The rule is written twice: in numpy beside the estimators, compiled beside the kernels."""
    if flat:
        row = np.full(12, row[5])
    twin = LengthDistribution(LEVELS, row[None])
    tokens = max(1.5, share * row[-1] * 1.0001)
    assert cdf_at(LEVELS, row, tokens) == pytest.approx(float(twin.cdf([tokens])[0]), abs=1e-9)
    uniforms = np.linspace(0.001, 0.999, 50)[:, None]
    assert sample_rows(LEVELS, row[None], uniforms) == pytest.approx(twin.sample(uniforms))
    assert fresh_mean(LEVELS, row, np.log(row)) == pytest.approx(remaining_mean(LEVELS, row, 0.0))
    left = remaining_rows(LEVELS, row[None], np.array([tokens]))
    assert left == pytest.approx(twin.remaining([tokens]).quantiles, rel=1e-6)
    assert remaining_mean(LEVELS, row, 0.0) == pytest.approx(float(twin.mean()[0]), rel=1e-6)
