"""What the engine process knows of its requests, and what it decides; names no engine.

``engine/scheduler.py`` translates vLLM's calls into these, one a hook:

    arrived -> before_step -> gave_up_slot ... -> stepped -> step_ended -> ended

Times are seconds on the monotonic clock, ``unix_s`` on the wall clock; both are arguments. What is
kept here is advice: whatever fails in ``advice`` is counted and logged, and serving goes on.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from lengthwise.data.request_log import limited_writer
from lengthwise.scheduler.problem import Capacity
from lengthwise.scheduler.profile import load_profile
from lengthwise.scheduler.vllm_adapter.engine.ages import QueueAges, RunningDeadlines
from lengthwise.scheduler.vllm_adapter.engine.drift import DriftWatch
from lengthwise.scheduler.vllm_adapter.engine.intake import Arrival, Intake
from lengthwise.scheduler.vllm_adapter.engine.metrics import EngineMetrics
from lengthwise.scheduler.vllm_adapter.engine.outcomes import Outcome, OutcomeRecorder
from lengthwise.scheduler.vllm_adapter.engine.planned_queue import PlannedQueue
from lengthwise.scheduler.vllm_adapter.engine.planning import Planner, Tenants
from lengthwise.scheduler.vllm_adapter.engine.refit import StepTimeRefit
from lengthwise.scheduler.vllm_adapter.engine.steps import StepFeatures, StepTimer
from lengthwise.scheduler.vllm_adapter.engine.table import RequestTable, Tracked
from lengthwise.scheduler.vllm_adapter.engine.tenants import TenantIds
from lengthwise.scheduler.vllm_adapter.priors import load_priors
from lengthwise.scheduler.vllm_adapter.settings import LOGGER_NAME, ServerSettings
from lengthwise.scheduler.vllm_adapter.supported import versions

logger = logging.getLogger(LOGGER_NAME)

_DEFAULT_PROFILE = "tiny-cpu"
_GAUGE_PERIOD_S = 1.0


@dataclass(frozen=True, slots=True)
class Running:
    """The running requests in the engine's order: answer tokens so far, prompt tokens to come."""

    ids: Sequence[str]
    generated_tokens: Sequence[int]
    prefill_left_tokens: Sequence[int]


@dataclass(frozen=True, slots=True)
class Decision:
    """What the engine is to do before its next step, beside taking the queue as it stands.

    ``preempt`` names running requests that give up their slots; ``max_running`` is how many may
    run, None for as many as the engine would.
    """

    preempt: list[str] = field(default_factory=list)
    max_running: int | None = None


