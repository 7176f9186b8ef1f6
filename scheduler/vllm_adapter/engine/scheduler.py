"""The engine's scheduler: vLLM's own, with a planned waiting queue and measured outcomes.

Everything about batching, chunked prefill, caching and preemption stays vLLM's; each override
translates what vLLM says, tells ``serving/engine/core.py``, and calls ``super()``.

| our quantity                     | vLLM hook                    | why this hook                  |
|----------------------------------|------------------------------|--------------------------------|
| order of admission               | ``self.waiting``             | ``schedule`` peeks and pops it |
| vLLM's own ``priority``          | tiers of the same            | its number goes before plans   |
| arrival, SLO, predicted length   | ``add_request``              | every request passes it once   |
| when to plan                     | before ``schedule``          | the order is needed there      |
| a slot taken back                | ``_preempt_request``         | vLLM's own way, before a step  |
| how many run, prefill of a step  | two limits, before the same  | ``schedule`` reads both        |
| cached beginnings of prompts     | the block pool's index       | it answers without a trace     |
| work of a step, admissions       | after ``schedule``           | its output lists both          |
| step duration, first tokens      | after ``update_from_output`` | a step's tokens exist there    |
| finish, length cap, abort, error | ``_free_request``            | all ends pass it, aborts too   |

Subclasses ``AsyncScheduler``: with the plain ``Scheduler`` vLLM would switch asynchronous
scheduling off.
"""

from __future__ import annotations

import inspect
import time
from collections.abc import Callable, Mapping
from typing import Any

from vllm.v1.core.sched.async_scheduler import AsyncScheduler
from vllm.v1.core.sched.request_queue import RequestQueue
from vllm.v1.engine.core import EngineCore
from vllm.v1.request import Request, RequestStatus

from lengthwise.scheduler.problem import LEAST_PREFILL_TOKENS, Capacity
from lengthwise.scheduler.serving.engine.core import Core
from lengthwise.scheduler.serving.engine.engine_metrics import engine_metrics
from lengthwise.scheduler.serving.engine.observed.steps import StepFeatures
from lengthwise.scheduler.serving.engine.plans.snapshots import Running
from lengthwise.scheduler.serving.engine.plans.step_decisions import Decision
from lengthwise.scheduler.serving.engine.publishing import Publisher
from lengthwise.scheduler.serving.engine.queue.planned_queue import PlannedQueue
from lengthwise.scheduler.serving.engine.queue.tiered_queue import TieredQueue
from lengthwise.scheduler.serving.engine.requests.intake import Arrival
from lengthwise.scheduler.serving.engine.utility_answers import UtilityAnswers
from lengthwise.scheduler.serving.quick_exit import end_quickly
from lengthwise.scheduler.serving.wire.utility_calls import (
    ACTED_METHOD,
    ADMIT_METHOD,
    CONFIGURE_METHOD,
    LEFT_EARLY_METHOD,
    LOAD_METHOD,
    REESTIMATE_METHOD,
    STATUS_METHOD,
    WHOLE_ENDED_METHOD,
)
from lengthwise.scheduler.vllm_adapter.engine.prefix_cache_view import PrefixCacheView
from lengthwise.scheduler.vllm_adapter.supported import check_supported, versions
from lengthwise.scheduler.vllm_adapter.vllm_config import settings_from_additional_config

# vLLM's finish reasons, as it tells them to clients.
_STATUS = {
    "stop": "finished",
    "length": "length",
    "abort": "aborted",
    "error": "failed",
    "repetition": "repetition",
}


def outcome_status(status: Any) -> str:
    """Our word for vLLM's status of a request that ended; "otherwise" for one of later releases."""
    return _STATUS.get(str(RequestStatus.get_finished_reason(status)), "otherwise")


class VllmQueue(PlannedQueue, RequestQueue):
    """The planned queue as vLLM wants it."""

    def has_run(self, request: Request) -> bool:
        """Whether the request was running before: its work would be lost behind newcomers."""
        return bool(
            request.status == RequestStatus.PREEMPTED
            or request.num_computed_tokens > 0
            or request.num_output_tokens > 0
        )


