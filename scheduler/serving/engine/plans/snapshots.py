"""Snapshots that plans are made of: taken in the engine's loop, built beside it.

Taking one notes who waits and runs; that is all the loop pays for. Building it gathers what the
table knows of them into arrays. In between the table must not give their rows to anybody else
(``RequestTable.hold``).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from lengthwise.data.arrays import FloatArray, IntArray
from lengthwise.scheduler.problem import RequestArrays
from lengthwise.scheduler.serving.engine.observed.steps import StepTimer, TokensPerStep
from lengthwise.scheduler.serving.engine.plans.plan_making import (
    PendingSnapshot,
    Snapshot,
    Tenants,
)
from lengthwise.scheduler.serving.engine.plans.planning import Planner
from lengthwise.scheduler.serving.engine.queue.planned_queue import PlannedQueue
from lengthwise.scheduler.serving.engine.requests.request_table import RequestTable

_LOOKED_AT_RECOVERING = 8  # of those preempted, whose cached beginnings are asked for


@dataclass(frozen=True, slots=True)
class Running:
    """The running requests in the engine's order: answer tokens, prompt tokens to come.

    Both as they will be when the steps that are planned already have ended. ``held_slots`` are
    taken by others, who do not run.
    """

    ids: Sequence[str]
    generated_tokens: Sequence[int]
    prefill_left_tokens: Sequence[int]
    held_slots: int = 0


@dataclass(frozen=True, slots=True)
class _Recovering:
    """Those whom the engine preempted, next first: ids, answer tokens, cached tokens."""

    ids: Sequence[str]
    generated_tokens: Sequence[int]
    cached_tokens: Sequence[int]


class SnapshotSource:
    """Takes snapshots of a queue, a table and what runs."""

    def __init__(
        self,
        table: RequestTable,
        queue: PlannedQueue,
        planner: Planner,
        tokens_per_step: TokensPerStep,
        timer: StepTimer,
        generated_tokens: Callable[[str], int | None],
        cached_tokens: Callable[[str], int | None] | None,
        fair_tenants: bool,
    ) -> None:
        self._table = table
        self._queue = queue
        self._planner = planner
        self._tokens_per_step = tokens_per_step
        self._timer = timer
        self._generated_tokens = generated_tokens
        self._cached_tokens = cached_tokens
        self._fair_tenants = fair_tenants

    def take(
        self, running: Running, now_s: float, candidate: str | None = None
    ) -> PendingSnapshot | None:
        """The state as it is, with a tracked ``candidate`` as the last of the waiting.

        None when nobody waits whom a plan could order. Who ends before it is built is not in it.
        Its time is when the device will be free: with asynchronous scheduling steps that are
        planned already, whose prompt tokens count as computed, still run.
        """
        table, planner, speed = self._table, self._planner, self._tokens_per_step
        ids = self._queue.plannable_members()
        if not ids and candidate is None:
            return None
        ends_s = self._timer.ends_s(planner.step_time, now_s)
        free_at_s = float(ends_s[-1]) if len(ends_s) else now_s
        recovering = self._recovering()
        several = self._fair_tenants and len(table.tenants) > 1
        weights = table.tenants.weights() if several else None
        rate_rps, tokens, drafts = planner.arrivals.rps(now_s), speed.mean, speed.draft_tokens
        rested_steps = self._timer.rested_steps

        def build() -> Snapshot:
            names, by_arrival = _by_arrival(table, ids)
            if candidate is not None:
                names = [*names, candidate]
                by_arrival = np.append(by_arrival, table.rows([candidate]))
            running_rows = table.rows(running.ids)
            known = running_rows >= 0
            ran = running_rows[known]
            generated = _floats(running.generated_tokens)[known]
            runs = replace(
                _with_first_tokens(table.arrays(ran), generated, ends_s),
                generated_tokens=generated,
                prefill_left_tokens=_floats(running.prefill_left_tokens)[known],
            )
            problem = planner.problem(
                table.arrays(by_arrival),
                runs,
                None if recovering is None else _recompute(table, recovering),
                levels=table.levels,
                now_s=free_at_s,
                arrival_rate_rps=rate_rps,
                tokens_per_step=tokens,
                draft_tokens=drafts,
                held_slots=running.held_slots,
                rested_steps=rested_steps,
            )
            tenants = None
            if several:
                tenants = Tenants(table.tenant_ids(by_arrival), table.tenant_ids(ran), weights)
            running_ids = [
                name for name, is_known in zip(running.ids, known, strict=True) if is_known
            ]
            return Snapshot(names, running_ids, problem, tenants)

        return PendingSnapshot(now_s, build)

    def _recovering(self) -> _Recovering | None:
        ids = [name for name in self._queue.recovery_ids() if name in self._table]
        if not ids:
            return None
        ask = self._cached_tokens
        cached = [0 if ask is None else ask(name) or 0 for name in ids[:_LOOKED_AT_RECOVERING]]
        return _Recovering(
            ids,
            [self._generated_tokens(name) or 0 for name in ids],
            cached + [0] * (len(ids) - len(cached)),
        )


def _by_arrival(table: RequestTable, ids: Sequence[str]) -> tuple[list[str], IntArray]:
    """The tracked ones and their rows, oldest arrival first."""
    rows = table.rows(ids)
    known = np.flatnonzero(rows >= 0)
    order = known[np.argsort(table.arrival_s(rows[known]), kind="stable")]
    return list(map(ids.__getitem__, order.tolist())), rows[order]


def _with_first_tokens(
    rows: RequestArrays, tokens: FloatArray, ends_s: FloatArray
) -> RequestArrays:
    """Whose first of these tokens is one of a step that still runs has it when that step ends."""
    coming = np.isnan(rows.first_token_s) & (tokens > 0)
    if not len(ends_s) or not coming.any():
        return rows
    steps = np.maximum(len(ends_s) - tokens.astype(np.int64), 0)
    ends = ends_s[np.minimum(steps, len(ends_s) - 1)]
    return replace(rows, first_token_s=np.where(coming, ends, rows.first_token_s))


def _recompute(table: RequestTable, recovering: _Recovering) -> RequestArrays:
    """Rows of the preempted: all is to be computed that is not cached."""
    rows = table.rows(recovering.ids)
    present = rows >= 0
    arrays = table.arrays(rows[present])
    generated = _floats(recovering.generated_tokens)[present]
    known = arrays.prompt_tokens + generated
    cached = np.minimum(_floats(recovering.cached_tokens)[present], known - 1.0)
    return replace(
        arrays,
        generated_tokens=generated,
        cached_tokens=cached,
        prefill_left_tokens=known - cached,
    )


def _floats(values: Sequence[int]) -> FloatArray:
    return np.array(values, dtype=np.float64)
