"""What the planner is asked and what it answers: arrays in, an admission order out."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any

import numpy as np

from lengthwise.data.arrays import FloatArray, IntArray
from lengthwise.scheduler.step_time import StepTimeModel

NO_PREFIX = -1
LEAST_PREFILL_TOKENS = 16  # a block a step: what any limit leaves to a prompt


def _nobody() -> IntArray:
    return np.empty(0, dtype=np.int64)


def _no_floats() -> FloatArray:
    return np.empty(0)


@dataclass(frozen=True, slots=True)
class Capacity:
    """The engine's limits: sequences at once, KV cache tokens, tokens a step may process."""

    max_num_seqs: int
    kv_tokens: int
    max_num_batched_tokens: int

    def __post_init__(self) -> None:
        for name in ("max_num_seqs", "kv_tokens", "max_num_batched_tokens"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")


@dataclass(frozen=True, slots=True)
class RequestArrays:
    """One row a request; ``(n,)`` arrays, seconds and tokens; ``quantiles`` is ``(n, q)``.

    ``prefill_left_tokens`` counts the prompt tokens not yet computed, ``generated_tokens`` the
    answer so far, ``first_token_s`` is NaN before the first token. An absent objective is inf.
    ``queued_s`` is when the row last joined the queue: later than ``arrival_s`` for one that has
    given up its slot. ``quantiles`` are those of the whole answer's length at
    ``Problem.levels``, non-decreasing.

    ``cached_tokens`` of a waiting row are those a prefix cache would give it for nothing now;
    its ``prefill_left_tokens`` is already without them: what must be computed. Of a running row
    they are the tokens it shares, which it would likely find again after giving up its slot.
    Rows with the same ``prefix_id`` (-1 for none) share their first ``prefix_tokens``: once one
    of them is computed, the others have them cached. The last three columns may be left out, as
    for an engine without a prefix cache.
    """

    arrival_s: FloatArray
    queued_s: FloatArray
    prompt_tokens: FloatArray
    prefill_left_tokens: FloatArray
    generated_tokens: FloatArray
    first_token_s: FloatArray
    ttft_s: FloatArray
    tpot_s: FloatArray
    e2e_s: FloatArray
    weight: FloatArray
    class_id: IntArray
    quantiles: FloatArray
    cached_tokens: FloatArray = field(default_factory=_no_floats)
    prefix_id: IntArray = field(default_factory=_nobody)
    prefix_tokens: FloatArray = field(default_factory=_no_floats)

    def __len__(self) -> int:
        return len(self.arrival_s)

    def __post_init__(self) -> None:
        n = len(self.arrival_s)
        for name in ("cached_tokens", "prefix_tokens"):
            if not len(getattr(self, name)):
                object.__setattr__(self, name, np.zeros(n))
        if not len(self.prefix_id):
            object.__setattr__(self, "prefix_id", np.full(n, NO_PREFIX, dtype=np.int64))
        for column in fields(self):
            array = getattr(self, column.name)
            if len(array) != n:
                raise ValueError(f"{column.name} must have {n} rows, got {len(array)}")
        if self.quantiles.ndim != 2:
            raise ValueError(f"quantiles must be (n, q), got {self.quantiles.ndim} dimension(s)")

    @classmethod
    def build(cls, quantiles: Any, arrival_s: Any, **columns: Any) -> RequestArrays:
        """Rows from whatever columns are known; the others get their neutral value."""
        rows = np.ascontiguousarray(quantiles, dtype=np.float64)
        n = len(rows)
        neutral = {
            "prompt_tokens": 1.0,
            "generated_tokens": 0.0,
            "first_token_s": np.nan,
            "ttft_s": np.inf,
            "tpot_s": np.inf,
            "e2e_s": np.inf,
            "weight": 1.0,
            "cached_tokens": 0.0,
            "prefix_tokens": 0.0,
        }
        others = {"class_id", "prefix_id", "prefill_left_tokens", "queued_s"}
        if unknown := set(columns) - set(neutral) - others:
            raise ValueError(f"unknown columns {sorted(unknown)}")
        table = {
            name: np.full(n, default)
            if columns.get(name) is None
            else np.broadcast_to(np.asarray(columns[name], dtype=np.float64), (n,)).copy()
            for name, default in neutral.items()
        }
        left = columns.get("prefill_left_tokens")

        def ids(name: str, default: int) -> IntArray:
            given = default if columns.get(name) is None else columns[name]
            return np.broadcast_to(np.asarray(given, dtype=np.int64), (n,)).copy()

        queued_s = arrival_s if columns.get("queued_s") is None else columns["queued_s"]
        return cls(
            arrival_s=np.broadcast_to(np.asarray(arrival_s, dtype=np.float64), (n,)).copy(),
            queued_s=np.broadcast_to(np.asarray(queued_s, dtype=np.float64), (n,)).copy(),
            prefill_left_tokens=table["prompt_tokens"] - table["cached_tokens"]
            if left is None
            else np.broadcast_to(np.asarray(left, dtype=np.float64), (n,)).copy(),
            quantiles=rows,
            class_id=ids("class_id", 0),
            prefix_id=ids("prefix_id", NO_PREFIX),
            **table,
        )

    @classmethod
    def empty(cls, q: int) -> RequestArrays:
        """No requests, ``q`` levels."""
        return cls.build(np.empty((0, q)), np.empty(0))

    def concatenated(self, *others: RequestArrays) -> RequestArrays:
        """These rows, then those of the others."""
        parts = (self, *others)
        return RequestArrays(
            **{f.name: np.concatenate([getattr(p, f.name) for p in parts]) for f in fields(self)}
        )

    def take(self, rows: IntArray | Sequence[int]) -> RequestArrays:
        """The given rows, in the given order."""
        index = np.asarray(rows, dtype=np.int64)
        return replace(self, **{f.name: getattr(self, f.name)[index] for f in fields(self)})


@dataclass(frozen=True, slots=True)
class Problem:
    """The picture at ``now_s``: who waits, who runs, and what the engine can do.

    ``levels`` is ``(q,)``. ``arrival_rate_rps`` is a recent estimate, 0 when unknown.
    ``recovering`` are those the engine preempted, next first: they go before any plan. A decode
    step yields ``tokens_per_step`` tokens a sequence on the mean and takes
    ``decode_budget_tokens`` of the step's budget (drafts are checked, not all are kept).
    ``rested_steps`` counts the steps since the last one with prompt tokens.
    """

    now_s: float
    levels: FloatArray
    waiting: RequestArrays
    running: RequestArrays
    capacity: Capacity
    step_time: StepTimeModel
    max_wait_s: float
    arrival_rate_rps: float = 0.0
    recovering: RequestArrays | None = None
    tokens_per_step: float = 1.0
    decode_budget_tokens: int = 1
    rested_steps: float = math.inf

    def __post_init__(self) -> None:
        for name in ("tokens_per_step", "decode_budget_tokens"):
            if not getattr(self, name) >= 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        q = len(self.levels)
        for name in ("waiting", "running", "recovering"):
            rows: RequestArrays | None = getattr(self, name)
            if rows is None:
                continue
            if rows.quantiles.shape[1] != q:
                got = rows.quantiles.shape[1]
                raise ValueError(f"{name}.quantiles must have {q} columns, got {got}")


@dataclass(frozen=True, slots=True)
class Plan:
    """An admission order: a permutation ``(n,)`` of the waiting rows, first = next to admit.

    ``preempt`` names running rows that give up their slots for the head of the order and queue
    again; ``max_running`` is how many may run until the next plan, None for as many as fit.
    ``max_prefill_tokens`` is how many prompt tokens a step may take beside its decodes until the
    next plan, None for what the engine's own budget leaves: a step's budget is then
    ``decode tokens + max(LEAST_PREFILL_TOKENS, max_prefill_tokens)``, so that no prompt starves.
    With a ``prefill_period`` of n steps, prompts are begun and go on in every n-th step at most
    while anybody decodes: fewer and larger steps with prompts, where each such step has a price
    of its own (``StepTimeModel.eager_s``). None for every step.
    ``latest_start_s`` (n,) says of each waiting row when it goes to the end of the queue, should
    it still wait, inf for never; empty where the order holds whatever time passes.
    ``cost`` and ``start_cost`` are the policy's own (lower is better; 0 where it has none);
    ``degraded`` says why the answer is simpler than asked, or None.
    """

    order: IntArray
    cost: float = 0.0
    start_cost: float = 0.0
    evaluations: int = 0
    elapsed_s: float = 0.0
    degraded: str | None = None
    preempt: IntArray = field(default_factory=_nobody)
    max_running: int | None = None
    max_prefill_tokens: int | None = None
    prefill_period: int | None = None
    latest_start_s: FloatArray = field(default_factory=_no_floats)

    def __post_init__(self) -> None:
        if self.prefill_period is not None and self.prefill_period < 1:
            raise ValueError(f"prefill_period must be at least 1, got {self.prefill_period}")
        if self.max_prefill_tokens is not None and self.max_prefill_tokens < 0:
            raise ValueError(f"max_prefill_tokens must not be negative: {self.max_prefill_tokens}")
        if len(self.latest_start_s) not in (0, len(self.order)):
            raise ValueError(
                "latest_start_s must be empty or of as many rows as the order, got "
                f"{len(self.latest_start_s)} of {len(self.order)}"
            )

    def by_latest_start(self) -> IntArray:
        """Rows that have a latest start, the next one last; of equal ones who stands first is."""
        if not len(self.latest_start_s):
            return _nobody()
        late_s = self.latest_start_s[self.order]
        rows = self.order[np.argsort(late_s, kind="stable")]
        return np.asarray(rows[: int(np.isfinite(late_s).sum())][::-1])


def warm_up_problem(levels: int = 12, n: int = 3) -> Problem:
    """A small problem that takes every path of a plan."""
    rows = RequestArrays.build(
        np.tile(np.linspace(10.0, 200.0, levels), (n, 1)),
        np.arange(n) * 0.1,
        prompt_tokens=20.0,
        ttft_s=[5.0, np.inf, np.inf][:n],
        e2e_s=[np.inf, 9.0, np.inf][:n],
        tpot_s=[0.05, np.inf, np.inf][:n],
    )
    running = RequestArrays.build(
        rows.quantiles, np.zeros(n), generated_tokens=30.0, prefill_left_tokens=0.0
    )
    return Problem(
        now_s=1.0,
        levels=np.linspace(0.05, 0.99, levels),
        waiting=rows,
        running=running,
        capacity=Capacity(2, 4096, 512),
        step_time=StepTimeModel(2e-3, 1e-3, 1e-5, 1e-4, 1e-8),
        max_wait_s=60.0,
        arrival_rate_rps=5.0,
    )
