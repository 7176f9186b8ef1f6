"""The planner as the engine uses it: problem in, queue order out, and never an exception.

A plan is advice. Whatever goes wrong here, the queue falls back to order of arrival, the cause is
counted, and serving goes on.
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
from lengthwise.scheduler.plan.arrival_rate import ArrivalRate
from lengthwise.scheduler.plan.pacing import ReplanGate
from lengthwise.scheduler.policies.base import Policy
from lengthwise.scheduler.policies.make import make_policy
from lengthwise.scheduler.problem import Capacity, Plan, Problem, RequestArrays
from lengthwise.scheduler.step_time import StepTimeModel
from lengthwise.scheduler.vllm_adapter.engine.metrics import EngineMetrics
from lengthwise.scheduler.vllm_adapter.settings import LOGGER_NAME, ServerSettings

logger = logging.getLogger(LOGGER_NAME)

_KEPT_TIMES = 8192
_LOG_EVERY = 1000


@dataclass(frozen=True, slots=True)
class Tenants:
    """Tenant ids of the waiting ``(n,)`` and running rows ``(r,)``; weights by id, or None."""

    waiting: IntArray
    running: IntArray
    weight: FloatArray | None


@dataclass(frozen=True, slots=True)
class PreparedPolicy:
    """A policy that is compiled and checked, and the version that the request log will show."""

    policy: Policy
    version: str


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
    """Calls the policy when due and keeps its statistics."""

    def __init__(
        self,
        settings: ServerSettings,
        capacity: Capacity,
        step_time: StepTimeModel,
        metrics: EngineMetrics,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._settings = settings
        self._metrics = metrics
        self._clock = clock
        self.capacity = capacity
        self.step_time = step_time
        self.gate = ReplanGate(settings.plan_share)
        self.arrivals = ArrivalRate()
        self.fairness = TenantFairness()
        self.keeps_bound = False  # whether the last plan shares the bound on waiting by tenant
        self.use(self.make(settings.policy))
        self.reset_stats()

    def make(self, name: str, params: Mapping[str, Any] | None = None) -> PreparedPolicy:
        """A policy ready to plan, with the settings' parameters unless given; else ValueError."""
        settings = self._settings
        if params is None:
            params = settings.policy_params if name == settings.policy else {}
        policy = make_policy(
            name, budget_s=settings.plan_budget_ms / 1e3, seed=settings.seed, **params
        )
        policy.warm_up()
        return PreparedPolicy(policy, policy_version(params))

    def use(self, prepared: PreparedPolicy) -> None:
        """Plan by this policy from now on."""
        self.policy, self.policy_version = prepared.policy, prepared.version
        self.gate.mark()

    def reset_stats(self) -> None:
        """Start the statistics afresh."""
        self._times_s: deque[float] = deque(maxlen=_KEPT_TIMES)
        self._plans = 0
        self._evaluations = 0
        self._improved = 0
        self._degraded: Counter[str] = Counter()
        self.fallbacks: Counter[str] = Counter()

    def note_arrival(self, now_s: float) -> None:
        """A request arrived."""
        self.arrivals.add(now_s)
        self.changed()

    def changed(self) -> None:
        """The picture is no longer that of the last plan."""
        self.gate.mark()

    def fall_back(self, cause: str, detail: object = None) -> None:
        """Count a fallback; one log line for the first of its cause and every thousandth."""
        self.fallbacks[cause] += 1
        self._metrics.fallbacks.labels(cause).inc()
        if self.fallbacks[cause] % _LOG_EVERY == 1:
            logger.warning(
                "lengthwise falls back (%s, %d): %r", cause, self.fallbacks[cause], detail
            )

    def order(
        self,
        ids: Sequence[str],
        waiting: RequestArrays,
        running: RequestArrays,
        levels: Any,
        tenants: Tenants | None = None,
    ) -> tuple[list[str], Plan] | None:
        """The planned order of ``ids`` (the rows of ``waiting``) and the plan itself; None means
        order of arrival. ``tenants`` is given when there are several, and to be treated fairly.
        """
        began_s = self._clock()
        self.keeps_bound = False
        try:
            problem = self.problem(waiting, running, levels, began_s)
            plan = fair_plan(self.policy, self.fairness, problem, tenants)
            self.keeps_bound = tenants is not None
            planned = [ids[index] for index in plan.order], plan
        except Exception as error:  # any planner's fault must end here
            self.fall_back("planner", error)
            planned, plan = None, None
        elapsed_s = max(0.0, self._clock() - began_s)
        self.gate.planned(began_s, elapsed_s)
        self._times_s.append(elapsed_s)
        self._plans += 1
        self._metrics.plan.observe(elapsed_s)
        if plan is not None:
            self._evaluations += plan.evaluations
            self._improved += plan.cost < plan.start_cost
            if plan.degraded:
                reason = self._metrics.reason_label(plan.degraded)
                self._degraded[reason] += 1
                self._metrics.degraded.labels(reason).inc()
        return planned

    def problem(
        self, waiting: RequestArrays, running: RequestArrays, levels: Any, now_s: float
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
            arrival_rate_rps=self.arrivals.rps(now_s),
        )

    def capacity_status(self) -> dict[str, int]:
        """The engine's limits, as plain values."""
        return asdict(self.capacity)

    def status(self) -> dict[str, Any]:
        """Plain figures for the status endpoint; times in milliseconds."""
        figures: dict[str, Any] = {
            "count": self._plans,
            "evaluations": self._evaluations,
            "improved": self._improved,
            "degraded": dict(self._degraded),
            "fallbacks": dict(self.fallbacks),
            "budget_ms": self._settings.plan_budget_ms,
        }
        if self._times_s:
            p50, p99 = np.quantile(np.asarray(self._times_s) * 1e3, [0.5, 0.99])
            figures |= {"ms_p50": float(p50), "ms_p99": float(p99)}
        return figures
