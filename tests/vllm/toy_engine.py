"""The core without vLLM: an engine of slots that gives every running request a token a step."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from lengthwise.scheduler.problem import Capacity
from lengthwise.scheduler.serving.engine.control import Control
from lengthwise.scheduler.serving.engine.core import Core
from lengthwise.scheduler.serving.engine.engine_metrics import engine_metrics
from lengthwise.scheduler.serving.engine.plans.snapshots import Running
from lengthwise.scheduler.serving.engine.queue.planned_queue import PlannedQueue
from lengthwise.scheduler.serving.engine.requests.intake import Arrival
from lengthwise.scheduler.serving.settings import make_settings
from lengthwise.scheduler.serving.wire.seal import sealed

QUANTILES = [10.0, 12, 14, 16, 18, 20, 22, 24, 26, 30, 35, 50]


def scaled(factor: float) -> list[float]:
    return [factor * q for q in QUANTILES]


@dataclass
class ToyRequest:
    request_id: str
    prompt_tokens: int
    max_tokens: int
    arrival_time: float
    xargs: dict[str, Any]
    blocks: Sequence[Any]
    output_tokens: int = 4
    prefill_left: int = field(init=False)
    generated: int = 0

    def __post_init__(self) -> None:
        self.prefill_left = self.prompt_tokens


def make_request(
    name: str,
    prompt_tokens: int = 8,
    max_tokens: int = 512,
    arrival_time: float | None = None,
    blocks: Sequence[Any] = (),
    **xargs: Any,
) -> ToyRequest:
    arrived = time.time() if arrival_time is None else arrival_time
    return ToyRequest(name, prompt_tokens, max_tokens, arrived, sealed(xargs), blocks)


class ToyQueue(PlannedQueue):
    def has_run(self, request: ToyRequest) -> bool:
        return request.generated > 0


class ToyEngine:
    """`slots` run at once; a prompt is computed in the step that admits it."""

    def __init__(
        self,
        settings: dict[str, Any] | None = None,
        slots: int = 4,
        cached_tokens: Callable[[str], int | None] | None = None,
    ) -> None:
        self.queue = ToyQueue()
        self.requests: dict[str, ToyRequest] = {}
        self.core = Core(
            make_settings({"plan_in_thread": False} | (settings or {})),
            self.queue,
            engine_metrics(),
            Capacity(slots, 16_000, 256),
            versions={"lengthwise": None, "vllm": None},
            max_model_len=2048,
            may_yield=True,
            generated_tokens=self.generated,
            cached_tokens=cached_tokens,
        )
        self.control = Control(self.core)
        self.slots = slots
        self.running: list[ToyRequest] = []
        self.admitted: list[str] = []
        self.finished: dict[str, str] = {}
        self.decisions: list[Any] = []
        self.paused = False  # nobody new is admitted; who runs, runs on

    def status(self) -> dict[str, Any]:
        return self.control.status()

    def add(self, request: ToyRequest, output_tokens: int = 4) -> None:
        request.output_tokens = output_tokens
        self.queue.add_request(request)
        self.requests[request.request_id] = request
        arrival = Arrival(
            request.request_id,
            request.arrival_time,
            request.prompt_tokens,
            request.max_tokens,
            request.blocks,
        )
        with self.core.advice("arrival"):
            self.core.arrived(arrival, request.xargs, time.monotonic(), time.time())

    def generated(self, name: str) -> int | None:
        request = self.requests.get(name)
        return None if request is None else request.generated

    def running_now(self) -> Running:
        return Running(
            [request.request_id for request in self.running],
            [request.generated for request in self.running],
            [request.prefill_left for request in self.running],
        )

    def step(self) -> None:
        core, now_s = self.core, time.monotonic()
        decision = core.before_step(len(self.running), self.running_now, now_s, paused=self.paused)
        self.decisions.append(decision)
        for name in decision.preempt:
            victim = next(request for request in self.running if request.request_id == name)
            self.running.remove(victim)
            self.queue.prepend_request(victim)
            core.gave_up_slot(name, victim.generated, now_s)
        most = self.slots if decision.max_running is None else decision.max_running
        new = []
        while self.queue and len(self.running) < most and not self.paused:
            request = self.queue.pop_request()
            self.running.append(request)
            new.append(request)
        self.admitted += [request.request_id for request in new]
        prefill = sum(request.prefill_left for request in new)
        features = (prefill, len(self.running) - len(new), 10) if self.running else None
        core.stepped([request.request_id for request in new], features, self.running_now, now_s)
        for request in self.running:
            request.prefill_left = 0
            request.generated += 1
        core.step_ended(
            features is not None,
            len(self.running),
            time.monotonic(),
            time.time(),
        )
        for request in list(self.running):
            capped = request.generated >= request.max_tokens
            if capped or request.generated >= request.output_tokens:
                self.end(request, "length" if capped else "finished")

    def end(self, request: ToyRequest, status: str) -> None:
        if request in self.running:
            self.running.remove(request)
        self.finished[request.request_id] = status
        del self.requests[request.request_id]
        self.core.ended(
            request.request_id, status, request.generated, time.monotonic(), time.time()
        )

    def run(self, most_steps: int = 2000) -> None:
        for _ in range(most_steps):
            if not self.queue and not self.running:
                return
            self.step()
        raise AssertionError(f"not done after {most_steps} steps")


def planning_toy(slots: int = 4, **settings: Any) -> ToyEngine:
    """Shortest first, unless told otherwise; planned at every step."""
    defaults = {"policy": "sjf", "plan_share": 1.0, "refit_steps": 0}
    return ToyEngine(defaults | settings, slots)


def reestimated(fake: ToyEngine, *estimates: Any) -> dict[str, Any]:
    """What the status says of second estimates once these have come."""
    fake.core.reestimated(list(estimates), time.monotonic())
    return fake.status()["reestimates"]
