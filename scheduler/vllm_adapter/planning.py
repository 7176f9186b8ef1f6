"""The planner as the engine uses it: problem in, queue order out, and never an exception.

A plan is advice. Whatever goes wrong here, the queue falls back to order of arrival, the cause is
counted, and serving goes on.
"""

from __future__ import annotations

import logging
import time
from collections import Counter, deque
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from scheduler.arrival_rate import ArrivalRate
from scheduler.policies import Policy, make_policy
from scheduler.problem import Capacity, Problem, RequestArrays
from scheduler.replan import ReplanGate
from scheduler.step_time import StepTimeModel
from scheduler.vllm_adapter.metrics import EngineMetrics
from scheduler.vllm_adapter.settings import LOGGER_NAME, ServerSettings

logger = logging.getLogger(LOGGER_NAME)

_KEPT_TIMES = 8192
_LOG_EVERY = 1000


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
        self.policy = self._make(settings.policy)
        self.reset_stats()

    def set_policy(self, name: str) -> None:
        """Switch to another policy; ValueError for an unknown name."""
        self.policy = self._make(name)
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
        self, ids: Sequence[str], waiting: RequestArrays, running: RequestArrays, levels: Any
    ) -> list[str] | None:
        """The planned order of ``ids`` (the rows of ``waiting``); None means order of arrival."""
        began_s = self._clock()
        try:
            plan = self.policy(
                Problem(
                    now_s=began_s,
                    levels=levels,
                    waiting=waiting,
                    running=running,
                    capacity=self.capacity,
                    step_time=self.step_time,
                    max_wait_s=self._settings.max_wait_s,
                    arrival_rate_rps=self.arrivals.rps(began_s),
                )
            )
            order = [ids[index] for index in plan.order]
        except Exception as error:  # any planner's fault must end here
            self.fall_back("planner", error)
            order, plan = None, None
        elapsed_s = max(0.0, self._clock() - began_s)
        self.gate.planned(began_s, elapsed_s)
        self._times_s.append(elapsed_s)
        self._plans += 1
        self._metrics.plan.observe(elapsed_s)
        if plan is not None:
            self._evaluations += plan.evaluations
            self._improved += plan.cost < plan.start_cost
            if plan.degraded:
                self._degraded[plan.degraded] += 1
        return order

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

    def _make(self, name: str) -> Policy:
        settings = self._settings
        params = settings.policy_params if name == settings.policy else {}
        policy = make_policy(
            name, budget_s=settings.plan_budget_ms / 1e3, seed=settings.seed, **params
        )
        policy.warm_up()
        return policy
