"""What the engine process knows of its requests and of its steps; names no engine.

An adapter translates its engine's calls into these, one a hook:

    arrived -> before_step -> gave_up_slot ... -> stepped -> step_ended -> ended

Times are seconds on the monotonic clock, ``unix_s`` on the wall clock; both are arguments. What is
kept here is advice: whatever fails in ``advice`` is counted and logged, and serving goes on. What
the engine is to do before a step is ``step_decisions``'.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from lengthwise.data.request_log import limited_writer
from lengthwise.scheduler.problem import Capacity
from lengthwise.scheduler.profile import load_profile
from lengthwise.scheduler.serving.engine.engine_metrics import EngineMetrics
from lengthwise.scheduler.serving.engine.observed.drift_watch import DriftWatch
from lengthwise.scheduler.serving.engine.observed.length_fits import LengthFits
from lengthwise.scheduler.serving.engine.observed.outcomes import OutcomeRecorder
from lengthwise.scheduler.serving.engine.observed.refit import StepTimeRefit
from lengthwise.scheduler.serving.engine.observed.sequence_outcome import TELLS_LENGTH, Outcome
from lengthwise.scheduler.serving.engine.observed.start_order import InStartOrder
from lengthwise.scheduler.serving.engine.observed.steps import (
    StepFeatures,
    StepTimer,
    TokensPerStep,
)
from lengthwise.scheduler.serving.engine.observed.unsure_ends import End, UnsureEnds
from lengthwise.scheduler.serving.engine.plans.hold_back import HoldBack
from lengthwise.scheduler.serving.engine.plans.planning import Planner
from lengthwise.scheduler.serving.engine.plans.snapshots import Running, SnapshotSource
from lengthwise.scheduler.serving.engine.plans.step_decisions import Decision, StepDecisions
from lengthwise.scheduler.serving.engine.queue.ages import QueueAges, RunningDeadlines
from lengthwise.scheduler.serving.engine.queue.planned_queue import PlannedQueue
from lengthwise.scheduler.serving.engine.requests.cached_share import CachedShare
from lengthwise.scheduler.serving.engine.requests.intake import Arrival, Intake
from lengthwise.scheduler.serving.engine.requests.prefixes import PrefixGroups, PrefixLooks
from lengthwise.scheduler.serving.engine.requests.progress import Progress
from lengthwise.scheduler.serving.engine.requests.reestimates import Reestimates
from lengthwise.scheduler.serving.engine.requests.request_table import RequestTable, Tracked
from lengthwise.scheduler.serving.engine.requests.tenants import TenantIds
from lengthwise.scheduler.serving.priors import load_priors
from lengthwise.scheduler.serving.settings import DEFAULT_PROFILE, LOGGER_NAME, ServerSettings

logger = logging.getLogger(LOGGER_NAME)

_GAUGE_PERIOD_S = 1.0


class Core:
    """Queue, table, plans, outcomes and tallies of one engine.

    ``may_yield`` says whether the engine can take slots back. ``generated_tokens`` are the answer
    tokens of a request so far, None for one that is gone; ``cached_tokens`` asks the prefix cache
    about a queued request, None for one without; its blocks have ``block_tokens``.
    ``draft_tokens`` are proposed by speculation for each decoding sequence and step.
    ``versions`` are this package's and the engine's, by name.
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
        generated_tokens: Callable[[str], int | None],
        block_tokens: int = 16,
        cached_tokens: Callable[[str], int | None] | None = None,
        draft_tokens: int = 0,
        versions: Mapping[str, str | None],
    ) -> None:
        self.settings = settings
        self.queue = queue
        self.metrics = metrics
        self.max_model_len = max_model_len
        self.may_yield = may_yield
        self.slots = capacity.max_num_seqs
        priors = load_priors(settings.predictor_dir)
        profile = load_profile(settings.profile or DEFAULT_PROFILE)
        self.planner = Planner(settings, capacity, profile.step_time, metrics)
        self.intake = Intake(
            settings.slos,
            priors,
            settings.lengths,
            self.planner.fall_back,
            settings.length_residual,
        )
        self.intake.predictor_dir = settings.predictor_dir
        self.table = RequestTable(priors.levels, TenantIds(settings.tenant_weights))
        self.reestimates = Reestimates(self.table, self.intake)
        log = None
        if settings.request_log is not None:
            log = limited_writer(
                settings.request_log,
                max_mb=settings.request_log_max_mb,
                max_age_days=settings.request_log_max_age_days,
            )
        self.outcomes = OutcomeRecorder(priors.levels, metrics, log, settings.logs_features)
        self.timer = StepTimer(log_path=settings.step_log if settings.log_steps else None)
        self.refit = StepTimeRefit(settings.refit_steps, profile.step_time, capacity)
        self.length_fits = LengthFits(settings.length_residual, settings.plan_in_thread)
        self.tokens_per_step = TokensPerStep(draft_tokens)
        self.cached_share = CachedShare()
        self.drift = DriftWatch(priors.levels, metrics)
        self.unsure_ends = UnsureEnds()
        self._start_order = InStartOrder(generated_tokens, self.intake.long_answer)
        self.block_tokens = block_tokens
        self.caches_prefixes = cached_tokens is not None
        self._groups = PrefixGroups(self.table)
        self.generated_tokens = generated_tokens
        self.snapshots = SnapshotSource(
            self.table,
            queue,
            self.planner,
            self.tokens_per_step,
            self.timer,
            generated_tokens,
            cached_tokens,
            settings.fair_tenants,
        )
        self._looks = None
        if cached_tokens is not None:
            self._looks = PrefixLooks(self.table, queue, cached_tokens)
        self._ages = QueueAges(self.table, queue)
        self._deadlines = RunningDeadlines(self.table, queue)
        self.progress = Progress(self.table, metrics, generated_tokens)
        self.decisions = StepDecisions(
            settings,
            self.table,
            queue,
            self._ages,
            self.planner,
            self.snapshots,
            metrics,
            HoldBack(self.table, self.planner, self.timer, self.tokens_per_step),
        )
        self.yields = 0
        self.running_count = 0
        self._gauges_at_s = 0.0
        self.versions = versions
        metrics.show_server(settings.plan_budget_ms / 1e3, settings.max_wait_s, versions)
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
        before = self.intake.without_text
        tracked = self.intake.track(arrival, self.intake.hints(xargs), now_s, unix_s)
        self.metrics.without_text.inc(self.intake.without_text - before)
        self.table.add(tracked)
        self.reestimates.arrived(tracked)
        self.outcomes.began(tracked)
        self.metrics.class_label(tracked.slo.slo_class)
        self._ages.add(tracked.request_id, tracked.arrival_s)
        if self._looks is not None:
            self._groups.add(tracked.request_id, arrival.block_hashes, self.block_tokens)
            self._looks.add(tracked.request_id)
        self.planner.note_arrival(now_s)
        self.decisions.in_force.note_change(now_s)

    def reestimated(self, said: Sequence[Any], now_s: float) -> None:
        """Better estimates came from the API process (``wire.reestimate``, as plain values)."""
        if self.reestimates.apply(said):
            self.planner.changed()
            self.decisions.in_force.note_change(now_s)

    def gave_up_slot(self, request_id: str, generated_tokens: int, now_s: float) -> None:
        """A plan's preemption was carried out: the request, queued again, waits behind it."""
        tracked = self.table.get(request_id)
        if tracked is None:
            return
        self.queue.demote(request_id)
        self.table.note_yield(tracked, now_s, generated_tokens)
        self._ages.add(request_id, now_s)
        if self._looks is not None:
            self._looks.add(request_id)
        self.yields += 1
        self.metrics.yields.inc()

    def ended(
        self, request_id: str, status: str, output_tokens: int, now_s: float, unix_s: float
    ) -> None:
        """A request ended, with an ``Outcome``'s status; once is counted."""
        self.progress.ended(request_id)
        self.queue.forget(request_id)
        self._groups.remove(request_id)
        tracked = self.table.remove(request_id)
        if tracked is None:
            return
        self.reestimates.ended(tracked)
        if tracked.first_token_s is None and output_tokens > 0:
            tracked.first_token_s = now_s
        end = End(tracked, status, output_tokens, now_s, unix_s)
        if end.is_unsure:
            self.unsure_ends.hold(end)
        else:
            self._conclude(end)
        self.planner.changed()
        self.decisions.in_force.note_change(now_s)
        self.decisions.lift_if_nobody_waits()

    def left_early(self, said: Sequence[Any]) -> None:
        """The API process says of requests that were dropped what they were."""
        for end in self.unsure_ends.told(said):
            self._conclude(end)

    def conclude_overdue(self, now_s: float) -> None:
        """Take for given up what was dropped and never spoken of."""
        for end in self.unsure_ends.overdue(now_s):
            self._conclude(end)

    def _conclude(self, end: End) -> None:
        """Book an end, and learn from it."""
        tracked, tells_length = end.tracked, end.status in TELLS_LENGTH and end.output_tokens > 0
        outcome = Outcome.of(tracked, end.status, end.output_tokens, end.now_s)
        self.record(tracked, outcome)
        self._start_order.ended(
            tracked, end.output_tokens if tells_length else None, cut=end.status == "length"
        )
        self._learn_lengths(end.unix_s)
        met = outcome.met(tracked)
        if met is not None:
            self.planner.note_outcome(tracked.arrival_s, met)

    def _learn_lengths(self, unix_s: float) -> None:
        for told in self._start_order.ready():
            self.intake.note_length(told.tracked, told.output_tokens, told.cut)
            with self.advice("drift"):
                self.drift.note(told.tracked, told.output_tokens, told.cut, unix_s)

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
        self,
        running_count: int,
        running: Callable[[], Running],
        now_s: float,
        *,
        paused: bool = False,
        held_slots: int = 0,
    ) -> Decision:
        """Bring the queue in order; what else the engine is to do before it takes from it.

        While the engine is ``paused`` no plan holds; ``held_slots`` are taken by who does not run.
        """
        if self._deadlines.passed(now_s) and self.may_yield:
            self.planner.changed()
        free_slots = self.slots - running_count - held_slots
        return self.decisions.before_step(
            free_slots,
            running,
            now_s,
            paused=paused,
            may_yield=self.may_yield,
            held_slots=held_slots,
            rested_steps=self.timer.rested_steps,
        )

    def stepped(
        self,
        admitted: Sequence[str],
        features: StepFeatures | None,
        running: Callable[[], Running],
        now_s: float,
        cached_tokens: Sequence[int] = (),
    ) -> None:
        """The engine built a step with these newly admitted; no features when it is empty.

        ``cached_tokens`` of the admitted were in the prefix cache, where the engine says so. While
        the device computes the step, the thread plans for those who still wait.
        """
        for place, request_id in enumerate(admitted):
            tracked = self.table.get(request_id)
            if tracked is not None and tracked.admitted_s is None:
                if place < len(cached_tokens):
                    cached, slo_class = cached_tokens[place], tracked.slo.slo_class
                    self.cached_share.note(slo_class, tracked.prompt_tokens, cached)
                self.progress.admitted(tracked, now_s)
                self._start_order.started(tracked)
                self._deadlines.add(tracked)
        self.queue.settle()
        self.decisions.lift_if_nobody_waits()
        if features is not None:
            self.timer.begin(features, now_s)
        if self._looks is not None and self.queue:
            self._looks.look()
        self.decisions.plan_ahead(running, now_s)

    def step_ended(
        self,
        worked: bool,
        running_count: int,
        now_s: float,
        unix_s: float,
    ) -> None:
        """A step's tokens were booked."""
        self.running_count = running_count
        self.decisions.in_force.step_ended()
        if worked:
            took_s = self.timer.end(now_s, unix_s, running_count, len(self.queue))
            if took_s is not None:
                self.planner.note_step(self.timer.ended_features, took_s)
            model = self.refit.poll(self.timer, self.planner.fitted)
            if model is not None:
                self.planner.believe(model)
        self.progress.note_first_tokens(now_s)
        # An engine that comes to rest takes no further step that would correct its gauges.
        resting = not running_count and not self.queue
        if resting or now_s - self._gauges_at_s > _GAUGE_PERIOD_S:
            self.update_gauges(now_s)

    # -- tallies ------------------------------------------------------------------------------

    def reset_stats(self) -> None:
        """Start every tally afresh, and what was learned of this model's lengths."""
        self.planner.reset_stats()
        self.outcomes.reset()
        self.intake.forget_lengths()
        self.drift.reset()
        self.progress.longest_wait_s = 0.0

    def update_gauges(self, now_s: float) -> None:
        """What is due once a second: the gauges of ``/metrics``, and a fit of the residual."""
        self._gauges_at_s = now_s
        self.conclude_overdue(now_s)
        self.metrics.queued.set(len(self.queue))
        self.metrics.plan_age.set(self.decisions.in_force.age_s(now_s))
        self.metrics.plan_share.set(self.planner.figures.share(now_s))
        self.planner.figures.show_trust(self.planner.policy_status.get("trust", {}))
        oldest = self._ages.oldest()
        oldest_s = now_s - oldest[0] if oldest else 0.0
        self.metrics.oldest_wait.set(oldest_s)
        self.metrics.longest_wait.set(max(oldest_s, self.progress.longest_wait_s))
        self.outcomes.count_dropped()
        self.outcomes.tenants.update_gauge(now_s)
        self.drift.update_gauges()
        with self.advice("length residual"):
            self.length_fits.poll(self.intake.online, now_s)
        self.metrics.length_residual.set(float(self.intake.online.in_force))
        for name, factor in self.intake.online.correction.learned().items():
            self.metrics.length_factor.labels(self.metrics.class_label(name)).set(factor)

    def close(self) -> None:
        """Flush the logs and stop the threads."""
        self.conclude_overdue(math.inf)
        self.planner.close()
        self.outcomes.close()
        self.timer.close()
        self.refit.close()
        self.length_fits.close()
