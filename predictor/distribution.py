"""Distributions of answer lengths: what every estimator returns, and the bench and the judge read.

A checked frame over `lengthwise.data.lengths`, which says how a row of quantiles is read.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from lengthwise.data import lengths
from lengthwise.data.arrays import FloatArray
from lengthwise.data.errors import InputError

DEFAULT_LEVELS = (0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99)

Floats = FloatArray


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
        levels = np.ascontiguousarray(self.levels, np.float64)
        quantiles = np.atleast_2d(np.ascontiguousarray(self.quantiles, np.float64))
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
        cap = lengths.TAIL_CAP * quantiles[:, -1]
        if self.cap is not None:
            cap = np.broadcast_to(np.maximum(np.asarray(self.cap, float), 1.0), cap.shape)
            quantiles = np.minimum(quantiles, cap[:, None])
        object.__setattr__(self, "levels", levels)
        object.__setattr__(self, "quantiles", quantiles)
        object.__setattr__(self, "cap", cap)

    @classmethod
    def from_rows(
        cls, levels: Sequence[float], rows: ArrayLike, cap: ArrayLike | None = None
    ) -> LengthDistribution:
        """The nearest valid distribution to raw rows: sorted, at least 1, at most `cap`."""
        quantiles = np.maximum(np.sort(np.atleast_2d(np.asarray(rows, np.float64)), axis=1), 1.0)
        if cap is not None:
            cap = np.broadcast_to(np.asarray(cap, np.float64), quantiles.shape[:1])
        return cls(np.asarray(levels, np.float64), quantiles, cap)

    @classmethod
    def from_valid(
        cls, levels: Floats, quantiles: Floats, cap: Floats | None = None
    ) -> LengthDistribution:
        """Without checks: the serving path, whose rows are valid by construction."""
        made = object.__new__(cls)
        object.__setattr__(made, "levels", levels)
        object.__setattr__(made, "quantiles", quantiles)
        object.__setattr__(made, "cap", lengths.TAIL_CAP * quantiles[:, -1] if cap is None else cap)
        return made

    def __len__(self) -> int:
        return self.quantiles.shape[0]

    def __getitem__(self, rows: int | slice | NDArray[np.generic]) -> LengthDistribution:
        assert self.cap is not None
        picked = np.atleast_2d(self.quantiles[rows])
        return LengthDistribution(self.levels, picked, np.atleast_1d(self.cap[rows]))

    @property
    def _frame(self) -> tuple[Floats, Floats, Floats]:
        """Levels, rows and caps as the compiled functions take them."""
        # one kind of array is one compilation
        levels, quantiles, cap = (
            np.require(a, np.float64, ["C", "W"]) for a in (self.levels, self.quantiles, self.cap)
        )
        return levels, quantiles, cap

    def sample(self, uniforms: ArrayLike) -> Floats:
        """Tokens at the given levels in [0, 1): shape (n,) or (s, n), as given."""
        u = np.asarray(uniforms, np.float64)
        at = np.require(np.broadcast_to(u, (*u.shape[:-1], len(self))), requirements=["C", "W"])
        found: Floats = lengths.quantile_rows(*self._frame, np.atleast_2d(at))
        return found.reshape(at.shape)

    def quantile(self, level: float) -> Floats:
        """Tokens at one level, (n,)."""
        return self.sample(np.full(len(self), float(level)))

    def median(self) -> Floats:
        """Tokens at level 0.5, (n,)."""
        return self.quantile(0.5)

    def cdf(self, tokens: ArrayLike) -> Floats:
        """P(length <= tokens), (n,); 0 below one token, 1 from the cap on."""
        found: Floats = lengths.cdf_rows(*self._frame, self._each(tokens))
        return found

    def mean(self) -> Floats:
        """Expected tokens, (n,), exact for the interpolated distribution."""
        found: Floats = lengths.remaining_means(*self._frame, np.zeros(len(self)))
        return found

    def remaining(self, generated: ArrayLike) -> LengthDistribution:
        """What is left once `generated` tokens, (n,), are out and the answer has not ended."""
        rows, caps = lengths.remaining_rows(*self._frame, self._each(generated))
        return LengthDistribution(self.levels, rows, caps)

    def _each(self, values: ArrayLike) -> Floats:
        """A number for every row, (n,)."""
        each = np.broadcast_to(np.asarray(values, np.float64), (len(self),))
        return np.require(each, requirements=["C", "W"])
