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

import lightgbm as lgb
import numpy as np
from numpy.typing import NDArray
from scipy.stats import t as student

from lengthwise.data.arrays import njit
from lengthwise.predictor.distribution import Floats
from lengthwise.predictor.estimators.boosting import BoosterRegressor, check_rows

_LOG_SCALE_LIMITS = (-4.0, 2.0)


@dataclass(eq=False, repr=False)
class LGBMLengthRegressor(BoosterRegressor):
    """Location and scale of log-length in one booster: two trees a round.

    Parameters
    ----------
    extra_trees : bool
        Random instead of best thresholds.
    dof : float
        Degrees of freedom nu: smaller is less moved by outliers.

    The others as in `BoosterRegressor`.
    """

    learned = ("start", "ceiling")
    outputs = 2

    n_estimators: int = 400
    learning_rate: float = 0.04
    extra_trees: bool = False
    dof: float = 8.0

    def _fit(self, X: Floats, log_y: Floats, weight: Floats, censored: NDArray[np.bool_]) -> None:
        check_rows(X)
        data = lgb.Dataset(X, log_y, params={"verbose": -1}, free_raw_data=True)
        self._boost(data, X.shape, log_y, weight, censored)

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

        self._train(
            data,
            shape,
            {"objective": objective, "num_class": self.outputs, "extra_trees": self.extra_trees},
        )
        # beyond the longest answer seen (or its double, if it was cut) the tail knows nothing
        self.ceiling_ = float((log_y + np.log(2.0) * censored).max())

    def predict_location_scale(self, X: NDArray[np.floating]) -> tuple[Floats, Floats]:
        """Location and scale of log-length, (n,) each."""
        raw = self.trees_.predict(X) + self.start_
        mu, log_scale = raw[:, 0], raw[:, 1]
        low, high = _LOG_SCALE_LIMITS  # not np.clip, which takes as long as the trees do
        return mu, np.exp(np.minimum(np.maximum(log_scale, low), high))

    def predict_log_quantiles(self, X: NDArray[np.floating], levels: Floats) -> Floats:
        """mu + exp(s) t_nu(l)."""
        mu, scale = self.predict_location_scale(X)
        out = np.empty((len(mu), len(levels)))
        _spread(mu, scale, student_quantiles(self.dof, levels), float(self.ceiling_), out)
        return out


@njit(nogil=True)
def _spread(
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
