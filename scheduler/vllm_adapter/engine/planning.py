"""The planner as the engine uses it: snapshot in, plan out, and never an exception.

A plan is made beside the engine's loop, in a thread, on a snapshot that nobody else writes to; or
in the loop, with ``plan_in_thread`` off. It is advice: where none comes (the policy raises, the
thread dies or is slow) the cause is counted, and the queue stands in order of arrival.
"""

from __future__ import annotations

import hashlib
import json
import logging
import time
from collections import Counter, deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib import metadata
from typing import Any

import numpy as np

from lengthwise.data.arrays import FloatArray, IntArray
from lengthwise.scheduler.guards.fairness import TenantFairness
from lengthwise.scheduler.plan.pacing import ArrivalRate, ReplanGate
from lengthwise.scheduler.policies.make import make_policy
from lengthwise.scheduler.policies.policy import Learns, Policy
from lengthwise.scheduler.problem import Capacity, Plan, Problem, RequestArrays
from lengthwise.scheduler.step_time import StepTimeModel
from lengthwise.scheduler.vllm_adapter.engine.engine_metrics import EngineMetrics
from lengthwise.scheduler.vllm_adapter.engine.plan_figures import PlanFigures
from lengthwise.scheduler.vllm_adapter.engine.plan_thread import PlanThread
from lengthwise.scheduler.vllm_adapter.settings import LOGGER_NAME, ServerSettings

logger = logging.getLogger(LOGGER_NAME)

_LOG_EVERY = 1000
_LONGEST_PLAN_S = 5.0  # a thread that takes longer is given up
_KEPT_OUTCOMES = 4096


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

    ``order`` and ``preempt`` are the plan's, by name; ``by_tenant`` tells that it shares the bound
    on waiting between tenants.
    """

    taken_s: float
    policy: Policy
    plan: Plan | None
    order: list[str]
    preempt: list[str]
    by_tenant: bool
    fault: Exception | None
    wall_s: float
    processor_s: float
    told: dict[str, Any]  # what the policy said of itself, as plain values


@dataclass(frozen=True, slots=True)
class PreparedPolicy:
    """A policy that is compiled and checked, and the version that the request log will show.

    ``build`` makes another like it.
    """

    policy: Policy
    version: str
    build: Callable[[], Policy]


def policy_version(params: Mapping[str, Any]) -> str:
    """The package's version, and a hash of the parameters where some are given."""
    try:
        version = metadata.version("lengthwise")
    except metadata.PackageNotFoundError:
        version = "unknown"
    if not params:
        return version
    text = json.dumps(dict(params), sort_keys=True, default=repr)
    return f"{version}+{hashlib.sha256(text.encode()).hexdigest()[:8]}"


def fair_plan(
    policy: Policy, fairness: TenantFairness, problem: Problem, tenants: Tenants | None
) -> Plan:
    """The policy's plan, made fair to the tenants unless arrival order was asked for."""
    if tenants is None or policy.name == "fcfs":
        return policy(problem)
    return fairness.plan(policy, problem, tenants.waiting, tenants.running, tenants.weight)


