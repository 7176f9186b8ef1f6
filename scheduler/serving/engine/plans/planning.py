"""The planner as the engine uses it: when to ask for a plan, what came of it, and the pace.

A plan is made beside the engine's loop, in a thread, on a snapshot that nobody else writes to; or
in the loop, with ``plan_in_thread`` off. It is advice: where none comes (the policy raises, the
thread dies or is slow) the cause is counted, and the queue stands in order of arrival.
"""

from __future__ import annotations

import logging
import time
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import asdict, replace
from statistics import median
from typing import Any

from lengthwise.data.arrays import FloatArray
from lengthwise.scheduler.guards.fairness import TenantFairness
from lengthwise.scheduler.plan.pacing import ArrivalRate, ReplanGate
from lengthwise.scheduler.problem import Capacity, Problem, RequestArrays
from lengthwise.scheduler.serving.engine.engine_metrics import EngineMetrics
from lengthwise.scheduler.serving.engine.observed.planning_cost import PlanningCost
from lengthwise.scheduler.serving.engine.observed.step_clock import StepClock
from lengthwise.scheduler.serving.engine.observed.steps import StepFeatures
from lengthwise.scheduler.serving.engine.plans.plan_figures import PlanFigures
from lengthwise.scheduler.serving.engine.plans.plan_making import (
    PendingSnapshot,
    Planned,
    make_plan,
)
from lengthwise.scheduler.serving.engine.plans.plan_thread import PlanThread
from lengthwise.scheduler.serving.engine.plans.prepared_policy import (
    PreparedPolicy,
    prepare_policy,
)
from lengthwise.scheduler.serving.settings import LOGGER_NAME, ServerSettings
from lengthwise.scheduler.step_time import StepTimeModel

logger = logging.getLogger(LOGGER_NAME)

_LOG_EVERY = 1000
_LONGEST_PLAN_S = 5.0  # a thread that takes longer is given up
_KEPT_OUTCOMES = 4096
_USUAL_OF = 5  # plans
_AT_MOST_USUAL = 3.0  # times what is usual


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
        self.fitted = step_time  # before its clock is corrected
        self.step_clock = StepClock()
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
        self.use(prepare_policy(settings, settings.policy))

    def use(self, prepared: PreparedPolicy) -> None:
        """Plan by this policy from now on."""
        self.policy, self.policy_version = prepared.policy, prepared.version
        self.policy_params = prepared.params
        self._build = prepared.build
        self.policy_status: dict[str, Any] = {}
        self._ended.clear()
        self._spent_s: deque[float] = deque(maxlen=_USUAL_OF)  # by its last plans
        self.cost = PlanningCost()
        self.gate.plan_share = self._settings.plan_share
        self.changed()

    @property
    def step_time(self) -> StepTimeModel:
        """What plans take a step for: the fitted model on the clock that the steps show."""
        return self.step_clock.corrected(self.fitted)

    def believe(self, model: StepTimeModel) -> None:
        """Take steps for what this model says from now on."""
        self.fitted = model
        self.step_clock.forget()

    def note_step(self, features: StepFeatures, duration_s: float) -> None:
        """A step with this work took so long."""
        modelled_s = self.fitted.step_s(*features)
        self.step_clock.note(duration_s, modelled_s)
        self.cost.note_step(duration_s, modelled_s, features[0], beside_plan=self.busy)

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
        held_slots: int,
        rested_steps: float,
    ) -> Problem:
        """The picture as a policy is asked; ``held_slots`` are not there to be given."""
        slots = max(1, self.capacity.max_num_seqs - held_slots)
        return Problem(
            now_s=now_s,
            levels=levels,
            waiting=waiting,
            running=running,
            capacity=replace(self.capacity, max_num_seqs=slots),
            step_time=self.step_time,
            max_wait_s=self._settings.max_wait_s,
            arrival_rate_rps=arrival_rate_rps,
            recovering=recovering,
            tokens_per_step=tokens_per_step,
            decode_budget_tokens=1 + draft_tokens,
            rested_steps=rested_steps,
        )

    def capacity_status(self) -> dict[str, int]:
        """The engine's limits, as plain values."""
        return asdict(self.capacity)

    def status(self, now_s: float) -> dict[str, Any]:
        """Plain figures for the status endpoint; ``policy`` is what the policy says of itself."""
        return self.figures.status(now_s) | {
            "fallbacks": dict(self.fallbacks),
            "budget_ms": self._settings.plan_budget_ms,
            "share": self.gate.plan_share,
            "steps_lost": self.cost.lost,
            "in_thread": self._settings.plan_in_thread,
            "policy": self.policy_status,
        }

    def close(self) -> None:
        """Let the thread end."""
        self._thread.close()

    def _plan(self, pending: PendingSnapshot) -> Planned:
        """Ask the policy, in whatever thread this is."""
        return make_plan(
            pending, self.policy, self.fairness, self._ended, self._clock, self._processor_clock
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
        self.cost.note_plan(spent_s)
        self.gate.plan_share = self.cost.share(self._settings.plan_share)
        # One plan that took a multiple (an engine's first, on an H200: .6 s) must not leave the
        # engine without another for as many times longer.
        self._spent_s.append(spent_s)
        allowed_s = self._settings.plan_budget_ms / 1e3
        usual_s = median([*self._spent_s, allowed_s, allowed_s])
        paced_s = min(spent_s, _AT_MOST_USUAL * usual_s)
        self.gate.planned(began_s, paced_s)
        # A plan from the thread is taken at the next step, which may be long in coming.
        self.pace_s = max(paced_s / self.gate.plan_share, now_s - began_s)
        self.interval_s = max(self.gate.max_age_s, self.pace_s)
        if self._changed_since:
            self.gate.mark()
        return planned
