"""The default: two boosters that see length differently, averaged in log-tokens.

The Student t (`predictor.lgbm`) finds location and spread from few rows and extrapolates; the
hazard (`predictor.lgbm_hazard`) learns any shape, such as answers that run to the cap. The mean
of their quantiles at each level is better than either and cannot cross.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from lengthwise.predictor.distribution import Floats
from lengthwise.predictor.estimators.base import LengthRegressor
from lengthwise.predictor.estimators.hazard import LGBMHazardRegressor
from lengthwise.predictor.estimators.student import LGBMLengthRegressor

_PARTS = ("student", "hazard")


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

    def __init__(
        self,
        n_estimators: int = 300,
        learning_rate: float = 0.05,
        num_leaves: int = 15,
        feature_fraction: float = 0.3,
        bins: int = 20,
        hazard_share: float = 0.5,
        random_state: int = 0,
        n_jobs: int = 1,
    ) -> None:
        self.n_estimators = n_estimators
        self.learning_rate = learning_rate
        self.num_leaves = num_leaves
        self.feature_fraction = feature_fraction
        self.bins = bins
        self.hazard_share = hazard_share
        self.random_state = random_state
        self.n_jobs = n_jobs

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
        """A directory for each part, and estimator.json."""
        for name in _PARTS:
            (directory / name).mkdir(exist_ok=True)
            getattr(self, f"{name}_").save_files(directory / name)
        (directory / "estimator.json").write_text(json.dumps({"n_features": self.n_features_in_}))

    def load_files(self, directory: Path) -> None:
        """Read them back; InputError where a file is missing or truncated."""
        self._make_parts()
        for name in _PARTS:
            getattr(self, f"{name}_").load_files(directory / name)
        numbers = json.loads((directory / "estimator.json").read_text())
        self.n_features_in_ = int(numbers["n_features"])
