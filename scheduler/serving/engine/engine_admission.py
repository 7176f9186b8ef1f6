"""Admission control in the engine: a question from the API process, answered from the plan.

The engine answers between two steps. A question whose time has passed is not decided. A verdict
is booked when the API process says that it acted on it: it may have come too late, and of several
engines another one may have admitted. ``api/admission_desk.py`` asks.
"""

from __future__ import annotations

import secrets
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from lengthwise.data.arrays import IntArray
from lengthwise.scheduler.guards.admission import AdmissionControl, AdmissionRule, warm_up
from lengthwise.scheduler.guards.fairness import TenantFairness
from lengthwise.scheduler.policies.make import make_policy
from lengthwise.scheduler.policies.policy import Policy
from lengthwise.scheduler.problem import Problem
from lengthwise.scheduler.serving.engine.core import Core
from lengthwise.scheduler.serving.engine.observed.sequence_outcome import Outcome
from lengthwise.scheduler.serving.engine.plans.plan_making import Tenants, fair_plan
from lengthwise.scheduler.serving.engine.plans.snapshots import Running
from lengthwise.scheduler.serving.engine.requests.intake import Arrival
from lengthwise.scheduler.serving.engine.requests.request_table import Tracked
from lengthwise.scheduler.serving.settings import AdmissionSettings
from lengthwise.scheduler.serving.wire.admission_question import Answer, Question


def admission_rule(settings: AdmissionSettings) -> AdmissionRule:
    """The core's rule of a server's settings."""
    return AdmissionRule(
        settings.mode,
        settings.threshold,
        settings.max_share,
        dict(settings.per_class),
        settings.window,
    )


class EngineAdmission:
    """Answers from the core's own picture; keeps the caps.

    Neither policy nor fairness is the planner's: theirs remember what they planned.
    """

    def __init__(self, core: Core) -> None:
        warm_up()
        self._core = core
        self._control = AdmissionControl(admission_rule(core.settings.admission))
        self._acted: Counter[str] = Counter()
        self._late = 0
        self._asked = 0
        self._named = 0
        self._name = secrets.token_hex(8)
        self._judge: Policy | None = None
        self._fairness = TenantFairness()

    def answer(
        self, body: Mapping[str, Any], running: Running, now_s: float, unix_s: float
    ) -> Answer:
        """The verdict."""
        core = self._core
        question = Question.from_wire(body, core.intake.hints)
        if unix_s > question.deadline_unix_s:
            self._late += 1
            return Answer()
        self._asked += 1
        tracked = self._candidate(question, now_s, unix_s)
        core.table.add(tracked)
        cached = core.cached_share.expected_tokens(tracked.slo.slo_class, tracked.prompt_tokens)
        core.table.note_cached(tracked.request_id, cached)
        try:
            pending = core.snapshots.take(running, now_s, candidate=tracked.request_id)
            assert pending is not None
            snapshot = pending.build()
            verdict = self._control.decide(
                snapshot.problem,
                lambda asked: self._order(asked, snapshot.tenants),
                tracked.slo.slo_class,
            )
        finally:
            core.table.remove(tracked.request_id)
        if verdict.action == "admit":
            return Answer()
        return Answer(verdict.action, verdict.retry_after_s, self._name)

    def acted(self, said: Sequence[Any], now_s: float, unix_s: float) -> None:
        """A verdict, by the engine it was taken from, its question and its action, was acted on:
        a count, and a row in the request log of who was shed."""
        judge, body, action = said
        if judge != self._name or action not in ("shed", "downgrade"):
            return
        core = self._core
        tracked = self._candidate(Question.from_wire(body, core.intake.hints), now_s, unix_s)
        slo_class = core.metrics.class_label(tracked.slo.slo_class)
        core.metrics.shed.labels(slo_class, action).inc()
        self._acted[action] += 1
        if action == "shed":
            core.record(tracked, Outcome.of(tracked, "shed", 0, now_s))

    def _candidate(self, question: Question, now_s: float, unix_s: float) -> Tracked:
        """The request as it would arrive now."""
        core = self._core
        longest = max(1, core.max_model_len - question.prompt_tokens)
        self._named += 1
        candidate = Arrival(
            request_id=f"admission-{self._named}-{unix_s:.6f}",
            unix_s=unix_s,
            prompt_tokens=question.prompt_tokens,
            max_tokens=min(question.max_tokens or longest, longest),
        )
        tracked = core.intake.track(candidate, question.hints, now_s, unix_s)
        tracked.admission = "shed"
        return tracked

    def status(self) -> dict[str, Any]:
        """Plain values for ``GET /lengthwise/status``."""
        return {
            "mode": self._control.rule.mode,
            "asked": self._asked,
            "shed": self._acted["shed"],
            "downgraded": self._acted["downgrade"],
            "late": self._late,
            "recent_share": self._control.total.acted_share,
        }

    def _order(self, problem: Problem, tenants: Tenants | None) -> IntArray:
        """The order by another instance of the policy in charge, which remembers its own."""
        settings, name = self._core.settings, self._core.planner.policy.name
        if self._judge is None or self._judge.name != name:
            params = dict(settings.policy_params) if name == settings.policy else {}
            if name == "sa":
                params["iterations"] = 1  # where the newcomer stands is the selection's to say
            self._judge = make_policy(name, seed=settings.seed, **params)
        order = fair_plan(self._judge, self._fairness, problem, tenants).order
        return np.asarray(order, dtype=np.int64)
