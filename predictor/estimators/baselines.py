"""What a learned predictor must beat. All take two columns: class code and prompt tokens."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.stats import norm

from lengthwise.predictor.distribution import Floats
from lengthwise.predictor.estimators.regressor import LengthRegressor

CLASS_COLUMN, PROMPT_TOKENS_COLUMN = 0, 1
_FINE = np.linspace(0.001, 0.999, 999)


class TableRegressor(LengthRegressor):
    """A baseline that is a table: one row of log-quantiles for each key of a request."""

    learned = ("keys", "rows", "default")

    def _keys(self, X: NDArray[np.floating]) -> Floats:
        return np.zeros(len(X))

    def _quantiles(self, log_y: Floats, weight: Floats) -> Floats:
        return np.quantile(log_y, _FINE)

    def _fit(self, X: Floats, log_y: Floats, weight: Floats, censored: NDArray[np.bool_]) -> None:
        keys = self._keys(X)
        self.keys_ = np.unique(keys)
        rows = [log_y[keys == key] for key in self.keys_]
        weights = [weight[keys == key] for key in self.keys_]
        self.rows_ = np.stack(
            [self._quantiles(row, w) for row, w in zip(rows, weights, strict=True)]
        )
        self.default_ = self._quantiles(log_y, weight)

    def predict_log_quantiles(self, X: NDArray[np.floating], levels: Floats) -> Floats:
        """The row of the request's key; of all answers where the key is new."""
        keys = self._keys(X)
        at = np.minimum(np.searchsorted(self.keys_, keys), self.keys_.size - 1)
        rows = np.where((self.keys_[at] == keys)[:, None], self.rows_[at], self.default_)
        left = np.clip(np.searchsorted(_FINE, levels) - 1, 0, _FINE.size - 2)
        weight = np.clip((levels - _FINE[left]) / (_FINE[left + 1] - _FINE[left]), 0.0, 1.0)
        return rows[:, left] * (1.0 - weight) + rows[:, left + 1] * weight


class ConstantLength(TableRegressor):
    """One distribution for every request: that of all answers."""


class MaxTokensLength(TableRegressor):
    """Every answer is as long as the longest seen: what a server assumes that reserves the cap."""

    def _quantiles(self, log_y: Floats, weight: Floats) -> Floats:
        return np.full(_FINE.size, log_y.max())


class ClassQuantiles(TableRegressor):
    """The empirical distribution of the request's class."""

    def _keys(self, X: NDArray[np.floating]) -> Floats:
        return np.nan_to_num(np.asarray(X[:, CLASS_COLUMN], np.float64), nan=-1.0)


class ClassGaussian(ClassQuantiles):
    """One Gaussian a class, as in the paper (arXiv 2504.14966), clipped at one token."""

    def _quantiles(self, log_y: Floats, weight: Floats) -> Floats:
        tokens = np.exp(log_y)
        return np.log(np.maximum(norm.ppf(_FINE, tokens.mean(), max(tokens.std(), 1e-6)), 1.0))


class ClassMovingAverage(ClassQuantiles):
    """The distribution of the last `window` answers of the class, in the order given."""

    def __init__(self, window: int = 100) -> None:
        self.window = window

    def _quantiles(self, log_y: Floats, weight: Floats) -> Floats:
        recent = log_y[-self.window :]
        middle = np.log(np.exp(recent).mean())
        quantiles = np.quantile(recent, _FINE)
        return quantiles + (middle - np.interp(0.5, _FINE, quantiles))


class PromptLengthHistogram(TableRegressor):
    """The empirical distribution among prompts of about the same length: bins of log2 tokens."""

    def _keys(self, X: NDArray[np.floating]) -> Floats:
        column = min(PROMPT_TOKENS_COLUMN, X.shape[1] - 1)
        tokens = np.nan_to_num(np.asarray(X[:, column], np.float64), nan=1.0)
        return np.floor(np.log2(np.maximum(tokens, 1.0)))


class PromptLengthLine(LengthRegressor):
    """Log-length as a line in log(prompt tokens), with the residuals' distribution around it."""

    learned = ("slope", "intercept", "residuals")

    def _log_prompt(self, X: NDArray[np.floating]) -> Floats:
        column = min(PROMPT_TOKENS_COLUMN, X.shape[1] - 1)
        tokens = np.nan_to_num(np.asarray(X[:, column], np.float64), nan=1.0)
        return np.log(np.maximum(tokens, 1.0))

    def _fit(self, X: Floats, log_y: Floats, weight: Floats, censored: NDArray[np.bool_]) -> None:
        x = self._log_prompt(X)
        x_mean, y_mean = np.average(x, weights=weight), np.average(log_y, weights=weight)
        variance = np.average((x - x_mean) ** 2, weights=weight)
        covariance = np.average((x - x_mean) * (log_y - y_mean), weights=weight)
        self.slope_ = float(covariance / variance) if variance > 1e-12 else 0.0
        self.intercept_ = float(y_mean - self.slope_ * x_mean)
        self.residuals_ = np.quantile(log_y - self.intercept_ - self.slope_ * x, _FINE)

    def predict_log_quantiles(self, X: NDArray[np.floating], levels: Floats) -> Floats:
        """Line plus residual quantiles."""
        line = self.intercept_ + self.slope_ * self._log_prompt(X)
        return line[:, None] + np.interp(levels, _FINE, self.residuals_)


BASELINES: dict[str, type[LengthRegressor]] = {
    "constant": ConstantLength,
    "class_quantiles": ClassQuantiles,
    "class_gaussian": ClassGaussian,
    "class_moving_average": ClassMovingAverage,
    "prompt_length_histogram": PromptLengthHistogram,
    "prompt_length": PromptLengthLine,
    "max_tokens": MaxTokensLength,
}