class Core:
    """Queue, table, plans, outcomes and tallies of one engine.

    ``may_yield`` says whether the engine can take slots back; ``slots`` how many may run.
    """

    def __init__(
        self,
        settings: ServerSettings,
        queue: PlannedQueue,
        metrics: EngineMetrics,
        capacity: Capacity,
        *,
        max_model_len: int,
        may_yield: bool,
    ) -> None:
        self.settings = settings
        self.queue = queue
        self.metrics = metrics
        self.max_model_len = max_model_len
        self.may_yield = may_yield
        self.slots = capacity.max_num_seqs
        priors = load_priors(settings.predictor_dir)
        profile = load_profile(settings.profile or _DEFAULT_PROFILE)
        self.planner = Planner(settings, capacity, profile.step_time, metrics)
        self.intake = Intake(settings.slos, priors, settings.lengths, self.planner.fall_back)
        self.intake.predictor_dir = settings.predictor_dir
        self.table = RequestTable(priors.levels, TenantIds(settings.tenant_weights))
        log = None
        if settings.request_log is not None:
            log = limited_writer(
                settings.request_log,
                max_mb=settings.request_log_max_mb,
                max_age_days=settings.request_log_max_age_days,
            )
        self.outcomes = OutcomeRecorder(priors.levels, metrics, log)
        self.timer = StepTimer(log_path=settings.step_log if settings.log_steps else None)
        self.refit = StepTimeRefit(settings.refit_steps)
        self.drift = DriftWatch(priors.levels, metrics)
        self._ages = QueueAges(self.table, queue)
        self._deadlines = RunningDeadlines(self.table, queue)
        self._without_token: set[str] = set()
        self._max_running: int | None = None
        self._slo_lost = False  # a running request lost its SLO since the last plan
        self._yields = 0
        self._longest_wait_s = 0.0
        self._gauges_at_s = 0.0
        self._running = 0
        metrics.show_server(
            settings.plan_budget_ms / 1e3, settings.max_wait_s, *versions().values()
        )
        logger.info(
            "lengthwise schedules: policy %s, lengths %s, predictor %s, step time %s",
            settings.policy,
            settings.lengths,
            settings.predictor_version or settings.predictor_dir,
            profile.name,
        )

    @contextmanager
    def advice(self, where: str) -> Iterator[None]:
        """What we add must never stop the engine: a fault is counted and logged, not raised."""
        try:
            yield
        except Exception as error:
            self.planner.fall_back(where, error)

    # -- the life of a request ----------------------------------------------------------------

    def arrived(self, arrival: Arrival, xargs: Any, now_s: float, unix_s: float) -> None:
        """A request was queued, with these arguments of the API process and the client."""
        tracked = self.intake.track(arrival, self.intake.hints(xargs), now_s, unix_s)
        self.table.add(tracked)
        self.metrics.class_label(tracked.slo.slo_class)
        self._ages.add(tracked.request_id, tracked.arrival_s)
        self.planner.note_arrival(now_s)

    def gave_up_slot(self, request_id: str, generated_tokens: int, now_s: float) -> None:
        """A plan's preemption was carried out: the request, queued again, waits behind it."""
        tracked = self.table.get(request_id)
        if tracked is None:
            return
        self.queue.demote(request_id)
        self.table.note_yield(tracked, now_s, generated_tokens)
        self._ages.add(request_id, now_s)
        self._yields += 1
        self.metrics.yields.inc()

    def ended(
        self, request_id: str, status: str, output_tokens: int, now_s: float, unix_s: float
    ) -> None:
        """A request ended (``finished``, ``length``, ``aborted``, ``failed``); once is counted."""
        self._without_token.discard(request_id)
        self.queue.forget(request_id)
        tracked = self.table.remove(request_id)
        if tracked is None:
            return
        if tracked.first_token_s is None and output_tokens > 0:
            tracked.first_token_s = now_s
        outcome = Outcome.of(tracked, status, output_tokens, now_s)
        self.record(tracked, outcome)
        answered = status in ("finished", "length")
        if answered:
            self.intake.note_length(tracked, output_tokens, cut=status == "length")
        self.planner.changed()
        if answered and output_tokens > 0:
            with self.advice("drift"):
                self.drift.note(tracked, output_tokens, status == "length", unix_s)

    def record(self, tracked: Tracked, outcome: Outcome) -> None:
        """Count an outcome and write its row."""
        self.outcomes.record(
            tracked,
            outcome,
            self.planner.policy.name,
            self.intake.lengths,
            self.planner.policy_version,
        )

    # -- the life of a step -------------------------------------------------------------------

    def before_step(
        self, running_count: int, running: Callable[[], Running], now_s: float
    ) -> Decision:
        """Bring the queue in order; what else the engine is to do before it takes from it."""
        if not self.queue:
            self._max_running = None
            return Decision()
        free_slots = self.slots - running_count
        self._slo_lost |= self._deadlines.passed(now_s) and self.may_yield
        preempt: list[str] = []
        if free_slots > 0 or self._slo_lost:
            if len(self.queue) > 1 and self.planner.gate.due(now_s):
                preempt = self._plan(running(), now_s)
            if not self.planner.keeps_bound:
                overdue_s = now_s - self.settings.max_wait_s
                self._ages.promote_overdue(overdue_s, free_slots + len(preempt))
        return Decision(preempt, self._max_running)

    def stepped(self, admitted: Sequence[str], features: StepFeatures | None, now_s: float) -> None:
        """The engine built a step with these newly admitted; no features when it is empty."""
        for request_id in admitted:
            tracked = self.table.get(request_id)
            if tracked is not None and tracked.admitted_s is None:
                tracked.admitted_s = now_s
                wait_s = now_s - tracked.arrival_s
                self.metrics.wait.observe(wait_s)
                self._longest_wait_s = max(self._longest_wait_s, wait_s)
                self._without_token.add(request_id)
                self._deadlines.add(tracked)
        self.queue.settle()
        if features is not None:
            self.timer.begin(features, now_s)

    def step_ended(
        self,
        worked: bool,
        running_count: int,
        generated_tokens: Callable[[str], int | None],
        now_s: float,
        unix_s: float,
    ) -> None:
        """A step's tokens were booked; ``generated_tokens`` of a request, None for one gone."""
        self._running = running_count
        if worked:
            self.timer.end(now_s, unix_s, running_count, len(self.queue))
            model = self.refit.poll(self.timer, self.planner.step_time)
            if model is not None:
                self.planner.step_time = model
        if self._without_token:
            self._note_first_tokens(generated_tokens, now_s)
        # An engine that comes to rest takes no further step that would correct its gauges.
        resting = not running_count and not self.queue
        if resting or now_s - self._gauges_at_s > _GAUGE_PERIOD_S:
            self.update_gauges(now_s)

    # -- what control and admission ask -------------------------------------------------------

    def tenants_of(self, waiting_ids: Sequence[str], running_ids: Sequence[str]) -> Tenants | None:
        """Whose rows a problem's are; None for one tenant alone, or when fairness is off."""
        table = self.table
        if not self.settings.fair_tenants or len(table.tenants) < 2:
            return None
        return Tenants(
            table.tenant_ids(waiting_ids), table.tenant_ids(running_ids), table.tenants.weights()
        )

    def note_progress(self, running: Running) -> list[str]:
        """Bring the running rows up to date; the ids of those that are tracked."""
        known = [index for index, name in enumerate(running.ids) if name in self.table]
        ids = [running.ids[index] for index in known]
        self.table.note_progress(
            ids,
            [running.prefill_left_tokens[index] for index in known],
            [running.generated_tokens[index] for index in known],
        )
        return ids

    def status(self, now_s: float) -> dict[str, Any]:
        """Plain values for the status endpoint; each part says its own."""
        return {
            "policy": self.planner.policy.name,
            "policy_version": self.planner.policy_version,
            "lengths": self.intake.lengths,
            "predictor_dir": self.intake.predictor_dir,
            "versions": versions(),
            "queue": self._queue_status(),
            "capacity": self.planner.capacity_status(),
            "plan": self.planner.status(),
            "step_time": self.planner.step_time.to_dict()
            | {"steps": self.timer.steps, "refits": self.refit.adopted},
            "outcomes": self.outcomes.by_class(),
            "tenants": self.outcomes.tenants.status(now_s)
            | {"active": len(self.table.tenants), "fair": self.settings.fair_tenants},
            "length_correction": self.intake.correction.learned(),
            "drift": self.drift.status(),
            "request_log_dropped": self.outcomes.dropped_rows,
            "tracked": len(self.table),
        }

    def reset_stats(self) -> None:
        """Start every tally afresh, and what was learned of this model's lengths."""
        self.planner.reset_stats()
        self.outcomes.reset()
        self.intake.forget_correction()
        self.drift.reset()
        self._longest_wait_s = 0.0

    def update_gauges(self, now_s: float) -> None:
        """Bring the gauges of ``/metrics`` up to date."""
        self._gauges_at_s = now_s
        self.metrics.queued.set(len(self.queue))
        oldest = self._ages.oldest()
        oldest_s = now_s - oldest[0] if oldest else 0.0
        self.metrics.oldest_wait.set(oldest_s)
        self.metrics.longest_wait.set(max(oldest_s, self._longest_wait_s))
        self.outcomes.count_dropped()
        self.outcomes.tenants.update_gauge(now_s)
        self.drift.update_gauges()
        for name, factor in self.intake.correction.learned().items():
            self.metrics.length_factor.labels(self.metrics.class_label(name)).set(factor)

    def close(self) -> None:
        """Flush the logs and stop the threads."""
        self.outcomes.close()
        self.timer.close()
        self.refit.close()

    # -- internals ----------------------------------------------------------------------------

    def _plan(self, running: Running, now_s: float) -> list[str]:
        """Plan now and put the queue in that order; who is to give up its slot."""
        ids = self.table.known(self.queue.plannable_ids())
        if len(ids) < 2:
            return []
        self._slo_lost = False
        running_ids = self.note_progress(running)
        planned = self.planner.order(
            ids,
            self.table.arrays(ids),
            self.table.arrays(running_ids),
            self.table.levels,
            self.tenants_of(ids, running_ids),
        )
        self._max_running = None
        if planned is None:
            self.queue.clear_order()
            return []
        order, plan = planned
        self.queue.set_order(order)
        self._max_running = plan.max_running
        return [running_ids[row] for row in plan.preempt] if self.may_yield else []

    def _queue_status(self) -> dict[str, Any]:
        by_class: dict[str, int] = {}
        for request in self.queue:
            tracked = self.table.get(request.request_id)
            name = tracked.slo.slo_class if tracked else "unknown"
            by_class[name] = by_class.get(name, 0) + 1
        return {
            "waiting": len(self.queue),
            "recovering": self.queue.recovery_count,
            "running": self._running,
            "by_class": by_class,
            "longest_wait_s": self._longest_wait_s,
            "yields": self._yields,
            "max_wait_s": self.settings.max_wait_s,
        }

    def _note_first_tokens(
        self, generated_tokens: Callable[[str], int | None], now_s: float
    ) -> None:
        for request_id in list(self._without_token):
            generated = generated_tokens(request_id)
            tracked = self.table.get(request_id)
            if generated is None or tracked is None:
                self._without_token.discard(request_id)
            elif generated > 0:
                self.table.note_first_token(tracked, now_s)
                self._without_token.discard(request_id)
