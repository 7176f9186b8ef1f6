"""Estimates of answers that have begun, as an engine is told them: known before a run is played."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from lengthwise.data.arrays import FloatArray, IntArray


@dataclass(frozen=True, slots=True)
class OpeningEstimates:
    """A row's quantiles, ``quantiles (k, n, q)``, from ``after_tokens (k,)`` tokens on, ascending.

    A row of NaN stands for an answer that was not estimated anew then. In an engine they come a
    little late, so ``after_tokens`` are rather more than were looked at.
    """

    after_tokens: IntArray
    quantiles: FloatArray

    def __post_init__(self) -> None:
        if self.quantiles.ndim != 3 or len(self.quantiles) != len(self.after_tokens):
            raise ValueError(
                f"quantiles must be ({len(self.after_tokens)}, n, q), got {self.quantiles.shape}"
            )
        if (np.diff(self.after_tokens) <= 0).any() or (self.after_tokens < 1).any():
            raise ValueError(f"after_tokens must ascend from 1, got {self.after_tokens.tolist()}")

    def known(self, first: FloatArray, rows: IntArray, generated_tokens: IntArray) -> FloatArray:
        """What is known of the ``rows (m,)``, ``(m, q)``: ``first``, or the last estimate due."""
        found = first
        for after, quantiles in zip(self.after_tokens, self.quantiles, strict=True):
            told = quantiles[rows]
            due = (generated_tokens >= after) & ~np.isnan(told[:, 0])
            if due.any():
                found = np.where(due[:, None], told, found)
        return found
