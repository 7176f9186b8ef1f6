"""The small networks: gradients, what they learn, folds, files."""

from pathlib import Path

import numpy as np
import pytest

from lengthwise.data.errors import InputError
from lengthwise.predictor.estimators.nets import (
    MLPHazardRegressor,
    _backward,
    _drawn_layers,
    _forward,
    _standardising,
)


def noisy_lengths(n: int = 1200, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    X = rng.normal(size=(n, 4))
    spread = np.where(X[:, 1] > 0, 0.1, 0.5)
    return X, np.exp(4.0 + X[:, 0] + spread * rng.normal(size=n))


def test_backward_is_the_gradient_of_forward() -> None:
    rng = np.random.default_rng(0)
    drawn = _drawn_layers(rng, 2, (5, 4, 3, 6))
    layers = [layer + 0.1 * rng.normal(size=layer.shape) for layer in drawn]  # no unit at its kink
    scores = rng.normal(size=(2, 6, 5))
    masks = [rng.integers(0, 2, (2, 6, width)) * 2.0 for width in (4, 3)]
    pull = rng.normal(size=(2, 6, 6))

    def loss() -> float:
        _, odds = _forward(layers, scores, masks)
        return float((odds * pull).sum())

    active, _ = _forward(layers, scores, masks)
    gradients = _backward(layers, scores, active, masks, pull)
    for layer, gradient in zip(layers, gradients, strict=True):
        flat = layer.reshape(-1)
        for at in range(0, flat.size, 3):
            before = flat[at]
            flat[at] = before + 1e-6
            above = loss()
            flat[at] = before - 1e-6
            below = loss()
            flat[at] = before
            slope = (above - below) / 2e-6
            assert gradient.reshape(-1)[at] == pytest.approx(slope, abs=1e-5)


def test_location_and_spread_are_both_learned() -> None:
    X, y = noisy_lengths()
    d = MLPHazardRegressor(epochs=60, random_state=1).fit(X, y).predict_distribution(X)
    assert np.corrcoef(np.log(d.median()), X[:, 0])[0, 1] > 0.95
    width = np.log(d.quantile(0.9) / d.quantile(0.1))
    assert np.median(width[X[:, 1] <= 0]) > 1.25 * np.median(width[X[:, 1] > 0])


def test_the_compiled_pass_is_the_networks() -> None:
    X, y = noisy_lengths(300)
    X[::7, 2] = np.nan
    fitted = MLPHazardRegressor(epochs=3, hidden=(8, 4), nets=2).fit(X, y)
    center, per_spread = _standardising(X)
    scores = np.clip(np.nan_to_num((X - center) * per_spread), -4.0, 4.0)
    w1 = fitted.w1_.reshape(4, 2, 8).transpose(1, 0, 2)
    b1 = fitted.b1_.reshape(2, 1, 8)
    layers = [w1, b1, fitted.w2_, fitted.b2_, fitted.w3_, fitted.b3_]
    ones = [np.ones(1), np.ones(1)]
    _, odds = _forward(layers, np.stack([scores, scores]), ones)
    each = fitted.scores_of_each(X)
    np.testing.assert_allclose(each, odds.transpose(1, 0, 2), rtol=1e-4, atol=1e-4)


def test_an_odd_row_is_not_carried_away() -> None:
    X, y = noisy_lengths(300)
    X = np.column_stack((X, np.full(300, 7.0)))  # a constant column says nothing
    fitted = MLPHazardRegressor(epochs=5).fit(X, y)
    odd = np.array([[1e30, -1e30, np.nan, 0.0, 1e9], [np.nan] * 5])
    d = fitted.predict_distribution(odd)
    assert np.isfinite(d.quantiles).all()
    assert d.quantiles.max() <= y.max() * (1.0 + 1e-9)


def test_a_row_is_predicted_by_the_network_that_left_it_out() -> None:
    X, y = noisy_lengths(240)
    fold = np.arange(240) % 3
    rng = np.random.default_rng(3)
    mixed_up = np.log(y)
    inside = np.flatnonzero(fold == 1)
    mixed_up[inside] = rng.permutation(mixed_up[inside])
    ones, none = np.ones(240), np.zeros(240, bool)
    held_out = [
        MLPHazardRegressor(epochs=4)
        .fit_members(X, log_y, ones, none, fold)
        .held_out_scores(X, fold)
        for log_y in (np.log(y), mixed_up)
    ]
    np.testing.assert_array_equal(held_out[0][inside], held_out[1][inside])
    others = fold != 1
    assert np.abs(held_out[0][others] - held_out[1][others]).max() > 1e-3


def test_round_trip_and_damaged_files(tmp_path: Path) -> None:
    X, y = noisy_lengths(200)
    fitted = MLPHazardRegressor(epochs=3).fit(X, y)
    fitted.save_files(tmp_path)
    other = MLPHazardRegressor(epochs=3)
    other.load_files(tmp_path)
    np.testing.assert_array_equal(other.scores(X), fitted.scores(X))
    whole = (tmp_path / "weights.npz").read_bytes()
    (tmp_path / "weights.npz").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(InputError, match=r"weights\.npz: cannot be read"):
        MLPHazardRegressor().load_files(tmp_path)


def test_the_same_seed_gives_the_same_networks() -> None:
    X, y = noisy_lengths(200)
    first, again = (MLPHazardRegressor(epochs=3, random_state=5).fit(X, y).scores(X) for _ in "ab")
    np.testing.assert_array_equal(first, again)
