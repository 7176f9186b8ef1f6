"""What planning adds to an engine's step, and what the planning thread takes.

    python -m benchmarks.engine.plan_cost --waiting 256 --running 256 --policy sa --steps 600

Drives ``engine/core.py`` as vLLM's scheduler class does, without vLLM: a full batch, a queue kept
full, a device that sleeps. Timed is what stands in the engine's loop, ``before_step`` and
``stepped`` (its snapshot for the thread included), in wall time and in the loop thread's own
processor time; beside it the same with arrival order and no plans at all, whose cost is the
bookkeeping. ``--wake-ms`` is the interpreter's switch interval: how long the loop may wait for the
interpreter lock while the thread is in Python.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from benchmarks.common import print_table
from lengthwise.data.arrays import FloatArray
from lengthwise.scheduler.problem import Capacity
from lengthwise.scheduler.serving.engine.core import Core
from lengthwise.scheduler.serving.engine.core_status import core_status
from lengthwise.scheduler.serving.engine.engine_metrics import engine_metrics
from lengthwise.scheduler.serving.engine.plans.snapshots import Running
from lengthwise.scheduler.serving.engine.plans.step_decisions import Decision
from lengthwise.scheduler.serving.engine.queue.planned_queue import PlannedQueue
from lengthwise.scheduler.serving.engine.requests.intake import Arrival
from lengthwise.scheduler.serving.settings import make_settings
from lengthwise.scheduler.serving.wire.answer_length import DEFAULT_LEVELS
from lengthwise.scheduler.serving.wire.seal import sealed

_SPREAD = np.linspace(-1.6, 2.3, len(DEFAULT_LEVELS))


class _Request:
    __slots__ = ("computed", "generated", "length", "prompt_tokens", "request_id")

    def __init__(self, request_id: str, prompt_tokens: int, length: int) -> None:
        self.request_id, self.prompt_tokens, self.length = request_id, prompt_tokens, length
        self.computed = self.generated = 0


class _Queue(PlannedQueue):
    def has_run(self, request: _Request) -> bool:
        return request.generated > 0


class Loop:
    """An engine's loop around the core: ``running`` slots and ``waiting`` in line, always."""

    def __init__(self, arguments: argparse.Namespace, policy: str, in_thread: bool) -> None:
        self.rng = np.random.default_rng(arguments.seed)
        self.queue = _Queue()
        self.waiting, self.slots = arguments.waiting, arguments.running
        self.core = Core(
            make_settings(
                {
                    "policy": policy,
                    "plan_in_thread": in_thread,
                    "plan_share": arguments.share,
                    "plan_budget_ms": arguments.budget_ms,
                    "profile": arguments.profile,
                    "refit_steps": 0,
                }
            ),
            self.queue,
            engine_metrics(),
            Capacity(self.slots, 10**7, 8192),
            max_model_len=8192,
            may_yield=True,
            generated_tokens=lambda name: self.requests[name].generated,
        )
        self.running: list[_Request] = []
        self.requests: dict[str, _Request] = {}
        self.count = 0

    def run(self, steps: int, device_s: float) -> tuple[FloatArray, FloatArray, FloatArray]:
        """Wall and processor seconds of our part ``(steps,)``, and of the waits beside it."""
        wall, own, slept = np.zeros(steps), np.zeros(steps), np.zeros(steps)
        for step in range(steps):
            while len(self.queue) < self.waiting:
                self._arrive()
            wall[step], own[step] = self._schedule()
            began_s = time.perf_counter()
            time.sleep(device_s)
            slept[step] = time.perf_counter() - began_s
            self._output()
        return wall, own, slept

    def _schedule(self) -> tuple[float, float]:
        core = self.core
        decision, *before = _timed(
            lambda: core.before_step(len(self.running), self._running_now, time.monotonic())
        )
        self._obey(decision)
        most = self.slots if decision.max_running is None else decision.max_running
        admitted = []
        while self.queue and len(self.running) < most:
            request = self.queue.pop_request()
            self.running.append(request)
            admitted.append(request.request_id)
        features = (0, len(self.running), 1000 * len(self.running))
        _, *after = _timed(
            lambda: core.stepped(admitted, features, self._running_now, time.monotonic())
        )
        return before[0] + after[0], before[1] + after[1]

    def _obey(self, decision: Decision) -> None:
        for name in decision.preempt:
            victim = next(request for request in self.running if request.request_id == name)
            self.running.remove(victim)
            victim.computed = 0
            self.queue.prepend_request(victim)
            self.core.gave_up_slot(name, victim.generated, time.monotonic())

    def _output(self) -> None:
        for request in self.running:
            request.generated += 1
            request.computed = request.prompt_tokens + request.generated
        now_s, unix_s = time.monotonic(), time.time()
        self.core.step_ended(True, len(self.running), now_s, unix_s)
        done = [request for request in self.running if request.generated >= request.length]
        self.running = [request for request in self.running if request.generated < request.length]
        for request in done:
            del self.requests[request.request_id]
            self.core.ended(request.request_id, "finished", request.generated, now_s, unix_s)

    def _running_now(self) -> Running:
        return Running(
            [request.request_id for request in self.running],
            [request.generated for request in self.running],
            [request.prompt_tokens + request.generated - request.computed
             for request in self.running],
        )  # fmt: skip

    def _arrive(self) -> None:
        rng = self.rng
        self.count += 1
        request = _Request(
            f"request-{self.count}", int(rng.integers(10, 2000)), int(rng.lognormal(5.0, 0.8)) + 1
        )
        quantiles = np.maximum(1.0, request.length * np.exp(0.4 * (rng.normal() + _SPREAD)))
        xargs: dict[str, Any] = {"pred_quantiles": np.round(quantiles, 2).tolist()}
        if rng.random() < 0.5:
            xargs |= {"slo_class": "chat", "slo_ttft_ms": 3000, "slo_tpot_ms": 60}
        else:
            xargs |= {"slo_class": "code", "slo_e2e_ms": 30_000}
        self.queue.add_request(request)
        self.requests[request.request_id] = request
        arrival = Arrival(request.request_id, time.time(), request.prompt_tokens, 4096)
        self.core.arrived(arrival, sealed(xargs), time.monotonic(), time.time())


