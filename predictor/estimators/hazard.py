"""One LightGBM booster over log-spaced length bins: the chance to end in a bin once it is reached.

A training row becomes one row for every bin its answer reached, with the bin as one more
column and "ended here" as label (a discrete-time survival model). Survival is the running
product of 1 - hazard, so quantiles cannot cross, and a cut answer simply contributes no end.
"""

from __future__ import annotations

import json
from pathlib import Path

import lightgbm as lgb
import numpy as np
from numpy.typing import NDArray

from lengthwise.predictor.distribution import Floats
from lengthwise.predictor.estimators.base import LengthRegressor
from lengthwise.predictor.estimators.boosting import (
    booster_parameters,
    check_rows,
    gain_shares,
    load_booster,
)
from lengthwise.predictor.estimators.trees import FlatTrees

_TAIL_SHARES = (0.005, 0.01, 0.97, 0.98, 0.985, 0.99, 0.995, 0.998)


class LGBMHazardRegressor(LengthRegressor):
    """Hazard over `bins` bins with edges at quantiles of the training lengths, finer in the tails.

    Inside a bin log-length is taken as uniform. Other parameters as in `LGBMLengthRegressor`.
    """

    def __init__(
        self,
        bins: int = 20,
        n_estimators: int = 250,
        learning_rate: float = 0.05,
        num_leaves: int = 31,
        min_child_samples: int = 40,
        feature_fraction: float = 0.5,
        bagging_fraction: float = 0.8,
        reg_lambda: float = 1.0,
        random_state: int = 0,
        n_jobs: int = 1,
    ) -> None:
        self.bins = bins
        self.n_estimators = n_estimators
        self.learning_rate = learning_rate
        self.num_leaves = num_leaves
        self.min_child_samples = min_child_samples
        self.feature_fraction = feature_fraction
        self.bagging_fraction = bagging_fraction
        self.reg_lambda = reg_lambda
        self.random_state = random_state
        self.n_jobs = n_jobs

    def _fit(self, X: Floats, log_y: Floats, weight: Floats, censored: NDArray[np.bool_]) -> None:
        check_rows(X)
        shares = np.union1d(np.linspace(0.0, 1.0, self.bins + 1), _TAIL_SHARES)
        edges = np.unique(np.quantile(log_y, shares))
        self.edges_ = edges if edges.size > 1 else np.array([edges[0] - 1e-3, edges[0] + 1e-3])
        last = np.clip(
            np.searchsorted(self.edges_, log_y, side="left") - 1, 0, len(self.edges_) - 2
        )
        reached = last + 1 - censored  # a cut answer did not live to the end of its last bin
        rows = np.repeat(np.arange(log_y.size), reached)
        bins = np.concatenate([np.arange(count) for count in reached]) if rows.size else rows
        ended = (bins == last[rows]) & ~censored[rows]
        design = np.column_stack((X[rows], bins)).astype(np.float32)
        parameters = booster_parameters(self, design.shape) | {"objective": "binary"}
        data = lgb.Dataset(design, ended, weight=weight[rows], params=parameters)
        self._set(lgb.train(parameters, data, self.n_estimators).model_to_string())

    def _set(self, text: str) -> None:
        self.text_ = text
        self.trees_ = FlatTrees.from_model_text(text, outputs=1)

    def importances(self) -> Floats:
        """As in `LengthRegressor`; the column that counts the bins is left out."""
        gain = gain_shares(lgb.Booster(model_str=self.text_))[:-1]
        return gain / max(gain.sum(), 1e-12)

    def predict_log_quantiles(self, X: NDArray[np.floating], levels: Floats) -> Floats:
        """Inverse of the piecewise log-linear distribution."""
        count = self.edges_.size - 1
        hazard = 1.0 / (1.0 + np.exp(-self.trees_.predict_over_last(X, count)))
        hazard[:, -1] = 1.0
        passed = 1.0 - np.cumprod(1.0 - hazard, axis=1)
        grid = np.concatenate((np.zeros((len(X), 1)), passed), axis=1)
        return np.stack([np.interp(levels, row, self.edges_) for row in grid])

    def save_files(self, directory: Path) -> None:
        """booster.txt and estimator.json."""
        (directory / "booster.txt").write_text(self.text_)
        numbers = {"edges": self.edges_.tolist(), "n_features": self.n_features_in_}
        (directory / "estimator.json").write_text(json.dumps(numbers))

    def load_files(self, directory: Path) -> None:
        """Read them back; InputError where a file is missing or truncated."""
        self._set(load_booster(directory / "booster.txt").model_to_string())
        numbers = json.loads((directory / "estimator.json").read_text())
        self.edges_ = np.array(numbers["edges"])
        self.n_features_in_ = int(numbers["n_features"])
