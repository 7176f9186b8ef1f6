"""Folds, and a blend whose members leave them out."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lengthwise.predictor.conformal import SCORE_GRID, ConformalLevels, scores_of
from lengthwise.predictor.distribution import DEFAULT_LEVELS
from lengthwise.predictor.estimators.blend import LGBMBlendRegressor
from lengthwise.predictor.folds import grouped_folds


@given(st.lists(st.sampled_from("abcdefgh"), min_size=1, max_size=60), st.integers(1, 6))
def test_a_group_is_in_one_fold_and_every_fold_is_used(groups: list[str], folds: int) -> None:
    fold = grouped_folds(len(groups), groups, folds, seed=1)
    assert fold.min() == 0
    assert fold.max() == min(folds, len(set(groups))) - 1
    assert len(np.unique(fold)) == fold.max() + 1
    assert len(set(zip(groups, fold.tolist(), strict=True))) == len(set(groups))


def lengths_of_groups(n: int, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Every group has a length of its own, which one column gives away to who has seen it."""
    rng = np.random.default_rng(seed)
    groups = rng.integers(0, n // 4, n)
    own = rng.normal(0.0, 1.0, n // 4)[groups]
    X = np.column_stack((rng.normal(size=n), groups))
    return X, np.exp(4.0 + X[:, 0] + own + 0.1 * rng.normal(size=n)), groups


@pytest.fixture(scope="module")
def crossed() -> tuple[LGBMBlendRegressor, np.ndarray, np.ndarray, np.ndarray]:
    X, y, groups = lengths_of_groups(1600, 0)
    model = LGBMBlendRegressor(n_estimators=60, epochs=15).fit(X, y, groups=groups)
    return model, X, y, groups


def test_held_out_rows_calibrate_what_is_served(crossed) -> None:  # type: ignore[no-untyped-def]
    model, _, y, _ = crossed
    parts = model.held_out_quantiles(SCORE_GRID)
    assert set(parts) == {"student", "nets"}
    levels = ConformalLevels.fit(
        scores_of(model.mixed(parts), np.log(y)), [None] * y.size, DEFAULT_LEVELS
    )
    X, fresh, _ = lengths_of_groups(1600, 1)
    said = np.exp(model.predict_log_quantiles(X, levels.pooled))
    inside = (fresh >= said[:, 1]) & (fresh <= said[:, 9])
    assert 0.74 < inside.mean() < 0.88
    # rows that the members have seen are known better than any fresh one can be
    seen = np.exp(model.predict_log_quantiles(crossed[1], np.array([0.5])))[:, 0]
    apart = np.exp(model.mixed(model.held_out_quantiles(np.array([0.5]))))[:, 0]
    assert np.abs(np.log(seen / y)).mean() < 0.9 * np.abs(np.log(apart / y)).mean()


def test_held_out_rows_can_be_picked_and_forgotten(crossed) -> None:  # type: ignore[no-untyped-def]
    model, *_ = crossed
    rows = np.array([5, 3, 900])
    whole = model.held_out_quantiles(SCORE_GRID)
    for name, picked in model.held_out_quantiles(SCORE_GRID, rows).items():
        np.testing.assert_array_equal(picked, whole[name][rows])
    other = LGBMBlendRegressor(n_estimators=3, epochs=1).fit(*crossed[1:3])
    other.forget_held_out()
    assert other.held_out_quantiles(SCORE_GRID) == {}


def test_few_rows_hold_none_out() -> None:
    X, y, _ = lengths_of_groups(80, 2)
    model = LGBMBlendRegressor(n_estimators=5, epochs=2).fit(X, y)
    assert model.fold_count(80) == 1
    assert model.held_out_quantiles(SCORE_GRID) == {}
    assert model.student_.members_ == 1


def test_members_are_stored_and_networks_may_be_dropped(crossed, tmp_path) -> None:  # type: ignore[no-untyped-def]
    model, X, _, _ = crossed
    model.save_files(tmp_path)
    again = LGBMBlendRegressor(**model.get_params())
    again.load_files(tmp_path)
    levels = np.array([0.1, 0.5, 0.9])
    want = model.predict_log_quantiles(X[:50], levels)
    np.testing.assert_array_equal(again.predict_log_quantiles(X[:50], levels), want)
    again.drop("nets")
    boosted = again.predict_log_quantiles(X[:50], levels)
    assert np.abs(boosted - want).max() > 1e-3
    (tmp_path / "small").mkdir()
    again.save_files(tmp_path / "small")
    smaller = LGBMBlendRegressor(**again.get_params())
    smaller.load_files(tmp_path / "small")
    np.testing.assert_array_equal(smaller.predict_log_quantiles(X[:50], levels), boosted)
