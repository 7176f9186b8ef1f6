"""Conformal levels: which level of the estimator's distribution to read for a wanted one.

The score of a calibration row is where the truth fell in its predicted distribution (its
probability integral transform). If the estimator were right, scores would be uniform; where
they are not, the wanted level l is read off at the l-quantile of the scores instead:

    score    = F(y | x)
    inverse  = F^-1(a_l | x),     a_l = the l-quantile of the scores, with split conformal's n + 1

so P(y <= answer at l) = l whatever the estimator does, and no quantile can leave the
estimator's support, as an added offset could. Levels are learned per class and drawn towards
the pooled ones, as if those had been seen in `shrinkage` rows. They are plain numbers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from lengthwise.data.arrays import njit
from lengthwise.data.errors import InputError
from lengthwise.predictor.distribution import Floats

_TAILS = np.array([0.001, 0.002, 0.005])
SCORE_GRID = np.concatenate((_TAILS, np.arange(1, 100) / 100, 1.0 - _TAILS[::-1]))
_LIMITS = (0.0005, 0.9995)


@dataclass(frozen=True)
class ConformalLevels:
    """The levels to ask the estimator for, (q,) each: pooled, and by class."""

    levels: tuple[float, ...]
    pooled: Floats
    by_class: dict[str, Floats] = field(default_factory=dict)

    @classmethod
    def none(cls, levels: Sequence[float]) -> ConformalLevels:
        """Trust the estimator: ask for what is wanted."""
        return cls(tuple(levels), np.array(levels, np.float64))

    @classmethod
    def fit(
        cls,
        scores: Floats,
        classes: Sequence[str | None],
        levels: Sequence[float],
        shrinkage: float = 40.0,
    ) -> ConformalLevels:
        """Learn from the scores of calibration rows, (n,), and their classes."""
        pooled = _level_quantiles(scores, levels)
        labels = np.array([name or "" for name in classes])
        by_class = {}
        for name in sorted(set(labels.tolist()) - {""}):
            rows = scores[labels == name]
            own = rows.size / (rows.size + shrinkage)
            by_class[name] = own * _level_quantiles(rows, levels) + (1.0 - own) * pooled
        return cls(tuple(levels), pooled, by_class)

    def of(self, slo_class: str | None) -> Floats:
        """Levels for a class, (q,); the pooled ones if it is unknown."""
        return self.by_class.get(slo_class or "", self.pooled)

    def to_json(self) -> dict[str, Any]:
        """Plain lists."""
        return {
            "levels": list(self.levels),
            "pooled": self.pooled.tolist(),
            "by_class": {name: row.tolist() for name, row in self.by_class.items()},
        }

    @classmethod
    def from_json(cls, numbers: dict[str, Any]) -> ConformalLevels:
        """Inverse of `to_json`; InputError where a key is missing."""
        try:
            by_class = {name: np.array(row) for name, row in numbers["by_class"].items()}
            return cls(tuple(numbers["levels"]), np.array(numbers["pooled"]), by_class)
        except KeyError as error:
            raise InputError(f"the calibration has no key {error}") from error


def scores_of(log_quantiles: Floats, log_y: Floats) -> Floats:
    """Where each truth falls in its predicted distribution: (n, SCORE_GRID), (n,) -> (n,)."""
    return scores_from(log_quantiles, log_y, SCORE_GRID)


def scores_from(log_quantiles: Floats, log_y: Floats, grid: Floats) -> Floats:
    """The same from log-quantiles on any grid, (n, g); beyond its ends a truth scores the limit."""
    out = np.empty(len(log_y))
    rows = np.require(log_quantiles, np.float64, ["C"])
    _fall(rows, np.asarray(log_y, np.float64), np.asarray(grid, np.float64), *_LIMITS, out)
    return out


@njit(nogil=True)
def _fall(
    rows: np.ndarray, truths: np.ndarray, grid: np.ndarray, low: float, high: float, out: np.ndarray
) -> None:
    """`np.interp(truth, row, grid, left=low, right=high)` of every row, (n,)."""
    last = grid.size - 1
    for i in range(truths.size):
        row, truth = rows[i], truths[i]
        if truth < row[0]:
            out[i] = low
        elif truth > row[last]:
            out[i] = high
        else:
            at = np.searchsorted(row, truth, side="right") - 1
            out[i] = grid[at]
            if at < last and row[at] != truth:
                slope = (grid[at + 1] - grid[at]) / (row[at + 1] - row[at])
                out[i] = slope * (truth - row[at]) + grid[at]


def read_levels(log_quantiles: Floats, levels: Floats) -> Floats:
    """Log-quantiles on SCORE_GRID, (n, g), at other levels, (q,): (n, q)."""
    left = np.clip(np.searchsorted(SCORE_GRID, levels, side="right") - 1, 0, SCORE_GRID.size - 2)
    width = SCORE_GRID[left + 1] - SCORE_GRID[left]
    weight = np.clip((levels - SCORE_GRID[left]) / width, 0.0, 1.0)
    return log_quantiles[:, left] * (1.0 - weight) + log_quantiles[:, left + 1] * weight


def _level_quantiles(scores: Floats, levels: Sequence[float]) -> Floats:
    n = scores.size
    at = np.clip((n + 1) * np.asarray(levels) / n - 0.5 / n, 0.0, 1.0)
    return np.clip(np.quantile(scores, at), *_LIMITS)