class Planner:
    """Asks the policy, in a thread or here; keeps the pace and the figures.

    ``clock`` is the wall clock of a plan's duration, ``processor_clock`` that of the thread that
    makes it. Beside the loop the pace bounds the latter, so that a busy machine does not plan less;
    in the loop it bounds the time that steps lose.
    """

    def __init__(
        self,
        settings: ServerSettings,
        capacity: Capacity,
        step_time: StepTimeModel,
        metrics: EngineMetrics,
        clock: Callable[[], float] | None = None,
        processor_clock: Callable[[], float] = time.thread_time,
    ) -> None:
        self._settings = settings
        self._metrics = metrics
        self._clock = clock or (lambda: time.monotonic())  # looked up anew: it may be warped
        self._processor_clock = processor_clock
        self.capacity = capacity
        self.step_time = step_time
        self.gate = ReplanGate(settings.plan_share)
        self.arrivals = ArrivalRate()
        self.fairness = TenantFairness()
        self.figures = PlanFigures(metrics)
        self.fallbacks: Counter[str] = Counter()
        self.interval_s = self.gate.max_age_s  # in which another plan is to be expected
        self.pace_s = 0.0  # the same where the picture has changed since
        self._thread: PlanThread[PendingSnapshot, Planned] = PlanThread(self._plan)
        self._ended: deque[tuple[float, bool]] = deque(maxlen=_KEPT_OUTCOMES)
        self._changed_since = False  # the snapshot that is being planned
        self.use(self.make(settings.policy))

    def make(self, name: str, params: Mapping[str, Any] | None = None) -> PreparedPolicy:
        """A policy ready to plan, with the settings' parameters unless given; else ValueError."""
        settings = self._settings
        given = settings.policy_params if name == settings.policy else {}
        chosen = dict(given if params is None else params)

        def build() -> Policy:
            budget_s = settings.plan_budget_ms / 1e3
            return make_policy(name, budget_s=budget_s, seed=settings.seed, **chosen)

        policy = build()
        policy.warm_up()
        return PreparedPolicy(policy, policy_version(chosen), build)

    def use(self, prepared: PreparedPolicy) -> None:
        """Plan by this policy from now on."""
        self.policy, self.policy_version = prepared.policy, prepared.version
        self._build = prepared.build
        self.policy_status: dict[str, Any] = {}
        self._ended.clear()
        self.changed()

    def reset_stats(self) -> None:
        """Start the statistics afresh."""
        self.figures.reset()
        self.fallbacks.clear()

    def note_arrival(self, now_s: float) -> None:
        """A request arrived."""
        self.arrivals.add(now_s)
        self.changed()

    def note_outcome(self, arrival_s: float, met: bool) -> None:
        """A request ended; the policy is told before its next plan, never during one."""
        self._ended.append((arrival_s, met))

    def changed(self) -> None:
        """The picture is no longer that of the last plan."""
        self._changed_since = True
        self.gate.mark()

    @property
    def has_changed(self) -> bool:
        """Whether the picture is no longer that of the last snapshot."""
        return self._changed_since

    def fall_back(self, cause: str, detail: object = None) -> None:
        """Count a fallback; one log line for the first of its cause and every thousandth."""
        self.fallbacks[cause] += 1
        self._metrics.fallbacks.labels(cause).inc()
        if self.fallbacks[cause] % _LOG_EVERY == 1:
            logger.warning(
                "lengthwise falls back (%s, %d): %r", cause, self.fallbacks[cause], detail
            )

    # -- plans --------------------------------------------------------------------------------

    def due(self, now_s: float) -> bool:
        """Whether to take a snapshot for a plan now."""
        return not self._thread.busy and self.gate.due(now_s)

    def plan_now(self, pending: PendingSnapshot) -> Planned:
        """The plan of the snapshot, made here."""
        self._changed_since = False
        return self._booked(self._plan(pending), self._clock())

    @property
    def busy(self) -> bool:
        """Whether the thread has a snapshot whose plan was not taken."""
        return self._thread.busy

    def start(self, pending: PendingSnapshot) -> None:
        """Have the plan of the snapshot made in the thread."""
        self._changed_since = False
        self._thread.start(pending, pending.taken_s)

    def finished(self, now_s: float) -> Planned | None:
        """The plan that the thread has made, once; None while there is none.

        A thread that died or hangs is counted here and replaced, its policy too, which it may
        still be in.
        """
        planned = self._thread.take()
        if planned is not None:
            planned = self._booked(planned, now_s)
            if planned.policy is not self.policy:
                self.figures.drop("policy")
                return None
            return planned
        why = self._thread.lost(now_s, _LONGEST_PLAN_S)
        if why is not None:
            self.fall_back("plan-thread", why)
            self.policy, self.fairness = self._build(), TenantFairness()
            self.changed()
        return None

    def problem(
        self,
        waiting: RequestArrays,
        running: RequestArrays,
        recovering: RequestArrays | None,
        *,
        levels: FloatArray,
        now_s: float,
        arrival_rate_rps: float,
        tokens_per_step: float,
        draft_tokens: int,
    ) -> Problem:
        """The picture as a policy is asked."""
        return Problem(
            now_s=now_s,
            levels=levels,
            waiting=waiting,
            running=running,
            capacity=self.capacity,
            step_time=self.step_time,
            max_wait_s=self._settings.max_wait_s,
            arrival_rate_rps=arrival_rate_rps,
            recovering=recovering,
            tokens_per_step=tokens_per_step,
            decode_budget_tokens=1 + draft_tokens,
        )

    def capacity_status(self) -> dict[str, int]:
        """The engine's limits, as plain values."""
        return asdict(self.capacity)

    def status(self, now_s: float) -> dict[str, Any]:
        """Plain figures for the status endpoint; ``policy`` is what the policy says of itself."""
        return self.figures.status(now_s) | {
            "fallbacks": dict(self.fallbacks),
            "budget_ms": self._settings.plan_budget_ms,
            "share": self._settings.plan_share,
            "in_thread": self._settings.plan_in_thread,
            "policy": self.policy_status,
        }

    def close(self) -> None:
        """Let the thread end."""
        self._thread.close()

    def _plan(self, pending: PendingSnapshot) -> Planned:
        """Ask the policy, in whatever thread this is; it is told of outcomes first."""
        policy, fairness = self.policy, self.fairness
        began_s, spent_s = self._clock(), self._processor_clock()
        plan = fault = None
        order: list[str] = []
        preempt: list[str] = []
        by_tenant = False
        told: dict[str, Any] = {}
        try:
            snapshot = pending.build()
            while self._ended:
                arrival_s, met = self._ended.popleft()
                if isinstance(policy, Learns):
                    policy.finished(arrival_s, met)
            made = Plan(np.empty(0, dtype=np.int64))
            if snapshot.waiting_ids:
                made = fair_plan(policy, fairness, snapshot.problem, snapshot.tenants)
            order = [snapshot.waiting_ids[row] for row in made.order.tolist()]
            preempt = [snapshot.running_ids[row] for row in made.preempt.tolist()]
            by_tenant = snapshot.tenants is not None
            told = policy.status() if isinstance(policy, Learns) else {}
            plan = made
        except Exception as error:  # any planner's fault must end here
            fault = error
        wall_s = max(0.0, self._clock() - began_s)
        processor_s = max(0.0, self._processor_clock() - spent_s)
        return Planned(
            pending.taken_s,
            policy,
            plan,
            order,
            preempt,
            by_tenant,
            fault,
            wall_s,
            processor_s,
            told,
        )

    def _booked(self, planned: Planned, now_s: float) -> Planned:
        if planned.fault is not None:
            self.fall_back("planner", planned.fault)
        self.policy_status = planned.told
        self.figures.note(planned.plan, planned.wall_s, planned.processor_s, now_s)
        began_s = planned.taken_s
        spent_s = planned.processor_s
        if not self._settings.plan_in_thread:
            # A clock that stands still while we work would open the gate at every step.
            spent_s = planned.wall_s or planned.policy.nominal_s
        self.gate.planned(began_s, spent_s)
        # A plan from the thread is taken at the next step, which may be long in coming.
        self.pace_s = max(spent_s / self.gate.plan_share, now_s - began_s)
        self.interval_s = max(self.gate.max_age_s, self.pace_s)
        if self._changed_since:
            self.gate.mark()
        return planned
