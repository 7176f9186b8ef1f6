"""Admission control in the engine: a question from the API process, answered from the plan.

The engine answers between two steps. A question whose time has passed is not decided, so that
what was admitted unheard is not also logged as shed. ``api/admission.py`` is the side that asks.
"""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from lengthwise.data.arrays import IntArray
from lengthwise.scheduler.guards.admission import AdmissionControl, AdmissionRule, warm_up
from lengthwise.scheduler.policies.base import Policy
from lengthwise.scheduler.policies.make import make_policy
from lengthwise.scheduler.problem import Problem
from lengthwise.scheduler.vllm_adapter.engine.outcomes import Outcome
from lengthwise.scheduler.vllm_adapter.engine.planning import Tenants
from lengthwise.scheduler.vllm_adapter.settings import LOGGER_NAME, AdmissionSettings

if TYPE_CHECKING:
    from lengthwise.scheduler.vllm_adapter.engine.scheduler import LengthwiseScheduler

logger = logging.getLogger(LOGGER_NAME)


def admission_rule(settings: AdmissionSettings) -> AdmissionRule:
    """The core's rule of a server's settings."""
    return AdmissionRule(
        settings.mode,
        settings.threshold,
        settings.max_share,
        dict(settings.per_class),
        settings.window,
    )


@dataclass(frozen=True, slots=True)
class _Params:
    extra_args: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class _Candidate:
    """A request that has not come yet, as far as ``Intake.track`` looks at one."""

    request_id: str
    arrival_time: float
    num_prompt_tokens: int
    max_tokens: int
    sampling_params: _Params


@dataclass(slots=True)
class EngineAdmission:
    """Answers from the scheduler's own picture; keeps the caps."""

    scheduler: LengthwiseScheduler
    control: AdmissionControl = field(init=False)
    acted: Counter[str] = field(default_factory=Counter)
    late: int = 0
    _judge: Policy | None = None
    _asked: int = 0

    def __post_init__(self) -> None:
        warm_up()
        self.control = AdmissionControl(admission_rule(self.scheduler._settings.admission))

    def answer(self, question: Mapping[str, Any]) -> dict[str, Any]:
        """The verdict; a row in the request log and a count when it is not to admit."""
        scheduler, unix_s, now_s = self.scheduler, time.time(), time.monotonic()
        if unix_s > float(question["deadline_unix_s"]):
            self.late += 1
            return {"action": "admit"}
        prompt_tokens = int(question["prompt_tokens"])
        longest = max(1, int(scheduler.max_model_len) - prompt_tokens)
        self._asked += 1
        candidate = _Candidate(
            request_id=f"admission-{self._asked}-{unix_s:.6f}",
            arrival_time=unix_s,
            num_prompt_tokens=prompt_tokens,
            max_tokens=min(int(question["max_tokens"] or longest), longest),
            sampling_params=_Params(question["xargs"]),
        )
        tracked = scheduler._intake.track(candidate, now_s, unix_s)
        tracked.admission = "shed"
        table, planner = scheduler._table, scheduler._planner
        table.add(tracked)
        try:
            ids = [*table.known(scheduler.waiting.plannable_ids()), tracked.request_id]
            running_ids = scheduler._running_ids()
            problem = planner.problem(
                table.arrays(ids), table.arrays(running_ids), table.levels, now_s
            )
            tenants = scheduler._tenants(ids, running_ids)
            verdict = self.control.decide(
                problem, lambda asked: self._order(asked, tenants), tracked.slo.slo_class
            )
        finally:
            table.remove(tracked.request_id)
        if verdict.action == "admit":
            return {"action": "admit"}
        slo_class = scheduler._metrics.class_label(tracked.slo.slo_class)
        scheduler._metrics.shed.labels(slo_class, verdict.action).inc()
        self.acted[verdict.action] += 1
        if verdict.action == "shed":
            outcome = Outcome.of(tracked, "shed", 0, now_s)
            scheduler._record(tracked, outcome)
        return {"action": verdict.action, "retry_after_s": verdict.retry_after_s}

    def status(self) -> dict[str, Any]:
        """Plain values for ``GET /lengthwise/status``."""
        return {
            "mode": self.control.rule.mode,
            "asked": self._asked,
            "shed": self.acted["shed"],
            "downgraded": self.acted["downgrade"],
            "late": self.late,
            "recent_share": self.control.total.acted_share,
        }

    def _order(self, problem: Problem, tenants: Tenants | None) -> IntArray:
        """The order by another instance of the policy in charge, which remembers its own."""
        planner, settings = self.scheduler._planner, self.scheduler._settings
        name = planner.policy.name
        if self._judge is None or self._judge.name != name:
            params = dict(settings.policy_params) if name == settings.policy else {}
            if name == "sa":
                params["iterations"] = 1  # where the newcomer stands is the selection's to say
            self._judge = make_policy(name, seed=settings.seed, **params)
        order = planner.plan(self._judge, problem, tenants).order
        return np.asarray(order, dtype=np.int64)