class VllmTieredQueue(TieredQueue, RequestQueue):
    """The same under ``--scheduling-policy priority``: who has the smaller number goes first."""

    def __init__(self) -> None:
        super().__init__(VllmQueue, lambda request: int(request.priority))


class LengthwiseScheduler(AsyncScheduler):
    """``--scheduler-cls lengthwise.Scheduler``."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        check_supported()
        super().__init__(*args, **kwargs)
        assert not self.waiting, "the queue is replaced before any request arrives"
        by_priority = self.scheduler_config.policy == "priority"
        self.waiting: PlannedQueue = VllmTieredQueue() if by_priority else VllmQueue()
        self._most_running = self._slots()
        self._token_budget = int(self.max_num_scheduled_tokens)
        self._in_pieces = bool(getattr(self.scheduler_config, "enable_chunked_prefill", True))
        self._prefix_cache = PrefixCacheView(
            self.kv_cache_manager,
            groups=len(self.kv_cache_config.kv_cache_groups),
            block_tokens=int(self.block_size),
            hash_block_tokens=int(getattr(self, "hash_block_size", None) or self.block_size),
            drop_last=bool(getattr(self, "use_eagle", False)),
        )
        self.core = Core(
            settings_from_additional_config(self.vllm_config.additional_config),
            self.waiting,
            engine_metrics(),
            self._capacity(),
            max_model_len=int(self.max_model_len),
            # What is in flight for a request that loses its slot must be dropped.
            may_yield=self.connector is None
            and "drop_stale_output" in inspect.signature(self._preempt_request).parameters,
            generated_tokens=self._generated,
            block_tokens=int(self.block_size),
            draft_tokens=int(self.num_spec_tokens),
            cached_tokens=self._cached_tokens if self._prefix_cache.usable else None,
            versions=versions(),
        )
        publisher = Publisher(
            self.core,
            caches_prefixes=self._prefix_cache.usable,
            block_tokens=int(self.block_size),
            draft_tokens=int(self.num_spec_tokens),
        )
        self.answers = UtilityAnswers(self.core, publisher, self._running_now)
        self.control = self.answers.control

    # -- vLLM's hooks -------------------------------------------------------------------------

    def add_request(self, request: Request) -> None:
        """Queue a request and note who it is; a known id continues a streaming session."""
        known = request.request_id in self.requests
        super().add_request(request)
        if not known:
            with self.core.advice("arrival"):
                arrival, xargs = _arrival(request)
                self.core.arrived(arrival, xargs, time.monotonic(), time.time())

    def schedule(self, *args: Any, **kwargs: Any) -> Any:
        """Plan if it is time, then let vLLM build the step from the queue's front."""
        decision = Decision()
        with self.core.advice("plan"):
            now_s = time.monotonic()
            decision = self.core.before_step(
                len(self.running),
                self._running_now,
                now_s,
                paused=self._is_paused(),
                held_slots=self._held_slots(),
            )
            self._take_slots(decision.preempt, now_s)
        self._limit(decision)
        output = super().schedule(*args, **kwargs)
        with self.core.advice("step"):
            new = output.scheduled_new_reqs
            self.core.stepped(
                [one.req_id for one in new],
                self._features(output),
                self._running_now,
                time.monotonic(),
                [int(one.num_computed_tokens) for one in new] if self._prefix_cache.usable else (),
            )
        return output

    def set_pause_state(self, pause_state: Any) -> None:
        """Pause or go on; those whose slots a plan took are let finish with what runs."""
        super().set_pause_state(pause_state)
        with self.core.advice("pause"):
            self.core.decisions.paused = self._is_paused()  # at rest no step would say so
            if self._is_paused():
                self._let_finish()

    def update_from_output(
        self, scheduler_output: Any, model_runner_output: Any, *args: Any, **kwargs: Any
    ) -> Any:
        """Let vLLM book the step's tokens, then time the step and note first tokens."""
        outputs = super().update_from_output(scheduler_output, model_runner_output, *args, **kwargs)
        if self.num_spec_tokens:
            with self.core.advice("speculation"):
                drafted = scheduler_output.scheduled_spec_decode_tokens
                self.core.tokens_per_step.note(*_accepted(drafted, model_runner_output))
        with self.core.advice("output"):
            worked = bool(scheduler_output.total_num_scheduled_tokens)
            self.core.step_ended(worked, len(self.running), time.monotonic(), time.time())
        return outputs

    def _free_request(self, request: Request, *args: Any, **kwargs: Any) -> Any:
        """Every end of a request: record its outcome once, drop its state."""
        with self.core.advice("outcome"):
            status = outcome_status(request.status)
            output_tokens = int(request.num_output_tokens)
            self.core.ended(
                request.request_id, status, output_tokens, time.monotonic(), time.time()
            )
        return super()._free_request(request, *args, **kwargs)

    def shutdown(self) -> None:
        """Flush the logs, then vLLM's own."""
        end_quickly()
        self.core.close()
        super().shutdown()

    # -- the utility calls, by the names of wire/utility_calls.py -----------------------------

    def lengthwise_status(self) -> dict[str, Any]:
        """Plain values for ``GET /lengthwise/status``."""
        return self.control.status()

    def lengthwise_load(self) -> dict[str, Any]:
        """Who runs and who waits, for a router over several engines."""
        return self.answers.load()

    # -- translation --------------------------------------------------------------------------

    def _is_paused(self) -> bool:
        return bool(getattr(self, "_pause_state", 0))  # an IntEnum, 0 while it is not

    def _let_finish(self) -> None:
        """A pause that waits for what runs also waits for whom only our plan made wait.

        While new requests are held back, vLLM admits from a queue of those that hold KV blocks.
        """
        first = getattr(self, "kv_holding_waiting", None)
        for request_id in self.core.queue.yielded_ids():
            request = self.requests.get(request_id)
            if request is not None and first is not None:
                self.waiting.remove_request(request)
                first.add_request(request)

    def _slots(self) -> int:
        """How many requests may run; before vLLM 0.31 admission had no limit of its own."""
        limit = getattr(self, "max_num_active_reqs", None)
        return int(self.max_num_running_reqs if limit is None else limit)

    def _held_slots(self) -> int:
        """Slots of streaming-input sessions that do not run: they wait for the client's next
        input, which vLLM counts as running, or have it and go before the queue."""
        first = getattr(self, "kv_holding_waiting", ())
        ready = sum(one.resumable and one.status == RequestStatus.WAITING for one in first)
        return int(getattr(self, "num_waiting_for_streaming_input", 0)) + ready

    def _going_on(self) -> int:
        """Who runs, and sessions that wait for their next input or have it, before vLLM 0.31."""
        waiting = getattr(self, "skipped_waiting", ())
        ready = sum(one.resumable and one.status == RequestStatus.WAITING for one in waiting)
        asked = int(getattr(self, "num_waiting_for_streaming_input", 0))
        return min(len(self.running) + asked + ready, self._most_running) if ready else 0

    def _limit(self, decision: Decision) -> None:
        """Hold the next step to the plan's limits; None: to vLLM's own."""
        most = decision.max_running
        decode_tokens = self._decode_tokens() if decision.limits_prefill else 0
        rests = decision.rests and decode_tokens > 0
        if rests:
            most = len(self.running)
        limit = self._most_running if most is None else min(self._most_running, most)
        if hasattr(self, "max_num_active_reqs"):
            self.max_num_active_reqs: int = limit
        else:  # vLLM holds whoever runs to this one too, and sessions that go on
            self.max_num_running_reqs: int = max(limit, len(self.running), self._going_on())
        budget = self._token_budget
        if rests:
            budget = min(budget, decode_tokens)
        elif decision.max_prefill_tokens is not None and self._in_pieces:
            # without chunked prefill a prompt beyond the limit would wait for the plan's end
            prefill = max(LEAST_PREFILL_TOKENS, decision.max_prefill_tokens)
            budget = min(budget, decode_tokens + prefill)
        self.max_num_scheduled_tokens: int = budget

    def _decode_tokens(self) -> int:
        """What the running requests that are past their prompts take of a step's budget."""
        decodes = sum(_prefill_left(request) == 0 for request in self.running)
        return decodes * (1 + int(self.num_spec_tokens))

    def _capacity(self) -> Capacity:
        blocks = int(self.cache_config.num_gpu_blocks or 1)
        return Capacity(
            max_num_seqs=self._slots(),
            kv_tokens=blocks * int(self.block_size),
            max_num_batched_tokens=int(self.max_num_scheduled_tokens),
        )

    def _take_slots(self, request_ids: list[str], now_s: float) -> None:
        """Preempt running requests for the plan's head.

        What vLLM has in flight for them is dropped and sampled anew, so that nothing is answered
        twice or out of order whenever they resume.
        """
        for request_id in request_ids:
            request = self.requests.get(request_id)
            if request is None or request.status != RequestStatus.RUNNING:
                continue
            self.running.remove(request)
            self._preempt_request(request, now_s, drop_stale_output=True)
            self.prev_step_scheduled_req_ids.discard(request_id)
            self.core.gave_up_slot(request_id, int(request.num_output_tokens), now_s)

    def _running_now(self) -> Running:
        ids, generated, left = [], [], []
        most = 1 + int(self.num_spec_tokens)
        for request in self.running:
            ids.append(request.request_id)
            coming = -(-request.num_output_placeholders // most)  # at least one a step
            generated.append(int(request.num_output_tokens + coming))
            left.append(_prefill_left(request))
        return Running(ids, generated, left, self._held_slots())

    def _cached_tokens(self, request_id: str) -> int | None:
        request = self.requests.get(request_id)
        return None if request is None else self._prefix_cache.cached_tokens(request)

    def _generated(self, request_id: str) -> int | None:
        request = self.requests.get(request_id)
        return None if request is None else int(request.num_output_tokens)

    def _features(self, output: Any) -> StepFeatures | None:
        """(prefill tokens, decoding sequences, their context) of a step; None of an empty one."""
        total = int(output.total_num_scheduled_tokens)
        if not total:
            return None
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


def _prefill_left(request: Request) -> int:
    """Tokens of a prompt (and, after a preemption, of the answer) still to compute."""
    known = request.num_prompt_tokens + request.num_output_tokens
    left = int(known - request.num_computed_tokens)
    # A decoding request always has its newest token still to compute: not a prefill.
    return left if left > 1 else 0


def _accepted(drafted: Mapping[str, Any], output: Any) -> tuple[int, int]:
    """Tokens given to the sequences that had drafts in a step, and how many these were."""
    rows = [output.req_id_to_index[name] for name in drafted if name in output.req_id_to_index]
    given = [len(output.sampled_token_ids[row]) for row in rows]
    return sum(given), sum(count > 0 for count in given)


def _arrival(request: Request) -> tuple[Arrival, Any]:
    params = request.sampling_params  # None of a pooling request
    most = int(request.max_tokens)
    least = 0 if params is None else most if params.ignore_eos else int(params.min_tokens)
    arrival = Arrival(
        request.request_id,
        float(request.arrival_time),
        int(request.num_prompt_tokens),
        most,
        request.block_hashes,
        min_tokens=min(least, most),
    )
    return arrival, None if params is None else params.extra_args


def _attach() -> None:
    """Give ``EngineCore`` the utility methods, which vLLM's client calls by name."""

    def asked(method: str) -> Callable[[Any], Any]:
        return lambda engine: engine.scheduler.answers.answer(method)

    def told(method: str) -> Callable[[Any, Any], Any]:
        return lambda engine, said: engine.scheduler.answers.answer(method, said)

    for method in (STATUS_METHOD, LOAD_METHOD):
        setattr(EngineCore, method, asked(method))
    for method in (CONFIGURE_METHOD, ADMIT_METHOD, ACTED_METHOD, WHOLE_ENDED_METHOD,
                   REESTIMATE_METHOD, LEFT_EARLY_METHOD):  # fmt: skip
        setattr(EngineCore, method, told(method))


_attach()