def _timed(call: Callable[[], Any]) -> tuple[Any, float, float]:
    began_s, own_s = time.perf_counter(), time.thread_time()
    result = call()
    return result, time.perf_counter() - began_s, time.thread_time() - own_s


def _figures(seconds: FloatArray) -> dict[str, float]:
    p50, p99 = np.quantile(seconds * 1e3, [0.5, 0.99])
    return {"mean_ms": float(seconds.mean() * 1e3), "p50_ms": float(p50), "p99_ms": float(p99)}


def measure(arguments: argparse.Namespace, policy: str, in_thread: bool) -> dict[str, Any]:
    """One arm's figures."""
    loop = Loop(arguments, policy, in_thread)
    loop.run(60, arguments.device_ms / 1e3)  # caches, compiled code
    loop.core.reset_stats()
    wall, own, slept = loop.run(arguments.steps, arguments.device_ms / 1e3)
    plan = core_status(loop.core, time.monotonic())["plan"]
    loop.core.close()
    return {
        "policy": policy,
        "in_thread": in_thread,
        "loop_wall": _figures(wall),
        "loop_processor": _figures(own),
        "device": _figures(slept),
        "plans": plan["count"],
        "adopted": plan["adopted"],
        "plan_ms_p50": plan.get("ms_p50"),
        "plan_ms_p99": plan.get("ms_p99"),
        "fallbacks": plan["fallbacks"],
    }


def main() -> None:
    """Measure the arms and print a table and, as the last line, the document."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--waiting", type=int, default=256)
    parser.add_argument("--running", type=int, default=256)
    parser.add_argument("--policy", default="sa")
    parser.add_argument("--profile", default="tiny-cpu")
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--device-ms", type=float, default=20.0)
    parser.add_argument("--share", type=float, default=0.1)
    parser.add_argument("--budget-ms", type=float, default=20.0)
    parser.add_argument("--wake-ms", type=float, default=None)
    parser.add_argument("--inline", action="store_true", help="also with the plan in the loop")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    if arguments.wake_ms is not None:
        sys.setswitchinterval(arguments.wake_ms / 1e3)
    # The engine's own gate never opens with a share this small: bookkeeping only.
    bare = argparse.Namespace(**vars(arguments) | {"share": 1e-9})
    arms = [measure(bare, "fcfs", True), measure(arguments, arguments.policy, True)]
    if arguments.inline:
        arms.append(measure(arguments, arguments.policy, False))
    print_table(
        ("arm", "loop p50 ms", "loop p99 ms", "own p50", "own p99", "plans", "plan p50 ms"),
        [
            (
                f"{arm['policy']}{'' if arm['in_thread'] else ', in the loop'}",
                *(f"{arm[part][key]:.3f}" for part in ("loop_wall", "loop_processor")
                  for key in ("p50_ms", "p99_ms")),
                arm["plans"],
                "" if arm["plan_ms_p50"] is None else f"{arm['plan_ms_p50']:.2f}",
            )
            for arm in arms
        ],
    )  # fmt: skip
    document = {
        "benchmark": "plan_cost",
        "waiting": arguments.waiting,
        "running": arguments.running,
        "arms": arms,
    }
    print(json.dumps(document))


if __name__ == "__main__":
    main()
