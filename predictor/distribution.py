"""The distribution of an answer's length: what every estimator returns and the planner reads.

A row is a set of quantiles on a fixed grid of levels. Between two levels the logarithm of the
length is linear in the level; below the first level it falls to one token at level 0; above the
last level the survival is a Pareto tail (exponential in log-tokens) through the last two
quantiles, cut at `cap`:

    T(v) = q_k * v ** -s,   v = (1 - u) / (1 - l_k),
    s = log(q_k / q_{k-1}) / log((1 - l_{k-1}) / (1 - l_k))
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from lengthwise.data.errors import InputError

DEFAULT_LEVELS = (0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99)
CAP_FACTOR = 4.0  # without a known limit the tail ends at this multiple of the last quantile
OUTLIVED_SHARE = 0.5

Floats = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class LengthDistribution:
    """Lengths of n answers.

    Parameters
    ----------
    levels : (q,) array in (0, 1), increasing
    quantiles : (n, q) array, tokens, at least 1 and non-decreasing along a row
    cap : (n,) array, tokens, optional
        No answer is longer. Default: 4 times the last quantile.
    """

    levels: Floats
    quantiles: Floats
    cap: Floats | None = None

    def __post_init__(self) -> None:
        levels = np.asarray(self.levels, np.float64)
        quantiles = np.atleast_2d(np.asarray(self.quantiles, np.float64))
        if levels.ndim != 1 or levels.size < 2 or quantiles.shape[1:] != levels.shape:
            raise InputError(
                f"quantiles must be (n, {levels.size}) for {levels.size} levels, at least 2, "
                f"got {quantiles.shape}"
            )
        if not (levels[0] > 0 and levels[-1] < 1 and (np.diff(levels) > 0).all()):
            raise InputError(f"levels must increase inside (0, 1), got {levels.tolist()}")
        if not np.isfinite(quantiles).all() or (quantiles < 1).any():
            raise InputError("quantiles must be finite and at least one token")
        if (np.diff(quantiles, axis=1) < 0).any():
            raise InputError("quantiles must not decrease along a row")
        cap = CAP_FACTOR * quantiles[:, -1] if self.cap is None else np.asarray(self.cap, float)
        object.__setattr__(self, "levels", levels)
        object.__setattr__(self, "quantiles", quantiles)
        object.__setattr__(self, "cap", np.broadcast_to(np.maximum(cap, 1.0), quantiles.shape[:1]))

    @classmethod
    def from_rows(
        cls, levels: Sequence[float], rows: ArrayLike, cap: ArrayLike | None = None
    ) -> LengthDistribution:
        """The nearest valid distribution to raw rows: sorted, at least 1, at most `cap`."""
        quantiles = np.maximum(np.sort(np.atleast_2d(np.asarray(rows, np.float64)), axis=1), 1.0)
        if cap is not None:
            cap = np.maximum(np.broadcast_to(np.asarray(cap, np.float64), quantiles.shape[:1]), 1.0)
            quantiles = np.minimum(quantiles, cap[:, None])
        return cls(np.asarray(levels, np.float64), quantiles, cap)

    @classmethod
    def from_valid(cls, levels: Floats, quantiles: Floats, cap: Floats) -> LengthDistribution:
        """Without checks: the serving path, whose rows are valid by construction."""
        made = object.__new__(cls)
        object.__setattr__(made, "levels", levels)
        object.__setattr__(made, "quantiles", quantiles)
        object.__setattr__(made, "cap", cap)
        return made

    def __len__(self) -> int:
        return self.quantiles.shape[0]

    def __getitem__(self, rows: int | slice | NDArray[np.generic]) -> LengthDistribution:
        assert self.cap is not None
        picked = np.atleast_2d(self.quantiles[rows])
        return LengthDistribution(self.levels, picked, np.atleast_1d(self.cap[rows]))

    @property
    def _log_grid(self) -> tuple[Floats, Floats]:
        """Levels from 0, (q + 1,), and log-quantiles from log 1, (n, q + 1)."""
        levels = np.concatenate(([0.0], self.levels))
        logs = np.concatenate((np.zeros((len(self), 1)), np.log(self.quantiles)), axis=1)
        return levels, logs

    @property
    def _tail_slope(self) -> Floats:
        """The s of the Pareto tail, (n,)."""
        span = np.log((1.0 - self.levels[-2]) / (1.0 - self.levels[-1]))
        return np.log(self.quantiles[:, -1] / self.quantiles[:, -2]) / span

    def sample(self, uniforms: ArrayLike) -> Floats:
        """Tokens at the given levels in [0, 1): shape (n,) or (s, n), as given."""
        u = np.asarray(uniforms, np.float64)
        assert self.cap is not None
        levels, logs = self._log_grid
        rows = np.arange(len(self))
        left = np.clip(np.searchsorted(levels, u, side="right") - 1, 0, self.levels.size - 1)
        weight = (u - levels[left]) / (levels[left + 1] - levels[left])
        inside = logs[rows, left] + np.minimum(weight, 1.0) * (
            logs[rows, left + 1] - logs[rows, left]
        )
        v = np.clip((1.0 - u) / (1.0 - self.levels[-1]), 1e-300, 1.0)
        return np.minimum(np.exp(inside - self._tail_slope * np.log(v)), self.cap)

    def quantile(self, level: float) -> Floats:
        """Tokens at one level, (n,)."""
        return self.sample(np.full(len(self), float(level)))

    def median(self) -> Floats:
        """Tokens at level 0.5, (n,)."""
        return self.quantile(0.5)

    def cdf(self, tokens: ArrayLike) -> Floats:
        """P(length <= tokens), (n,); 0 below one token, 1 from the cap on."""
        assert self.cap is not None
        t = np.broadcast_to(np.asarray(tokens, np.float64), (len(self),))
        levels, logs = self._log_grid
        rows = np.arange(len(self))
        log_t = np.log(np.maximum(t, 1.0))
        left = (self.quantiles <= np.maximum(t, 1.0)[:, None]).sum(axis=1)
        in_tail = left == self.levels.size
        left = np.minimum(left, self.levels.size - 1)
        width = np.maximum(logs[rows, left + 1] - logs[rows, left], 1e-300)
        weight = np.minimum((log_t - logs[rows, left]) / width, 1.0)
        inside = levels[left] + weight * (levels[left + 1] - levels[left])
        slope = np.maximum(self._tail_slope, 1e-12)
        tail = 1.0 - (1.0 - self.levels[-1]) * np.exp(-np.maximum(log_t - logs[:, -1], 0.0) / slope)
        probability = np.where(in_tail, tail, inside)
        return np.where(t >= self.cap, 1.0, np.where(t < 1.0, 0.0, probability))

    def mean(self) -> Floats:
        """Expected tokens, (n,), exact for the interpolated distribution."""
        assert self.cap is not None
        levels, logs = self._log_grid
        heights = np.exp(logs)
        step = np.diff(logs, axis=1)
        flat = step < 1e-9
        # the integral of exp over a linear piece is the logarithmic mean of its ends
        pieces = np.where(flat, heights[:, 1:], np.diff(heights, axis=1) / np.where(flat, 1, step))
        body = pieces @ np.diff(levels)
        last, s = self.quantiles[:, -1], self._tail_slope
        cut = np.exp(-np.log(np.maximum(self.cap / last, 1.0)) / np.maximum(s, 1e-12))
        power = np.where(np.abs(s - 1.0) < 1e-9, 1.0 - 1e-9, s)
        tail = last * (1.0 - cut ** (1.0 - power)) / (1.0 - power) + self.cap * cut
        return body + (1.0 - self.levels[-1]) * np.where(s < 1e-12, last, tail)

    def remaining(self, generated: ArrayLike) -> LengthDistribution:
        """What is left once `generated` tokens, (n,), are out and the answer has not ended.

        Quantile l of the rest is Q(F(g) + l (1 - F(g))) - g, at least one token. An answer past
        everything its row allows has told that the row was wrong: OUTLIVED_SHARE of g is left.
        """
        assert self.cap is not None
        g = np.broadcast_to(np.maximum(np.asarray(generated, np.float64), 0.0), (len(self),))
        passed = self.cdf(g)
        passed = np.where(g < 1.0, 0.0, passed)
        u = passed[None, :] + self.levels[:, None] * (1.0 - passed)[None, :]
        rest = np.maximum(self.sample(u).T - g[:, None], 1.0)
        outlived = passed >= 1.0 - 1e-6
        rest[outlived] = np.maximum(OUTLIVED_SHARE * g[outlived], 1.0)[:, None]
        cap = np.where(outlived, CAP_FACTOR * rest[:, -1], np.maximum(self.cap - g, 1.0))
        return LengthDistribution(self.levels, np.maximum.accumulate(rest, axis=1), cap)
