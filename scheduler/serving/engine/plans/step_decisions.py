"""What the engine is to do before each step: the plan in force, made in time and lifted in time.

A plan from the thread is adopted if there is one and its picture is still this one, and never
waited for. It is over with those it was for, when plans stop coming (``in_force``), and while the
engine is paused.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from lengthwise.scheduler.serving.engine.engine_metrics import EngineMetrics
from lengthwise.scheduler.serving.engine.plans.hold_back import HoldBack
from lengthwise.scheduler.serving.engine.plans.in_force import PlanInForce
from lengthwise.scheduler.serving.engine.plans.plan_making import Planned
from lengthwise.scheduler.serving.engine.plans.planning import Planner
from lengthwise.scheduler.serving.engine.plans.snapshots import Running, SnapshotSource
from lengthwise.scheduler.serving.engine.queue.ages import QueueAges
from lengthwise.scheduler.serving.engine.queue.planned_queue import PlannedQueue
from lengthwise.scheduler.serving.engine.requests.request_table import RequestTable
from lengthwise.scheduler.serving.settings import ServerSettings


@dataclass(frozen=True, slots=True)
class Decision:
    """What the engine is to do before its next step, beside taking the queue as it stands.

    ``preempt`` names running requests that give up their slots; ``max_running`` is how many may
    have one and ``max_prefill_tokens`` how many prompt tokens the step may take beside its decodes,
    None for as many as the engine would. A step that ``rests`` takes none while anybody decodes.
    """

    preempt: list[str] = field(default_factory=list)
    max_running: int | None = None
    max_prefill_tokens: int | None = None
    rests: bool = False

    @property
    def limits_prefill(self) -> bool:
        """Whether prompt tokens of the step are limited at all."""
        return self.rests or self.max_prefill_tokens is not None


class StepDecisions:
    """Puts plans in force and lifts them, and asks for the next.

    ``paused`` is whether the engine is, as it said itself or before the last step.
    """

    def __init__(
        self,
        settings: ServerSettings,
        table: RequestTable,
        queue: PlannedQueue,
        ages: QueueAges,
        planner: Planner,
        snapshots: SnapshotSource,
        metrics: EngineMetrics,
        hold_back: HoldBack,
    ) -> None:
        self._settings = settings
        self._table = table
        self._queue = queue
        self._ages = ages
        self._planner = planner
        self._snapshots = snapshots
        self._metrics = metrics
        self._hold_back = hold_back
        self.in_force = PlanInForce()
        self.paused = False
        self._nobody_waited = False  # since the snapshot that the thread plans for
        self._keeps_bound = False  # whether the plan in force shares the bound on waiting by tenant
        self._deferred: list[tuple[float, str]] = []  # when who goes to the end, the next one last

    def before_step(
        self,
        free_slots: int,
        running: Callable[[], Running],
        now_s: float,
        *,
        paused: bool,
        may_yield: bool,
        held_slots: int = 0,
        rested_steps: float = math.inf,
    ) -> Decision:
        """Bring the queue in order; what else the engine is to do before it takes from it.

        While the engine is ``paused`` no plan holds: whoever runs, runs on. A plan's limit is on
        those that run, beside ``held_slots`` of who does not.
        """
        planner, queue = self._planner, self._queue
        queue.unpin()
        planned = planner.finished(now_s) if self._settings.plan_in_thread else None
        if not planner.busy:
            self._table.release()
        self.lift_if_nobody_waits()
        if planned is not None and (paused or self._nobody_waited):
            planner.figures.drop("paused" if paused else "idle")
            planned = None
        self.paused = paused
        if paused:
            self._lift()
        if paused or not queue:
            return Decision()
        if not self._settings.plan_in_thread and planner.due(now_s):
            try:
                self._nobody_waited = False
                pending = self._snapshots.take(running(), now_s)
                planned = None if pending is None else planner.plan_now(pending)
            except Exception as error:  # a plan is advice
                planner.fall_back("plan", error)
        preempt: list[str] = []
        if planned is not None:
            self._hold_back.end()
            preempt = self._adopt(planned, free_slots, now_s, may_yield)
        elif self._held_back(running, free_slots, now_s):
            resumed = min(queue.recovery_count, free_slots)
            return Decision(max_running=planner.capacity.max_num_seqs - free_slots + resumed)
        if self.in_force.stale(now_s):
            planner.fall_back("stale-plan", f"{self.in_force.age_s(now_s):.1f} s old")
            self._lift()
            queue.clear_order()
        while self._deferred and self._deferred[-1][0] < now_s:
            queue.defer(self._deferred.pop()[1])
        if not self._keeps_bound:
            overdue_s = now_s - self._settings.max_wait_s
            self._ages.promote_overdue(overdue_s, free_slots + len(preempt))
        limits = self.in_force
        most = None if limits.max_running is None else limits.max_running + held_slots
        return Decision(preempt, most, limits.max_prefill_tokens, limits.rests(rested_steps))

    def plan_ahead(self, running: Callable[[], Running], now_s: float) -> None:
        """While the device computes the step, the thread plans for those who still wait."""
        due = self._settings.plan_in_thread and not self.paused and self._planner.due(now_s)
        if due and self._queue and (pending := self._snapshots.take(running(), now_s)) is not None:
            self._table.hold()
            self._nobody_waited = False
            self._planner.start(pending)

    def _held_back(self, running: Callable[[], Running], free_slots: int, now_s: float) -> bool:
        """Whether newcomers stay out of this step, for the plan that the thread makes.

        Not where nobody runs, who could lose by it; and not those who ran before.
        """
        at_rest = free_slots >= self._planner.capacity.max_num_seqs
        if not self._settings.plan_in_thread or self.in_force.holds or at_rest:
            return False
        try:
            recovering = self._queue.recovery_count
            newcomers = min(len(self._queue), free_slots) - recovering
            if newcomers <= 0 or not self._hold_back.holds(newcomers, now_s):
                return False
            self.plan_ahead(running, now_s)
        except Exception as error:  # a plan is advice
            self._planner.fall_back("hold", error)
            return False
        return self._planner.busy

    def lift_if_nobody_waits(self) -> None:
        """A plan is over with those it was for, also one that the thread still makes."""
        if not self._queue:
            self._nobody_waited = True
            self._hold_back.reset()
            self._lift()

    def status(self, now_s: float) -> dict[str, Any]:
        """Plain values of the plan in force."""
        return {
            "adopted": self.in_force.adopted,
            "age_s": self.in_force.age_s(now_s),
            "max_running": self.in_force.max_running,
            "max_prefill_tokens": self.in_force.max_prefill_tokens,
            "prefill_period": self.in_force.prefill_period,
        }

    def _adopt(self, planned: Planned, free_slots: int, now_s: float, may_yield: bool) -> list[str]:
        """Put a plan in force, as far as it still fits; who is to give up its slot.

        Whoever left the queue since is skipped, newcomers stand behind by arrival.
        """
        plan, queue, planner = planned.plan, self._queue, self._planner
        if plan is None:
            self._lift()
            queue.clear_order()
            return []
        self.in_force.adopt(plan, planned.taken_s, planner.interval_s, planner.pace_s)
        if planner.has_changed:
            self.in_force.note_change(now_s)
        queue.set_order(planned.order)
        self._deferred = planned.deferred
        self._keeps_bound = planned.by_tenant
        self._metrics.plans_adopted.inc()
        if not may_yield:
            return []
        # A slot that has become free since need not be taken from anybody.
        needed = max(0, len(queue) - max(0, free_slots))
        running = (n for n in planned.preempt if n in self._table and queue.may_displace(n))
        return [name for name in running if name not in queue][:needed]

    def _lift(self) -> None:
        self.in_force.lift()
        self._deferred = []
        self._queue.reinstate()
        self._keeps_bound = False
