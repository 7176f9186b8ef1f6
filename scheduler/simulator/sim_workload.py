"""What a simulated engine is given, and what came of it."""

from __future__ import annotations

from dataclasses import dataclass, fields

import numpy as np

from lengthwise.data.arrays import BoolArray, FloatArray, IntArray
from lengthwise.scheduler.guards.admission import Action


@dataclass(frozen=True, slots=True)
class SimWorkload:
    """What arrives: ``(n,)`` arrays (seconds, tokens; inf = no objective), quantiles ``(n, q)``.

    ``output_tokens`` is the truth, which only the engine reads; the policy sees ``quantiles``.
    Rows with the same ``prefix_id`` (-1 for none) share their first ``prefix_tokens``, which an
    engine with a prefix cache computes once; both columns are given or neither.
    """

    arrival_s: FloatArray
    prompt_tokens: IntArray
    output_tokens: IntArray
    ttft_s: FloatArray
    tpot_s: FloatArray
    e2e_s: FloatArray
    weight: FloatArray
    class_id: IntArray
    quantiles: FloatArray
    levels: FloatArray
    tenant_id: IntArray | None = None
    prefix_id: IntArray | None = None
    prefix_tokens: IntArray | None = None

    def __post_init__(self) -> None:
        n = len(self.arrival_s)
        for field in fields(self):
            column = getattr(self, field.name)
            if field.name != "levels" and column is not None and len(column) != n:
                raise ValueError(f"{field.name} must have {n} rows, got {len(column)}")
        if self.quantiles.shape[1] != len(self.levels):
            raise ValueError(
                f"quantiles must have {len(self.levels)} columns, got {self.quantiles.shape[1]}"
            )
        if n and (np.diff(self.arrival_s) < 0).any():
            raise ValueError("arrivals must be sorted")
        if n and (min(self.prompt_tokens.min(), self.output_tokens.min()) < 1):
            raise ValueError("prompt_tokens and output_tokens must be at least 1")
        if (self.prefix_id is None) != (self.prefix_tokens is None):
            raise ValueError("prefix_id and prefix_tokens come together, got one of them")
        if self.prefix_tokens is not None and (self.prefix_tokens > self.prompt_tokens).any():
            row = int(np.argmax(self.prefix_tokens > self.prompt_tokens))
            raise ValueError(
                f"prefix_tokens must be at most prompt_tokens, got {self.prefix_tokens[row]} "
                f"of {self.prompt_tokens[row]} in row {row}"
            )

    def __len__(self) -> int:
        return len(self.arrival_s)


@dataclass(frozen=True, slots=True)
class SimResult:
    """What happened: ``(n,)`` seconds on the workload's clock, and the engine's counters.

    A request that was shed has NaN times and has met nothing.
    """

    admitted_s: FloatArray
    first_token_s: FloatArray
    finish_s: FloatArray
    output_tokens: IntArray
    plan_s: list[float]
    queue_len: list[tuple[float, int]]
    preemptions: int
    yields: int
    steps: int
    prefilled_tokens: int
    kv_peak_tokens: int
    end_s: float
    cached_tokens: int = 0  # found in the prefix cache, not computed again
    actions: tuple[Action, ...] = ()  # of admission control, where it was on

    def ttft_s(self, workload: SimWorkload) -> FloatArray:
        """Arrival to first token."""
        return self.first_token_s - workload.arrival_s

    def e2e_s(self, workload: SimWorkload) -> FloatArray:
        """Arrival to last token."""
        return self.finish_s - workload.arrival_s

    def tpot_s(self) -> FloatArray:
        """(e2e - TTFT) / (n - 1), 0 for answers of one token."""
        return _tpot_s(self.first_token_s, self.finish_s, self.output_tokens)

    def met(self, workload: SimWorkload) -> BoolArray:
        """Whether all objectives of each request hold (best effort: True)."""
        every = np.arange(len(workload))
        return met_of(workload, every, self.first_token_s, self.finish_s, self.output_tokens)


def met_of(
    workload: SimWorkload,
    rows: IntArray,
    first_token_s: FloatArray,
    finish_s: FloatArray,
    output_tokens: IntArray,
) -> BoolArray:
    """Whether all objectives of the given ``rows`` hold by what came of each of them, ``(k,)``."""
    arrival_s = workload.arrival_s[rows]
    return (
        (first_token_s - arrival_s <= workload.ttft_s[rows])
        & (_tpot_s(first_token_s, finish_s, output_tokens) <= workload.tpot_s[rows])
        & (finish_s - arrival_s <= workload.e2e_s[rows])
    )


def _tpot_s(first_token_s: FloatArray, finish_s: FloatArray, output_tokens: IntArray) -> FloatArray:
    span_s = finish_s - first_token_s
    return np.where(output_tokens > 1, span_s / np.maximum(output_tokens - 1, 1), 0.0)
