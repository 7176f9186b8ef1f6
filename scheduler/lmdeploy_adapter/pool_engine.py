"""One LMDeploy engine as its pool of request handles sees it: who waits for one, who has one.

Translates the pool's moments into ``serving/engine/core.py``'s, as vLLM's scheduler does its own:

| our quantity                   | where in LMDeploy               | why there                     |
|--------------------------------|---------------------------------|-------------------------------|
| arrival, SLO, predicted length | before ``AsyncEngine.generate`` | every sequence passes it once |
| order, how many run            | the pool's ``get``              | who has no handle waits there |
| first tokens, progress, steps  | the handle's stream             | it yields each step's tokens  |
| finish, length cap, abort      | after ``generate``              | all ends pass it, faults too  |

Slots taken back and prefill limits are the engine process's own business, out of reach from here.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass

from lengthwise.scheduler.lmdeploy_adapter.token_steps import TimedStep, TokenSteps
from lengthwise.scheduler.problem import Capacity
from lengthwise.scheduler.serving.engine.core import Core
from lengthwise.scheduler.serving.engine.engine_metrics import EngineMetrics
from lengthwise.scheduler.serving.engine.plans.snapshots import Running
from lengthwise.scheduler.serving.engine.plans.step_decisions import Decision
from lengthwise.scheduler.serving.engine.publishing import Publisher
from lengthwise.scheduler.serving.engine.queue.planned_queue import PlannedQueue
from lengthwise.scheduler.serving.engine.requests.intake import Arrival
from lengthwise.scheduler.serving.engine.utility_answers import UtilityAnswers
from lengthwise.scheduler.serving.settings import ServerSettings
from lengthwise.scheduler.serving.wire.hints import Hints

BLOCK_TOKENS = 64


@dataclass(slots=True, eq=False)
class PoolRequest:
    """A sequence on its way through the pool; ``status`` is how it ended, as far as is known.

    ``is_told``: somebody says when it is over; else it is with its handle.
    """

    request_id: str
    prompt_tokens: int
    max_tokens: int
    min_tokens: int = 0
    generated: int = 0
    last_token: int | None = None
    status: str = "aborted"
    is_told: bool = True


class PoolEngine:
    """Advice for a pool: whatever fails in it is counted, and the order is that of arrival.

    Times are of the monotonic clock, but for those of ``TokenSteps``.
    """

    def __init__(
        self,
        settings: ServerSettings,
        capacity: Capacity,
        metrics: EngineMetrics,
        *,
        max_model_len: int,
        versions: Mapping[str, str | None],
    ) -> None:
        self.slots = capacity.max_num_seqs
        self.queue = PlannedQueue()
        self.running: dict[str, PoolRequest] = {}
        self._requests: dict[str, PoolRequest] = {}
        self._steps = TokenSteps()
        self.core = Core(
            settings,
            self.queue,
            metrics,
            capacity,
            max_model_len=max_model_len,
            may_yield=False,
            generated_tokens=self._generated,
            block_tokens=BLOCK_TOKENS,
            versions=versions,
        )
        publisher = Publisher(
            self.core, caches_prefixes=False, block_tokens=BLOCK_TOKENS, draft_tokens=0
        )
        self.answers = UtilityAnswers(self.core, publisher, self._running_now)

    def arrived(self, request: PoolRequest, hints: Hints, unix_s: float) -> None:
        """A sequence was made ready for the engine and will ask for a handle."""
        self._requests[request.request_id] = request
        arrival = Arrival(
            request.request_id,
            unix_s,
            request.prompt_tokens,
            request.max_tokens,
            min_tokens=request.min_tokens,
        )
        with self.core.advice("arrival"):
            self.core.arrived(arrival, hints.to_xargs(), time.monotonic(), unix_s)

    def wait(self, request: PoolRequest) -> None:
        """It asks for a handle."""
        self.queue.add_request(request)

    def admitted(self, free: int) -> list[PoolRequest]:
        """Who gets one of the ``free`` handles each, in this order."""
        decision = Decision()
        with self.core.advice("plan"):
            decision = self.core.before_step(len(self.running), self._running_now, time.monotonic())
        most = self.slots if decision.max_running is None else decision.max_running
        if not self.running and free and self.queue:
            with self.core.advice("step"):
                self._steps.at_work(time.time())
        new: list[PoolRequest] = []
        while self.queue and len(new) < free and len(self.running) < most:
            request = self.queue.pop_request()
            self.running[request.request_id] = request
            new.append(request)
        with self.core.advice("step"):
            ids = [request.request_id for request in new]
            self.core.stepped(ids, None, self._running_now, time.monotonic())
        return new

    def read(self, request: PoolRequest, tokens: int, stamp_s: float) -> bool:
        """So many tokens of its answer came, stamped with the wall clock; whether a step is over.

        Then somebody may be due whom a plan held back.
        """
        first = request.generated == 0
        request.generated += tokens
        context = request.prompt_tokens + request.generated
        told: list[TimedStep] = []
        with self.core.advice("output"):
            prompt_tokens = request.prompt_tokens if first else 0
            told = self._steps.read(request.request_id, stamp_s, context, prompt_tokens, tokens)
            if first:
                self.core.progress.note_first_tokens(time.monotonic())
            self._time(told)
        return bool(told)

    def freed(self, request: PoolRequest) -> None:
        """It gives its handle back."""
        self.running.pop(request.request_id, None)
        self._steps.left(request.request_id)
        if not self.running:
            with self.core.advice("output"):
                self._time(self._steps.at_rest())
                if not self.queue:
                    self.core.step_ended(False, 0, time.monotonic(), time.time())

    def gave_up(self, request: PoolRequest) -> None:
        """It no longer wants a handle."""
        self.queue.remove_request(request)

    def over(self, request: PoolRequest) -> None:
        """The sequence ended, with its ``status``; once is counted."""
        if self._requests.pop(request.request_id, None) is None:
            return
        self.running.pop(request.request_id, None)
        with self.core.advice("outcome"):
            self.core.ended(
                request.request_id,
                request.status,
                request.generated,
                time.monotonic(),
                time.time(),
            )

    def close(self) -> None:
        """Flush the logs and stop the threads."""
        self.core.close()

    def _time(self, steps: list[TimedStep]) -> None:
        ahead_s = time.time() - time.monotonic()
        for step in steps:
            features = (step.prefill_tokens, step.decodes, step.context_tokens)
            self.core.timer.begin(features, step.began_s - ahead_s)
            self.core.step_ended(True, len(self.running), step.ended_s - ahead_s, step.ended_s)

    def _running_now(self) -> Running:
        running = list(self.running.values())
        return Running(
            [one.request_id for one in running],
            [one.generated for one in running],
            [0 if one.generated else one.prompt_tokens for one in running],
        )

    def _generated(self, request_id: str) -> int | None:
        request = self._requests.get(request_id)
        return None if request is None else request.generated
