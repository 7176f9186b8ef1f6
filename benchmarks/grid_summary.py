"""Tables from the grid's result file."""

from __future__ import annotations

import numpy as np


def interval(values) -> tuple[float, float]:
    """Mean and half the 95 % interval (Student's t) of independent values; nan half for one."""
    from scipy.stats import t

    array = np.asarray(values, dtype=float)
    if len(array) < 2:
        return float(array.mean()), float("nan")
    half = t.ppf(0.975, len(array) - 1) * array.std(ddof=1) / np.sqrt(len(array))
    return float(array.mean()), float(half)


def bootstrap_ratio(
    upper: np.ndarray, lower: np.ndarray, rng: np.random.Generator, draws: int = 2000
) -> tuple[float, float, float]:
    """Sum of ``upper`` over sum of ``lower`` (n,), and its 95 % interval over resampled rows."""
    index = rng.integers(len(upper), size=(draws, len(upper)))
    below = lower[index].sum(axis=1)
    ratios = upper[index].sum(axis=1)[below > 0] / below[below > 0]
    if lower.sum() <= 0 or len(ratios) == 0:
        return float("nan"), float("nan"), float("nan")
    low, high = np.quantile(ratios, [0.025, 0.975])
    return float(upper.sum() / lower.sum()), float(low), float(high)
