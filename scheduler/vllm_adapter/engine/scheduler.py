"""The engine's scheduler: vLLM's own, with a planned waiting queue and measured outcomes.

Everything about batching, chunked prefill, caching and preemption stays vLLM's; each override
calls ``super()`` and adds one thing.

| our quantity                     | vLLM hook                    | why this hook                  |
|----------------------------------|------------------------------|--------------------------------|
| order of admission               | ``self.waiting``             | ``schedule`` peeks and pops it |
| arrival, SLO, predicted length   | ``add_request``              | every request passes it once   |
| when to plan                     | before ``schedule``          | the order is needed there      |
| a slot taken back                | ``_preempt_request``         | vLLM's own way, before a step  |
| work of a step, admissions       | after ``schedule``           | its output lists both          |
| step duration, first tokens      | after ``update_from_output`` | a step's tokens exist there    |
| finish, length cap, abort, error | ``_free_request``            | all ends pass it, aborts too   |

Subclasses ``AsyncScheduler``: with the plain ``Scheduler`` vLLM would switch asynchronous
scheduling off.
"""

from __future__ import annotations

import inspect
import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from vllm.v1.core.sched.async_scheduler import AsyncScheduler
from vllm.v1.request import Request, RequestStatus

from lengthwise.data.request_log import limited_writer
from lengthwise.scheduler.problem import Capacity
from lengthwise.scheduler.profile import load_profile
from lengthwise.scheduler.vllm_adapter.engine import control
from lengthwise.scheduler.vllm_adapter.engine.admission import EngineAdmission
from lengthwise.scheduler.vllm_adapter.engine.ages import QueueAges, RunningDeadlines
from lengthwise.scheduler.vllm_adapter.engine.drift import DriftWatch
from lengthwise.scheduler.vllm_adapter.engine.intake import Intake
from lengthwise.scheduler.vllm_adapter.engine.metrics import engine_metrics
from lengthwise.scheduler.vllm_adapter.engine.outcomes import Outcome, OutcomeRecorder
from lengthwise.scheduler.vllm_adapter.engine.planned_queue import PlannedQueue
from lengthwise.scheduler.vllm_adapter.engine.planning import Planner, Tenants
from lengthwise.scheduler.vllm_adapter.engine.refit import StepTimeRefit
from lengthwise.scheduler.vllm_adapter.engine.steps import StepTimer
from lengthwise.scheduler.vllm_adapter.engine.table import RequestTable, Tracked
from lengthwise.scheduler.vllm_adapter.engine.tenants import TenantIds
from lengthwise.scheduler.vllm_adapter.priors import load_priors
from lengthwise.scheduler.vllm_adapter.settings import (
    LOGGER_NAME,
    ServerSettings,
    settings_from_additional_config,
)
from lengthwise.scheduler.vllm_adapter.supported import check_supported, versions

logger = logging.getLogger(LOGGER_NAME)

_DEFAULT_PROFILE = "tiny-cpu"
_GAUGE_PERIOD_S = 1.0

_STATUS = {
    RequestStatus.FINISHED_STOPPED: "finished",
    RequestStatus.FINISHED_LENGTH_CAPPED: "length",
    RequestStatus.FINISHED_ABORTED: "aborted",
}


