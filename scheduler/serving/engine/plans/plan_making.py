"""A snapshot in, a plan out, in whatever thread, and never an exception.

The picture is taken in the engine's loop (``snapshots``); what comes of it goes back there
(``planning``).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from lengthwise.data.arrays import FloatArray, IntArray
from lengthwise.scheduler.guards.fairness import TenantFairness
from lengthwise.scheduler.policies.policy import Learns, Policy
from lengthwise.scheduler.problem import Plan, Problem


@dataclass(frozen=True, slots=True)
class Tenants:
    """Tenant ids of the waiting ``(n,)`` and running rows ``(r,)``; weights by id, or None."""

    waiting: IntArray
    running: IntArray
    weight: FloatArray | None


@dataclass(frozen=True, slots=True)
class Snapshot:
    """The picture that a plan is made of: copies, so that it stays as it was."""

    waiting_ids: Sequence[str]
    running_ids: Sequence[str]
    problem: Problem
    tenants: Tenants | None


@dataclass(frozen=True, slots=True)
class PendingSnapshot:
    """A snapshot taken at ``taken_s`` and yet to be built, in whatever thread."""

    taken_s: float
    build: Callable[[], Snapshot]


@dataclass(frozen=True, slots=True)
class Planned:
    """The answer to a snapshot: a plan, or the fault that stood in its way.

    ``order`` and ``preempt`` are the plan's, by name, and so is ``deferred``, (latest start, name)
    of those that have one, the next last; ``by_tenant`` tells that it shares the bound on waiting
    between tenants.
    """

    taken_s: float
    policy: Policy
    plan: Plan | None
    order: list[str]
    preempt: list[str]
    deferred: list[tuple[float, str]]
    by_tenant: bool
    fault: Exception | None
    wall_s: float
    processor_s: float
    told: dict[str, Any]  # what the policy said of itself, as plain values


def fair_plan(
    policy: Policy, fairness: TenantFairness, problem: Problem, tenants: Tenants | None
) -> Plan:
    """The policy's plan, made fair to the tenants unless arrival order was asked for."""
    if tenants is None or policy.name == "fcfs":
        return policy(problem)
    return fairness.plan(policy, problem, tenants.waiting, tenants.running, tenants.weight)


def make_plan(
    pending: PendingSnapshot,
    policy: Policy,
    fairness: TenantFairness,
    ended: deque[tuple[float, bool]],
    clock: Callable[[], float],
    processor_clock: Callable[[], float],
) -> Planned:
    """The policy's plan of the snapshot, or its fault.

    It is told first of the requests that ``ended``, (arrival_s, whether their objectives were
    met), which are taken out. Both clocks say what it took.
    """
    began_s, spent_s = clock(), processor_clock()
    plan = fault = None
    order: list[str] = []
    preempt: list[str] = []
    deferred: list[tuple[float, str]] = []
    by_tenant = False
    told: dict[str, Any] = {}
    try:
        snapshot = pending.build()
        while ended:
            arrival_s, met = ended.popleft()
            if isinstance(policy, Learns):
                policy.finished(arrival_s, met)
        made = Plan(np.empty(0, dtype=np.int64))
        if snapshot.waiting_ids:
            made = fair_plan(policy, fairness, snapshot.problem, snapshot.tenants)
        order = [snapshot.waiting_ids[row] for row in made.order.tolist()]
        preempt = [snapshot.running_ids[row] for row in made.preempt.tolist()]
        deferred = _deferred(snapshot.waiting_ids, made)
        by_tenant = snapshot.tenants is not None
        told = policy.status() if isinstance(policy, Learns) else {}
        plan = made
    except Exception as error:  # any planner's fault must end here
        fault = error
    wall_s = max(0.0, clock() - began_s)
    processor_s = max(0.0, processor_clock() - spent_s)
    return Planned(
        pending.taken_s,
        policy,
        plan,
        order,
        preempt,
        deferred,
        by_tenant,
        fault,
        wall_s,
        processor_s,
        told,
    )


def _deferred(names: Sequence[str], plan: Plan) -> list[tuple[float, str]]:
    return [(plan.latest_start_s[row], names[row]) for row in plan.by_latest_start().tolist()]
