"""One LightGBM booster that returns a whole distribution: a Student t on log-length.

Two trees a round, one for the location mu and one for the log-scale s, both by Newton steps
with the Fisher information as curvature. With t = log y and z = (t - mu) / exp(s):

    loss = s + (nu + 1) / 2 log(1 + z^2 / nu)          an answer that ended
    loss = -log P(Z > z)                               an answer cut off at y

so an answer cut at the cap is a lower bound, not a short answer. Quantiles cannot cross: they
are mu + exp(s) times the quantiles of the standard t, up to the longest answer seen.
"""

from __future__ import annotations

import json
from pathlib import Path

import lightgbm as lgb
import numpy as np
from numpy.typing import NDArray
from scipy.stats import t as student

from lengthwise.predictor.distribution import Floats
from lengthwise.predictor.estimators.base import LengthRegressor
from lengthwise.predictor.estimators.boosting import (
    booster_parameters,
    check_rows,
    gain_shares,
    load_booster,
)
from lengthwise.predictor.estimators.trees import FlatTrees

_LOG_SCALE_LIMITS = (-4.0, 2.0)


class LGBMLengthRegressor(LengthRegressor):
    """Location and scale of log-length in one booster.

    Parameters
    ----------
    n_estimators : int
        Boosting rounds, two trees each.
    learning_rate, num_leaves, min_child_samples, feature_fraction, bagging_fraction, reg_lambda
        As in LightGBM.
    extra_trees : bool
        Random instead of best thresholds.
    dof : float
        Degrees of freedom nu: smaller is less moved by outliers.
    random_state : int
    n_jobs : int
        Threads for training; prediction uses one.
    """

    def __init__(
        self,
        n_estimators: int = 400,
        learning_rate: float = 0.04,
        num_leaves: int = 15,
        min_child_samples: int = 20,
        feature_fraction: float = 0.3,
        bagging_fraction: float = 0.8,
        reg_lambda: float = 1.0,
        extra_trees: bool = False,
        dof: float = 8.0,
        random_state: int = 0,
        n_jobs: int = 1,
    ) -> None:
        self.n_estimators = n_estimators
        self.learning_rate = learning_rate
        self.num_leaves = num_leaves
        self.min_child_samples = min_child_samples
        self.feature_fraction = feature_fraction
        self.bagging_fraction = bagging_fraction
        self.reg_lambda = reg_lambda
        self.extra_trees = extra_trees
        self.dof = dof
        self.random_state = random_state
        self.n_jobs = n_jobs

    def _fit(self, X: Floats, log_y: Floats, weight: Floats, censored: NDArray[np.bool_]) -> None:
        check_rows(X)
        data = lgb.Dataset(X, log_y, params={"verbose": -1}, free_raw_data=True)
        self._train(data, X.shape, log_y, weight, censored)

    def fit_file(
        self, rows: lgb.Sequence, log_y: Floats, censored: NDArray[np.bool_]
    ) -> LGBMLengthRegressor:
        """Fit on rows that LightGBM reads piece by piece; log-lengths and marks are (n,)."""
        self.n_features_in_ = rows[0].shape[-1]
        data = lgb.Dataset(rows, log_y, params={"verbose": -1}, free_raw_data=True)
        shape = (len(rows), self.n_features_in_)
        self._train(data, shape, log_y, np.ones(log_y.size), censored)
        return self

    def _train(
        self,
        data: lgb.Dataset,
        shape: tuple[int, int],
        log_y: Floats,
        weight: Floats,
        censored: NDArray[np.bool_],
    ) -> None:
        n = log_y.size
        center = float(np.median(log_y))
        spread = 1.4826 * float(np.median(np.abs(log_y - center)))
        self.start_ = np.array([center, np.log(max(spread, 0.05))])
        start, dof = self.start_, float(self.dof)

        def objective(raw: Floats, _: lgb.Dataset) -> tuple[Floats, Floats]:
            mu, log_scale = (raw.reshape((n, 2), order="F") + start).T
            gradient, curvature = student_gradients(log_y, mu, log_scale, dof, censored)
            return gradient * weight[:, None], curvature * weight[:, None]

        parameters = booster_parameters(self, shape) | {
            "objective": objective,
            "num_class": 2,
            "extra_trees": self.extra_trees,
        }
        self._set_booster(lgb.train(parameters, data, self.n_estimators))
        # beyond the longest answer seen (or its double, if it was cut) the tail knows nothing
        self.ceiling_ = float((log_y + np.log(2.0) * censored).max())

    def _set_booster(self, booster: lgb.Booster) -> None:
        self.booster_ = booster
        self.trees_ = FlatTrees.from_model_text(booster.model_to_string(), outputs=2)

    def importances(self) -> Floats:
        """As in `LengthRegressor`."""
        return gain_shares(self.booster_)

    def predict_location_scale(self, X: NDArray[np.floating]) -> tuple[Floats, Floats]:
        """Location and scale of log-length, (n,) each."""
        mu, log_scale = (self.trees_.predict(X) + self.start_).T
        return mu, np.exp(np.clip(log_scale, *_LOG_SCALE_LIMITS))

    def predict_log_quantiles(self, X: NDArray[np.floating], levels: Floats) -> Floats:
        """mu + exp(s) t_nu(l)."""
        mu, scale = self.predict_location_scale(X)
        logs = mu[:, None] + scale[:, None] * student_quantiles(self.dof, levels)
        return np.minimum(logs, self.ceiling_)

    def save_files(self, directory: Path) -> None:
        """booster.txt and estimator.json."""
        self.booster_.save_model(str(directory / "booster.txt"))
        (directory / "estimator.json").write_text(
            json.dumps(
                {
                    "start": self.start_.tolist(),
                    "ceiling": self.ceiling_,
                    "n_features": self.n_features_in_,
                }
            )
        )

    def load_files(self, directory: Path) -> None:
        """Read them back; InputError where a file is missing or truncated."""
        self._set_booster(load_booster(directory / "booster.txt"))
        numbers = json.loads((directory / "estimator.json").read_text())
        self.start_, self.ceiling_ = np.array(numbers["start"]), float(numbers["ceiling"])
        self.n_features_in_ = int(numbers["n_features"])


_QUANTILES: dict[tuple[float, bytes], Floats] = {}


def student_quantiles(dof: float, levels: Floats) -> Floats:
    """Quantiles of the standard t, (q,), remembered: scipy takes 0.1 ms each time."""
    key = (float(dof), levels.tobytes())
    if key not in _QUANTILES:
        _QUANTILES[key] = student.ppf(levels, dof)
    return _QUANTILES[key]


def student_gradients(
    log_y: Floats, mu: Floats, log_scale: Floats, dof: float, censored: NDArray[np.bool_]
) -> tuple[Floats, Floats]:
    """First derivatives and Fisher curvature of the loss by (mu, s): (n, 2) each."""
    scale = np.exp(np.clip(log_scale, *_LOG_SCALE_LIMITS))
    z = (log_y - mu) / scale
    pull = (dof + 1.0) * z / (dof + z * z)
    gradient = np.column_stack((-pull / scale, 1.0 - pull * z))
    if censored.any():
        cut = z[censored]
        survival = np.maximum(student.sf(cut, dof), 1e-12)
        hazard = student.pdf(cut, dof) / survival
        gradient[censored] = np.column_stack((-hazard / scale[censored], -hazard * cut))
    curvature = np.column_stack(
        (
            (dof + 1.0) / (dof + 3.0) / scale**2,
            np.full(z.size, 2.0 * dof / (dof + 3.0)),
        )
    )
    return gradient, curvature
