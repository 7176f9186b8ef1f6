"""How good a length prediction is: point, order, and distribution. Lengths are in tokens."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike
from scipy.stats import kendalltau

from lengthwise.data.lengths import READING
from lengthwise.predictor.distribution import Floats, LengthDistribution

CRPS_LEVELS = np.arange(0.005, 1.0, 0.01)


def mae(y: ArrayLike, predicted: ArrayLike) -> float:
    """Mean absolute error."""
    return float(np.abs(np.asarray(y, float) - np.asarray(predicted, float)).mean())


def within_25(y: ArrayLike, predicted: ArrayLike) -> float:
    """Share of rows predicted within 25 % of the truth."""
    y = np.asarray(y, float)
    return float((np.abs(np.asarray(predicted, float) - y) <= 0.25 * y).mean())


def kendall_tau(y: ArrayLike, predicted: ArrayLike) -> float:
    """Kendall's tau-b; 0 where the prediction is constant."""
    tau = kendalltau(np.asarray(y, float), np.asarray(predicted, float)).statistic
    return float(tau) if np.isfinite(tau) else 0.0


def task_taus(
    y: ArrayLike, predicted: ArrayLike, groups: Sequence[str], min_rows: int = 40
) -> dict[str, float]:
    """Kendall's tau-b inside each group of at least `min_rows` rows.

    Whether the prompt was read, not only the task recognised.
    """
    y, predicted = np.asarray(y, float), np.asarray(predicted, float)
    names, codes = np.unique(np.asarray(groups, dtype=str), return_inverse=True)
    members = {str(name): np.flatnonzero(codes == code) for code, name in enumerate(names)}
    return {
        name: kendall_tau(y[rows], predicted[rows])
        for name, rows in members.items()
        if rows.size >= min_rows
    }


def mean_tau(taus: Mapping[str, float]) -> float | None:
    """The mean over groups; None where no group was large enough."""
    return float(np.mean(list(taus.values()))) if taus else None


def task_names(table: pd.DataFrame) -> list[str]:
    """What each row's task is called, with its source, ``(n,)``."""
    return (table["source"].astype(str) + ":" + table["task"].astype(str)).tolist()


def pinball(y: ArrayLike, distribution: LengthDistribution) -> float:
    """Mean pinball loss over the distribution's levels: (l - 1[y < q]) (y - q)."""
    gap = np.asarray(y, float)[:, None] - distribution.quantiles
    return float(np.maximum(distribution.levels * gap, (distribution.levels - 1.0) * gap).mean())


def crps(y: ArrayLike, distribution: LengthDistribution) -> float:
    """Continuous ranked probability score: twice the pinball loss integrated over all levels."""
    y = np.asarray(y, float)
    total = 0.0
    for level in CRPS_LEVELS:
        gap = y - distribution.quantile(level)
        total += float(np.maximum(level * gap, (level - 1.0) * gap).mean())
    return 2.0 * total / CRPS_LEVELS.size


def coverage(y: ArrayLike, low: ArrayLike, high: ArrayLike) -> float:
    """Share of rows inside [low, high], each end to a ten-thousandth of itself."""
    y, least, most = np.asarray(y, float), np.asarray(low, float), np.asarray(high, float)
    return float(((y >= least * (1 - READING)) & (y <= most * (1 + READING))).mean())


def width(low: ArrayLike, high: ArrayLike) -> float:
    """Mean width of an interval."""
    return float((np.asarray(high, float) - np.asarray(low, float)).mean())


def interval(distribution: LengthDistribution, share: float = 0.8) -> tuple[Floats, Floats]:
    """The central interval that should hold `share` of the answers: low (n,), high (n,)."""
    edge = (1.0 - share) / 2.0
    return distribution.quantile(edge), distribution.quantile(1.0 - edge)


def interval_due(distribution: LengthDistribution, share: float = 0.8) -> Floats:
    """What `interval` should hold, (n,): `share`, and more where it ends at the distribution's cap.

    All that would go beyond the cap was cut there, so the end holds that too.
    """
    low, high = interval(distribution, share)
    return distribution.cdf(high * (1 + READING)) - distribution.cdf(low * (1 - READING))
