"""One LightGBM booster that returns a whole distribution: a Student t on log-length.

Two trees a round, one for the location mu and one for the log-scale s, both by Newton steps
with the Fisher information as curvature. With t = log y and z = (t - mu) / exp(s):

    loss = s + (nu + 1) / 2 log(1 + z^2 / nu)          an answer that ended
    loss = -log P(Z > z)                               an answer cut off at y

so an answer cut at the cap is a lower bound, not a short answer. Quantiles cannot cross: they
are mu + exp(s) times the quantiles of the standard t, up to the longest answer seen.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import lightgbm as lgb
import numpy as np
from numpy.typing import NDArray
from scipy.stats import t as student

from lengthwise.data.arrays import njit
from lengthwise.predictor.distribution import Floats
from lengthwise.predictor.estimators.boosting import BoosterRegressor, Rows, check_rows
from lengthwise.predictor.estimators.folded import FoldedRegressor

LOG_SCALE_LIMITS = (-4.0, 2.0)


@dataclass(eq=False, repr=False)
class LGBMLengthRegressor(FoldedRegressor, BoosterRegressor):
    """Location and scale of log-length in one booster: two trees a round.

    Parameters
    ----------
    extra_trees : bool
        Random instead of best thresholds.
    dof : float
        Degrees of freedom nu: smaller is less moved by outliers.

    The others as in `BoosterRegressor`.
    """

    learned = ("start", "ceiling", "members")
    outputs = 2

    n_estimators: int = 400
    learning_rate: float = 0.04
    extra_trees: bool = False
    dof: float = 8.0

    def _fit(
        self,
        X: Floats,
        log_y: Floats,
        weight: Floats,
        censored: NDArray[np.bool_],
        fold: NDArray[np.intp] | None = None,
    ) -> None:
        check_rows(X)
        data = lgb.Dataset(X, log_y, params={"verbose": -1}, free_raw_data=True)
        self._boost(data, X.shape, log_y, weight, censored, fold)

    def fit_file(
        self, rows: lgb.Sequence, log_y: Floats, censored: NDArray[np.bool_]
    ) -> LGBMLengthRegressor:
        """Fit on rows that LightGBM reads piece by piece; log-lengths and marks are (n,)."""
        self.n_features_in_ = rows[0].shape[-1]
        data = lgb.Dataset(rows, log_y, params={"verbose": -1}, free_raw_data=True)
        shape = (len(rows), self.n_features_in_)
        self._boost(data, shape, log_y, np.ones(log_y.size), censored)
        return self

    def _boost(
        self,
        data: lgb.Dataset,
        shape: tuple[int, int],
        log_y: Floats,
        weight: Floats,
        censored: NDArray[np.bool_],
        fold: NDArray[np.intp] | None = None,
    ) -> None:
        self.start_, self.ceiling_ = start_and_ceiling(log_y, censored)
        start, dof = self.start_, float(self.dof)

        def objective(rows: Rows) -> dict[str, Any]:
            y, cut, pull = log_y[rows], censored[rows], weight[rows][:, None]

            def lower(raw: Floats, _: lgb.Dataset) -> tuple[Floats, Floats]:
                mu, log_scale = (raw.reshape((y.size, 2), order="F") + start).T
                gradient, curvature = student_gradients(y, mu, log_scale, dof, cut)
                return gradient * pull, curvature * pull

            return {
                "objective": lower,
                "num_class": self.outputs,
                "extra_trees": self.extra_trees,
            }

        self._train(data, shape, objective, fold)

    def predict_location_scale(self, X: NDArray[np.floating]) -> tuple[Floats, Floats]:
        """Location and scale of log-length, (n,) each."""
        return location_scale(self.scores(X))

    def scores(self, X: NDArray[np.floating]) -> Floats:
        """Location and log-scale of log-length, (n, 2)."""
        return self.trees_.predict(X) + self.start_

    def held_out_scores(self, X: NDArray[np.floating], fold: NDArray[np.intp]) -> Floats:
        """`scores` of training rows, (n, 2), each by the member that left out its fold."""
        out = np.empty((len(X), 2))
        for k, trees in enumerate(self._member_trees()):
            out[fold == k] = trees.predict(X[fold == k]) + self.start_
        return out

    def quantiles_of(self, scores: Floats, levels: Floats) -> Floats:
        """Log-tokens at the levels, (n, q), of such scores: mu + exp(s) t_nu(l)."""
        return student_log_quantiles(scores, self.dof, levels, self.ceiling_)


def start_and_ceiling(log_y: Floats, censored: NDArray[np.bool_]) -> tuple[Floats, float]:
    """Median and log-spread of log-lengths, (2,), and the longest a length may be.

    Beyond the longest answer seen (or its double, if it was cut) the tail knows nothing.
    """
    center = float(np.median(log_y))
    spread = 1.4826 * float(np.median(np.abs(log_y - center)))
    ceiling = float((log_y + np.log(2.0) * censored).max())
    return np.array([center, np.log(max(spread, 0.05))]), ceiling


def location_scale(scores: Floats) -> tuple[Floats, Floats]:
    """Location and scale, (n,) each, of location and log-scale, (n, 2)."""
    low, high = LOG_SCALE_LIMITS  # not np.clip, which takes as long as the trees do
    return scores[:, 0], np.exp(np.minimum(np.maximum(scores[:, 1], low), high))


def student_log_quantiles(scores: Floats, dof: float, levels: Floats, ceiling: float) -> Floats:
    """Location and log-scale, (n, 2), to log-tokens at the levels, (n, q), at most the ceiling."""
    mu, scale = location_scale(scores)
    out = np.empty((len(mu), len(levels)))
    spread(mu, scale, student_quantiles(dof, levels), float(ceiling), out)
    return out


@njit(nogil=True)
def spread(
    mu: np.ndarray, scale: np.ndarray, standard: np.ndarray, ceiling: float, out: np.ndarray
) -> None:
    """mu + scale times the standard quantiles, (n, q), at most the ceiling."""
    for row in range(out.shape[0]):
        for q in range(out.shape[1]):
            out[row, q] = min(mu[row] + scale[row] * standard[q], ceiling)


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
    scale = np.exp(np.clip(log_scale, *LOG_SCALE_LIMITS))
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
