"""What a quantile row says, by interpolation and by sums: the twin of ``data/lengths.py``."""

from __future__ import annotations

import numpy as np

PIECES = 200_000


def tail_slope(levels: np.ndarray, row: np.ndarray) -> float:
    """The s of the Pareto tail."""
    return float(np.log(row[-1] / row[-2]) / np.log((1.0 - levels[-2]) / (1.0 - levels[-1])))


def quantile(levels: np.ndarray, row: np.ndarray, p: np.ndarray, cap: float) -> np.ndarray:
    """Tokens at levels ``p`` in [0, 1)."""
    inside = np.interp(p, [0.0, *levels], [0.0, *np.log(row)])
    v = np.clip((1.0 - p) / (1.0 - levels[-1]), 1e-300, 1.0)
    return np.minimum(np.exp(inside - tail_slope(levels, row) * np.log(v)), cap)


def cdf(levels: np.ndarray, row: np.ndarray, tokens: float, cap: float) -> float:
    """P(length <= tokens): the last level whose quantile is no longer, by bisection."""
    if tokens >= cap:
        return 1.0
    low, high = 0.0, 1.0
    for _ in range(80):
        middle = (low + high) / 2
        if quantile(levels, row, np.array([middle]), cap)[0] <= tokens:
            low = middle
        else:
            high = middle
    return low


def mean_left(levels: np.ndarray, row: np.ndarray, generated: float, cap: float) -> float:
    """E[length - generated | length > generated] as the mean of many quantiles."""
    past = cdf(levels, row, generated, cap) if generated > 0 else 0.0
    # steps that get finer towards level 1, where the quantiles run away
    edges = 1.0 - (1.0 - past) * np.linspace(1.0, 0.0, PIECES + 1) ** 3
    middles = (edges[1:] + edges[:-1]) / 2
    lengths = quantile(levels, row, middles, cap) - generated
    return float((lengths * np.diff(edges)).sum() / (1.0 - past))
