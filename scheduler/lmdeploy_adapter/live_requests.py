"""The requests of a running server as rows: what a policy may know of them, and how far they are.

The same columns as a simulated `Course`, but rows come one by one, and how long an answer will be
is known to nobody until it ends.
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields, replace
from typing import Any

import numpy as np

from lengthwise.data.arrays import FloatArray, IntArray
from lengthwise.scheduler.problem import RequestArrays
from lengthwise.scheduler.simulator import engine as e

UNKNOWN_TOKENS = np.iinfo(np.int64).max


@dataclass(slots=True)
class LiveColumns:
    """What is known of each row, ``(n,)``, seconds of the server's clock; quantiles ``(n, q)``."""

    levels: FloatArray
    quantiles: FloatArray
    arrival_s: FloatArray = field(default_factory=lambda: np.empty(0))
    prompt_tokens: FloatArray = field(default_factory=lambda: np.empty(0))
    ttft_s: FloatArray = field(default_factory=lambda: np.empty(0))
    tpot_s: FloatArray = field(default_factory=lambda: np.empty(0))
    e2e_s: FloatArray = field(default_factory=lambda: np.empty(0))
    weight: FloatArray = field(default_factory=lambda: np.empty(0))


class LiveRequests:
    """Rows in the order of arrival; they are kept, as a bench's server is not up for long."""

    def __init__(self, levels: FloatArray) -> None:
        self.workload = LiveColumns(levels, np.empty((0, len(levels))))
        self.state: IntArray = np.empty((0, 5), dtype=np.int64)
        self.times: FloatArray = np.empty((0, 3))

    def add(
        self,
        arrival_s: float,
        prompt_tokens: int,
        quantiles: FloatArray,
        ttft_s: float = np.inf,
        tpot_s: float = np.inf,
        e2e_s: float = np.inf,
        weight: float = 1.0,
    ) -> int:
        """The new request's row; ValueError for quantiles that are not as many as the levels."""
        if quantiles.shape != self.workload.levels.shape:
            raise ValueError(
                f"quantiles must be {len(self.workload.levels)} tokens, got {len(quantiles)}"
            )
        given: dict[str, Any] = {
            "arrival_s": arrival_s, "prompt_tokens": prompt_tokens, "quantiles": quantiles[None],
            "ttft_s": ttft_s, "tpot_s": tpot_s, "e2e_s": e2e_s, "weight": weight,
        }  # fmt: skip
        columns = {
            f.name: np.concatenate([getattr(self.workload, f.name), np.atleast_1d(given[f.name])])
            for f in fields(self.workload)
            if f.name != "levels"
        }
        self.workload = replace(self.workload, **columns)
        state = np.zeros((1, 5), dtype=np.int64)
        state[0, [e.LEFT, e.PROMPT]], state[0, e.ANSWER] = prompt_tokens, UNKNOWN_TOKENS
        self.state = np.concatenate([self.state, state])
        self.times = np.concatenate([self.times, np.full((1, 3), np.nan)])
        return len(self.state) - 1

    def ended(self, row: int, now_s: float) -> None:
        """The answer is over."""
        self.state[row, e.ANSWER] = self.state[row, e.GENERATED]
        self.times[row, e.FINISH] = now_s

    def rows(self, index: IntArray, cache: None, waiting: bool) -> RequestArrays:
        """The given rows as a policy sees them; the pool knows nothing of a prefix cache."""
        known = self.workload
        return RequestArrays.build(
            known.quantiles[index],
            known.arrival_s[index],
            prompt_tokens=known.prompt_tokens[index],
            prefill_left_tokens=self.state[index, e.LEFT],
            generated_tokens=self.state[index, e.GENERATED],
            first_token_s=self.times[index, e.FIRST],
            ttft_s=known.ttft_s[index],
            tpot_s=known.tpot_s[index],
            e2e_s=known.e2e_s[index],
            weight=known.weight[index],
        )
