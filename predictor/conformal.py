"""Calibration: shift each predicted quantile so that it holds the share of answers it names.

For level l the score of a calibration row is how far the truth lies above the predicted
quantile, in units of the row's own spread (conformalised quantile regression on log-length):

    score_l   = (log y - log q_l) / w,     w = log q_.9 - log q_.1
    inverse   = log q_l + offset_l w,      offset_l = the l-quantile of the scores

Offsets are learned per class and drawn towards the pooled ones, as if these had been seen in
`shrinkage` rows. They are plain numbers: serving needs no library.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from predictor.distribution import Floats

SPREAD_LEVELS = (0.1, 0.9)
_MIN_SPREAD = 0.05


@dataclass(frozen=True)
class ConformalOffsets:
    """Offsets on the levels, pooled and by class; all zero is no calibration."""

    levels: tuple[float, ...]
    pooled: Floats
    by_class: dict[str, Floats] = field(default_factory=dict)

    @classmethod
    def none(cls, levels: Sequence[float]) -> ConformalOffsets:
        """No correction."""
        return cls(tuple(levels), np.zeros(len(levels)))

    @classmethod
    def fit(
        cls,
        log_quantiles: Floats,
        log_y: Floats,
        classes: Sequence[str | None],
        levels: Sequence[float],
        shrinkage: float = 40.0,
    ) -> ConformalOffsets:
        """Learn offsets from predicted log-quantiles (n, q) and true log-lengths (n,)."""
        scores = (log_y[:, None] - log_quantiles) / _spread(log_quantiles, levels)[:, None]
        pooled = _level_quantiles(scores, levels)
        labels = np.array([name if name is not None else "" for name in classes])
        by_class = {}
        for name in sorted(set(labels) - {""}):
            rows = scores[labels == name]
            own = len(rows) / (len(rows) + shrinkage)
            by_class[str(name)] = own * _level_quantiles(rows, levels) + (1.0 - own) * pooled
        return cls(tuple(levels), pooled, by_class)

    def apply(self, log_quantiles: Floats, classes: Sequence[str | None]) -> Floats:
        """Corrected log-quantiles, (n, q), made non-decreasing."""
        offsets = np.stack([self.by_class.get(name or "", self.pooled) for name in classes])
        shifted = log_quantiles + offsets * _spread(log_quantiles, self.levels)[:, None]
        return np.maximum.accumulate(shifted, axis=1)

    def to_json(self) -> dict[str, object]:
        """Plain lists."""
        return {
            "levels": list(self.levels),
            "pooled": self.pooled.tolist(),
            "by_class": {name: row.tolist() for name, row in self.by_class.items()},
        }

    @classmethod
    def from_json(cls, numbers: dict) -> ConformalOffsets:  # type: ignore[type-arg]
        """Inverse of `to_json`."""
        by_class = {name: np.array(row) for name, row in numbers["by_class"].items()}
        return cls(tuple(numbers["levels"]), np.array(numbers["pooled"]), by_class)


def _spread(log_quantiles: Floats, levels: Sequence[float]) -> Floats:
    grid = list(levels)
    low, high = (min(range(len(grid)), key=lambda i: abs(grid[i] - at)) for at in SPREAD_LEVELS)
    return np.maximum(log_quantiles[:, high] - log_quantiles[:, low], _MIN_SPREAD)


def _level_quantiles(scores: Floats, levels: Sequence[float]) -> Floats:
    """The l-quantile of column l, with the (n + 1) of split conformal prediction."""
    n = len(scores)
    return np.array(
        [
            np.quantile(scores[:, i], np.clip((n + 1) * level / n - 0.5 / n, 0.0, 1.0))
            for i, level in enumerate(levels)
        ]
    )