class LengthwiseScheduler(AsyncScheduler):
    """``--scheduler-cls lengthwise.Scheduler``."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        check_supported()
        super().__init__(*args, **kwargs)
        assert not self.waiting, "the queue is replaced before any request arrives"
        self.waiting: PlannedQueue = PlannedQueue()
        settings = settings_from_additional_config(self.vllm_config.additional_config)
        self._settings: ServerSettings = settings
        metrics = engine_metrics()
        priors = load_priors(settings.predictor_dir)
        profile = load_profile(settings.profile or _DEFAULT_PROFILE)
        self._planner = Planner(settings, self._capacity(), profile.step_time, metrics)
        self._intake = Intake(settings.slos, priors, settings.lengths, self._planner.fall_back)
        self._table = RequestTable(priors.levels, TenantIds(settings.tenant_weights))
        self._predictor_dir = settings.predictor_dir
        log = None
        if settings.request_log is not None:
            log = limited_writer(
                settings.request_log,
                max_mb=settings.request_log_max_mb,
                max_age_days=settings.request_log_max_age_days,
            )
        self._outcomes = OutcomeRecorder(priors.levels, metrics, log)
        self._metrics = metrics
        self._admission = EngineAdmission(self) if settings.admission.mode != "off" else None
        self._timer = StepTimer(log_path=settings.step_log if settings.log_steps else None)
        self._refit = StepTimeRefit(settings.refit_steps)
        self._without_token: set[str] = set()
        self._ages = QueueAges(self._table, self.waiting)
        self._deadlines = RunningDeadlines(self._table, self.waiting)
        self._may_yield = self.connector is None and "drop_stale_output" in (
            inspect.signature(self._preempt_request).parameters
        )
        self._most_running = self._slots()
        self._slo_lost = False  # a running request lost its SLO since the last plan
        self._yields = 0
        self._longest_wait_s = 0.0
        self._gauges_at_s = 0.0
        self._drift = DriftWatch(priors.levels, metrics)
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

    # -- vLLM's hooks -------------------------------------------------------------------------

    def add_request(self, request: Request) -> None:
        """Queue a request and note who it is; a known id continues a streaming session."""
        known = request.request_id in self.requests
        super().add_request(request)
        if known:
            return
        with self._advice("arrival"):
            now_s = time.monotonic()
            tracked = self._intake.track(request, now_s, time.time())
            self._table.add(tracked)
            self._metrics.class_label(tracked.slo.slo_class)
            self._ages.add(tracked.request_id, tracked.arrival_s)
            self._planner.note_arrival(now_s)

    def schedule(self, *args: Any, **kwargs: Any) -> Any:
        """Plan if it is time, then let vLLM build the step from the queue's front."""
        if self.waiting:
            with self._advice("plan"):
                self._plan(time.monotonic())
        output = super().schedule(*args, **kwargs)
        with self._advice("step"):
            self._note_step(output)
        return output

    def update_from_output(self, scheduler_output: Any, *args: Any, **kwargs: Any) -> Any:
        """Let vLLM book the step's tokens, then time the step and note first tokens."""
        outputs = super().update_from_output(scheduler_output, *args, **kwargs)
        with self._advice("output"):
            self._note_output(bool(scheduler_output.total_num_scheduled_tokens))
        return outputs

    def _free_request(self, request: Request, *args: Any, **kwargs: Any) -> Any:
        """Every end of a request: record its outcome once, drop its state."""
        with self._advice("outcome"):
            self._note_end(request)
        return super()._free_request(request, *args, **kwargs)

    def shutdown(self) -> None:
        """Flush the logs, then vLLM's own."""
        self._outcomes.close()
        self._timer.close()
        self._refit.close()
        super().shutdown()

    # -- the control surface (control.py calls these) -----------------------------------------

    def lengthwise_status(self) -> dict[str, Any]:
        """Plain values for ``GET /lengthwise/status``."""
        return control.engine_status(self)

    def lengthwise_configure(self, request: dict[str, Any]) -> dict[str, Any]:
        """Apply a checked ``POST /lengthwise/configure``."""
        return control.engine_configure(self, request)

    def lengthwise_admit(self, question: dict[str, Any]) -> dict[str, Any]:
        """The verdict on a request that the API process holds back (``admission.py``)."""
        return {"action": "admit"} if self._admission is None else self._admission.answer(question)

    # -- internals ----------------------------------------------------------------------------

    @contextmanager
    def _advice(self, where: str) -> Iterator[None]:
        """What we add must never stop the engine: a fault is counted and logged, not raised."""
        try:
            yield
        except Exception as error:
            self._planner.fall_back(where, error)

    def _slots(self) -> int:
        """How many requests may run; before vLLM 0.31 admission had no limit of its own."""
        limit = getattr(self, "max_num_active_reqs", None)
        return int(self.max_num_running_reqs if limit is None else limit)

    def _limit_running(self, most: int | None) -> None:
        """Let at most so many run from now on (None: as many as vLLM would), where vLLM can."""
        if hasattr(self, "max_num_active_reqs"):
            limit = self._most_running if most is None else min(self._most_running, most)
            self.max_num_active_reqs: int = limit

    def _capacity(self) -> Capacity:
        blocks = int(self.cache_config.num_gpu_blocks or 1)
        return Capacity(
            max_num_seqs=self._slots(),
            kv_tokens=blocks * int(self.block_size),
            max_num_batched_tokens=int(self.max_num_scheduled_tokens),
        )

    def _plan(self, now_s: float) -> None:
        free_slots = self._slots() - len(self.running)
        self._slo_lost |= self._deadlines.passed(now_s) and self._may_yield
        if free_slots <= 0 and not self._slo_lost:
            return
        if len(self.waiting) > 1 and self._planner.gate.due(now_s):
            ids = self._table.known(self.waiting.plannable_ids())
            if len(ids) > 1:
                self._slo_lost = False
                running_ids = self._running_ids()
                planned = self._planner.order(
                    ids,
                    self._table.arrays(ids),
                    self._table.arrays(running_ids),
                    self._table.levels,
                    self._tenants(ids, running_ids),
                )
                self._limit_running(None)
                if planned is None:
                    self.waiting.clear_order()
                else:
                    order, plan = planned
                    self.waiting.set_order(order)
                    if self._may_yield:
                        self._take_slots([running_ids[row] for row in plan.preempt], now_s)
                    self._limit_running(plan.max_running)
                free_slots = self._slots() - len(self.running)
        if not self._planner.keeps_bound:
            self._ages.promote_overdue(now_s - self._settings.max_wait_s, free_slots)

    def _tenants(self, waiting_ids: list[str], running_ids: list[str]) -> Tenants | None:
        """Whose rows a problem's are; None for one tenant alone, or when fairness is off."""
        table = self._table
        if not self._settings.fair_tenants or len(table.tenants) < 2:
            return None
        return Tenants(
            table.tenant_ids(waiting_ids), table.tenant_ids(running_ids), table.tenants.weights()
        )

    def _take_slots(self, request_ids: list[str], now_s: float) -> None:
        """Preempt running requests for the plan's head; they queue again behind it.

        What vLLM has in flight for them is dropped and sampled anew, so that nothing is answered
        twice or out of order whenever they resume.
        """
        for request_id in request_ids:
            request, tracked = self.requests.get(request_id), self._table.get(request_id)
            if request is None or tracked is None or request.status != RequestStatus.RUNNING:
                continue
            self.running.remove(request)
            self._preempt_request(request, now_s, drop_stale_output=True)
            self.prev_step_scheduled_req_ids.discard(request_id)
            self.waiting.demote(request_id)
            self._table.note_yield(tracked, now_s, int(request.num_output_tokens))
            self._ages.add(request_id, now_s)
            self._yields += 1
            self._metrics.yields.inc()

    def _running_ids(self) -> list[str]:
        """Ids of the tracked running requests, their progress noted."""
        ids = []
        for request in self.running:
            tracked = self._table.get(request.request_id)
            if tracked is None:
                continue
            generated = int(request.num_output_tokens)
            left = int(request.num_prompt_tokens) + generated - int(request.num_computed_tokens)
            # A decoding request always has its newest token still to compute: not a prefill.
            self._table.note_progress(tracked, left if left > 1 else 0, generated)
            ids.append(request.request_id)
        return ids

    def _note_step(self, output: Any) -> None:
        now_s = time.monotonic()
        for new in output.scheduled_new_reqs:
            tracked = self._table.get(new.req_id)
            if tracked is not None and tracked.admitted_s is None:
                tracked.admitted_s = now_s
                wait_s = now_s - tracked.arrival_s
                self._metrics.wait.observe(wait_s)
                self._longest_wait_s = max(self._longest_wait_s, wait_s)
                self._without_token.add(new.req_id)
                self._deadlines.add(tracked)
        self.waiting.settle()
        total = int(output.total_num_scheduled_tokens)
        if total:
            self._timer.begin(self._features(output, total), now_s)

    def _features(self, output: Any, total: int) -> tuple[int, int, int]:
        """(prefill tokens, decoding sequences, their context) of a step being planned."""
        decodes = decode_tokens = context = 0
        most = 1 + int(self.num_spec_tokens)
        scheduled = output.num_scheduled_tokens
        for request in self.running:
            tokens = scheduled.get(request.request_id, 0)
            if 0 < tokens <= most:
                decodes += 1
                decode_tokens += tokens
                # vLLM has already advanced num_computed_tokens past this step's tokens.
                context += request.num_computed_tokens
        return total - decode_tokens, decodes, context

    def _note_output(self, worked: bool) -> None:
        now_s = time.monotonic()
        if worked:
            self._timer.end(now_s, time.time(), len(self.running), len(self.waiting))
            model = self._refit.poll(self._timer, self._planner.step_time)
            if model is not None:
                self._planner.step_time = model
        if self._without_token:
            self._note_first_tokens(now_s)
        # An engine that comes to rest takes no further step that would correct its gauges.
        resting = not self.running and not self.waiting
        if resting or now_s - self._gauges_at_s > _GAUGE_PERIOD_S:
            self._update_gauges(now_s)

    def _note_end(self, request: Request) -> None:
        request_id = request.request_id
        self._without_token.discard(request_id)
        self.waiting.forget(request_id)
        tracked = self._table.remove(request_id)
        if tracked is None:
            return
        now_s = time.monotonic()
        output_tokens = int(request.num_output_tokens)
        if tracked.first_token_s is None and output_tokens > 0:
            tracked.first_token_s = now_s
        status = _STATUS.get(request.status, "failed")
        outcome = Outcome.of(tracked, status, output_tokens, now_s)
        self._record(tracked, outcome)
        if status in ("finished", "length"):
            self._intake.note_length(tracked, output_tokens, cut=status == "length")
        self._planner.gate.mark()
        if status in ("finished", "length") and output_tokens > 0:
            with self._advice("drift"):
                self._drift.note(tracked, output_tokens, status == "length", time.time())

    def _record(self, tracked: Tracked, outcome: Outcome) -> None:
        self._outcomes.record(
            tracked,
            outcome,
            self._planner.policy.name,
            self._intake.lengths,
            self._planner.policy_version,
        )

    def _note_first_tokens(self, now_s: float) -> None:
        for request_id in list(self._without_token):
            request = self.requests.get(request_id)
            tracked = self._table.get(request_id)
            if request is None or tracked is None:
                self._without_token.discard(request_id)
            elif request.num_output_tokens > 0:
                self._table.note_first_token(tracked, now_s)
                self._without_token.discard(request_id)

    def _update_gauges(self, now_s: float) -> None:
        self._gauges_at_s = now_s
        self._metrics.queued.set(len(self.waiting))
        oldest = self._ages.oldest()
        oldest_s = now_s - oldest[0] if oldest else 0.0
        self._metrics.oldest_wait.set(oldest_s)
        self._metrics.longest_wait.set(max(oldest_s, self._longest_wait_s))
        self._outcomes.count_dropped()
        self._outcomes.tenants.update_gauge(now_s)
        self._drift.update_gauges()
        for name, factor in self._intake.correction.learned().items():
            self._metrics.length_factor.labels(self._metrics.class_label(name)).set(factor)


control.attach()
