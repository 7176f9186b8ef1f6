"""Estimators that are a mean of members, each of which may leave a fold of the rows out."""

from __future__ import annotations

from abc import abstractmethod
from typing import Self

import numpy as np
from numpy.typing import NDArray

from lengthwise.predictor.distribution import Floats
from lengthwise.predictor.estimators.regressor import LengthRegressor


class FoldedRegressor(LengthRegressor):
    """What members agree on is a row of scores, whose mean says the distribution.

    Scores are numbers of the estimator's own, such as location and log-scale.
    """

    def fit_members(
        self,
        X: Floats,
        log_y: Floats,
        weight: Floats,
        censored: NDArray[np.bool_],
        fold: NDArray[np.intp] | None,
    ) -> Self:
        """Fit on validated rows: a member for each fold, (n,), that leaves it out."""
        self.n_features_in_ = X.shape[1]
        self._fit(X, log_y, weight, censored, fold)
        return self

    @abstractmethod
    def _fit(
        self,
        X: Floats,
        log_y: Floats,
        weight: Floats,
        censored: NDArray[np.bool_],
        fold: NDArray[np.intp] | None = None,
    ) -> None: ...

    @abstractmethod
    def scores(self, X: NDArray[np.floating]) -> Floats:
        """The mean scores of rows, (n, s)."""

    @abstractmethod
    def held_out_scores(self, X: NDArray[np.floating], fold: NDArray[np.intp]) -> Floats:
        """Scores of the training rows, (n, s), each by the member that left out its fold."""

    @abstractmethod
    def quantiles_of(self, scores: Floats, levels: Floats) -> Floats:
        """Log-tokens at the levels, (n, q), of rows of scores, (n, s)."""

    def predict_log_quantiles(self, X: NDArray[np.floating], levels: Floats) -> Floats:
        """As in `LengthRegressor`."""
        return self.quantiles_of(self.scores(X), levels)
