"""The default: two boosters that see length differently, averaged in log-tokens.

The Student t (`student`) finds location and spread from few rows and extrapolates; the
hazard (`hazard`) learns any shape, such as answers that run to the cap. The mean
of their quantiles at each level is better than either and cannot cross.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from lengthwise.predictor.distribution import Floats
from lengthwise.predictor.estimators.hazard import LGBMHazardRegressor
from lengthwise.predictor.estimators.regressor import LengthRegressor
from lengthwise.predictor.estimators.student import LGBMLengthRegressor

_PARTS = ("student", "hazard")


@dataclass(eq=False, repr=False)
class LGBMBlendRegressor(LengthRegressor):
    """Mean of the log-quantiles of a Student-t and a hazard booster.

    Parameters
    ----------
    n_estimators : int
        Boosting rounds of each.
    learning_rate, num_leaves, feature_fraction
        As in LightGBM; `num_leaves` is that of the Student t, the hazard has twice as many.
    bins : int
        Of the hazard.
    hazard_share : float
        Weight of the hazard in the mean; `predictor.fitting.fit` chooses it on held-out rows.
    random_state : int
    n_jobs : int
        Threads for training; prediction uses one.
    """

    n_estimators: int = 300
    learning_rate: float = 0.05
    num_leaves: int = 15
    feature_fraction: float = 0.3
    bins: int = 20
    hazard_share: float = 0.5
    random_state: int = 0
    n_jobs: int = 1

    def _fit(self, X: Floats, log_y: Floats, weight: Floats, censored: NDArray[np.bool_]) -> None:
        self._make_parts()
        for part in (self.student_, self.hazard_):
            part.fit(X, np.exp(log_y), weight, censored)

    def _make_parts(self) -> None:
        common = {
            "n_estimators": self.n_estimators,
            "learning_rate": self.learning_rate,
            "random_state": self.random_state,
            "n_jobs": self.n_jobs,
        }
        self.student_ = LGBMLengthRegressor(
            num_leaves=self.num_leaves, feature_fraction=self.feature_fraction, **common
        )
        self.hazard_ = LGBMHazardRegressor(
            bins=self.bins,
            num_leaves=2 * self.num_leaves,
            feature_fraction=min(1.0, 1.7 * self.feature_fraction),
            **common,
        )

    def importances(self) -> Floats:
        """As in `LengthRegressor`: the mean of both."""
        return (self.student_.importances() + self.hazard_.importances()) / 2.0

    def predict_log_quantiles(self, X: NDArray[np.floating], levels: Floats) -> Floats:
        """Weighted mean of both, (n, q)."""
        share = self.hazard_share
        student = self.student_.predict_log_quantiles(X, levels)
        return (1.0 - share) * student + share * self.hazard_.predict_log_quantiles(X, levels)

    def save_files(self, directory: Path) -> None:
        """As in `LengthRegressor`, and a directory for each part."""
        super().save_files(directory)
        for name in _PARTS:
            (directory / name).mkdir(exist_ok=True)
            getattr(self, f"{name}_").save_files(directory / name)

    def load_files(self, directory: Path) -> None:
        """As in `LengthRegressor`."""
        super().load_files(directory)
        self._make_parts()
        for name in _PARTS:
            getattr(self, f"{name}_").load_files(directory / name)
