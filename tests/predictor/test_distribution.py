import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lengthwise.data.errors import InputError
from lengthwise.predictor.distribution import DEFAULT_LEVELS, LengthDistribution

ROWS = st.lists(
    st.lists(st.floats(1.0, 1e5), min_size=12, max_size=12).map(sorted), min_size=1, max_size=4
)


def make(rows: list[list[float]]) -> LengthDistribution:
    return LengthDistribution.from_rows(DEFAULT_LEVELS, rows)


def geometric_row() -> LengthDistribution:
    """Quantiles of a log-uniform-like row: log-linear, so every formula is easy by hand."""
    return make([[10.0 * 1.5**i for i in range(12)]])


@settings(deadline=None)
@given(ROWS)
def test_quantiles_at_the_grid_are_the_rows(rows: list[list[float]]) -> None:
    d = make(rows)
    for i, level in enumerate(DEFAULT_LEVELS):
        np.testing.assert_allclose(d.quantile(level), d.quantiles[:, i], rtol=1e-9)


@settings(deadline=None)
@given(ROWS, st.floats(0.001, 0.999))
def test_cdf_inverts_the_quantile(rows: list[list[float]], level: float) -> None:
    d = make(rows)
    assert (d.cdf(d.quantile(level) * (1 + 1e-9)) >= level - 1e-6).all()
    strict = np.diff(np.log(d.quantiles), axis=1).min(axis=1) > 1e-3
    inside = strict & (d.quantile(level) < d.cap) & (d.quantiles[:, 0] > 1.01)
    np.testing.assert_allclose(d.cdf(d.quantile(level))[inside], level, atol=1e-6)


@settings(max_examples=15, deadline=None)
@given(ROWS)
def test_mean_is_the_average_of_samples(rows: list[list[float]]) -> None:
    d = make(rows)
    uniforms = (np.arange(40_000) + 0.5) / 40_000
    samples = d.sample(np.repeat(uniforms[:, None], len(d), axis=1))
    np.testing.assert_allclose(d.mean(), samples.mean(axis=0), rtol=5e-3)


@settings(deadline=None)
@given(ROWS, st.floats(0.0, 2e6))
def test_remaining_is_always_a_valid_distribution(rows: list[list[float]], g: float) -> None:
    rest = make(rows).remaining(np.full(len(rows), g))
    assert (rest.quantiles >= 1.0).all()
    assert np.isfinite(rest.quantiles).all()
    assert (np.diff(rest.quantiles, axis=1) >= 0).all()


def test_remaining_of_nothing_is_the_distribution_less_nothing() -> None:
    d = geometric_row()
    np.testing.assert_allclose(d.remaining(np.zeros(1)).quantiles, d.quantiles)


def test_remaining_is_bayes_on_the_cdf() -> None:
    d = geometric_row()
    g = d.quantile(0.4)
    # given the answer is past its 40 % quantile, the median of the whole is the 70 % quantile
    np.testing.assert_allclose(d.remaining(g).median(), d.quantile(0.7) - g, rtol=1e-9)


def test_an_outlived_row_leaves_half_of_what_was_written() -> None:
    rest = geometric_row().remaining(np.array([1e9]))
    np.testing.assert_allclose(rest.quantiles, 5e8)


def test_the_tail_is_a_power_law_through_the_last_two_quantiles() -> None:
    d = geometric_row()
    slope = np.log(1.5) / np.log(5.0)  # from level .95 to .99 survival falls five times
    np.testing.assert_allclose(d.quantile(0.998), d.quantiles[:, -1] * 5.0**slope)


def test_the_cap_bounds_everything() -> None:
    d = LengthDistribution.from_rows(DEFAULT_LEVELS, [[10.0 * 1.5**i for i in range(12)]], cap=100)
    assert d.quantile(0.9999) == 100
    assert d.cdf(100.0) == 1.0
    assert d.mean() < 100


@pytest.mark.parametrize(
    ("rows", "says"),
    [
        ([[5.0, 4.0]], "decrease"),
        ([[0.0, 4.0]], "at least one"),
        ([[np.nan, 4.0]], "finite"),
        ([[1.0, 2.0, 3.0]], "levels"),
    ],
)
def test_a_broken_row_is_refused(rows: list[list[float]], says: str) -> None:
    with pytest.raises(InputError, match=says):
        LengthDistribution(np.array([0.1, 0.9]), np.array(rows))
