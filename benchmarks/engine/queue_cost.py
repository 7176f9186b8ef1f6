"""What a request costs the engine's loop by how many wait, vLLM's own scheduler beside ours.

    python -m benchmarks.engine.queue_cost --queued 0 1000 5000 20000

The real scheduler classes on vLLM's bookkeeping, with a runner that only counts and no server: all
slots are taken by answers that end one by one, so many requests stand in line behind them, and both
schedulers are asked the same in turn. Timed are ``add_request``, the abort of one that waits,
``schedule`` and ``update_from_output`` of a step, and the end of an answer; of ours also the core's
calls in them, a snapshot and a new order. All in processor time of the loop's own thread, in
microseconds: medians, but means where a table says so. Requests come as the API process sends them,
with quantiles and features under a seal, and are logged. Beside it how long the thread did not run
in each call: with ``--beside``, where another thread computes in Python all the time, that is what
a call pays that gives the interpreter's lock away.
"""

from __future__ import annotations

import argparse
import gc
import itertools
import os
import sys
import tempfile
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.common import finish, note, plain_parser, print_table

ARMS = ("stock", "ours")
OF_BOTH = ("add_request", "abort", "schedule", "update_from_output", "end")
OF_OURS = ("arrived", "ended", "before_step", "stepped", "step_ended")
OF_A_PLAN = ("snapshot", "set_order")
QUANTILES = (8.0, 10.0, 12.0, 14.0, 17.0, 20.0, 24.0, 29.0, 36.0, 50.0, 70.0, 120.0)
FEATURES = 300
PROMPT_TOKENS = 64
LONGEST_TOKENS = 24
GUESTS, STEPS = 25, 15  # of a round
DEVICE_S = 0.003  # of a step, in which a planning thread has the interpreter to itself

Figures = dict[str, dict[str, float]]


class Watch:
    """Processor time of calls by name, taken while ``runs``."""

    def __init__(self) -> None:
        self.runs = False
        self._taken_s: defaultdict[str, list[tuple[float, float]]] = defaultdict(list)

    def on(self, owner: Any, method: str, name: str) -> None:
        """Time this method of an object from now on."""
        genuine = getattr(owner, method)

        def timed(*args: Any, **kwargs: Any) -> Any:
            if not self.runs:
                return genuine(*args, **kwargs)
            with self.timing(name):
                return genuine(*args, **kwargs)

        setattr(owner, method, timed)

    @contextmanager
    def timing(self, name: str) -> Iterator[None]:
        """Time the block."""
        began_s, ran_s = time.perf_counter(), time.thread_time()
        try:
            yield
        finally:
            ran_s = time.thread_time() - ran_s
            self._taken_s[name].append((ran_s, time.perf_counter() - began_s - ran_s))

    def figures(self) -> Figures:
        """Of each name, in microseconds, and the count; then all starts afresh."""
        found = {}
        for name, taken in self._taken_s.items():
            ran_us, waited_us = 1e6 * np.array(taken).T
            found[name] = {
                "p50_us": float(np.median(ran_us)),
                "mean_us": float(ran_us.mean()),
                "max_us": float(ran_us.max()),
                "waited_mean_us": float(waited_us.mean()),
                "count": len(taken),
            }
        self._taken_s.clear()
        return found


class Line:
    """One scheduler: ``slots`` answers that go on, ``queued`` requests behind them."""

    def __init__(self, engine: Any, slots: int, request: Callable[[str], Any], seed: int) -> None:
        self.watch = Watch()
        self.queued = 0
        self._engine, self._scheduler = engine, engine.scheduler
        self._slots, self._request = slots, request
        self._rng = np.random.default_rng(seed)
        self._numbers = itertools.count()
        for method in ("add_request", "schedule", "update_from_output"):
            self.watch.on(self._scheduler, method, method)
        self.watch.on(self._scheduler, "_free_request", "end")
        core = getattr(self._scheduler, "core", None)
        if core is not None:
            for method in OF_OURS:
                self.watch.on(core, method, method)
            self.watch.on(core.snapshots, "take", "snapshot")
            self.watch.on(core.queue, "set_order", "set_order")

    def guests(self, count: int) -> None:
        """So many arrive, and leave while they wait."""
        guests = [self._request(f"guest-{next(self._numbers)}") for _ in range(count)]
        self.watch.runs = True
        for guest in guests:
            self._engine.add(guest)
        self.watch.runs = False
        for guest in guests:
            with self.watch.timing("abort"):
                self._engine.abort(guest.request_id)

    def steps(self, count: int) -> None:
        """So many steps; whoever ends is followed by another."""
        for _ in range(count):
            self.fill()
            self.watch.runs = True
            self._engine.step()
            self.watch.runs = False
            time.sleep(DEVICE_S)

    def fill(self) -> None:
        """As many requests as are to run and to wait."""
        for _ in range(self._slots + self.queued - len(self._scheduler.requests)):
            tokens = int(self._rng.integers(2, LONGEST_TOKENS))
            self._engine.add(self._request(f"r-{next(self._numbers)}"), tokens)

    def close(self) -> None:
        """Let the threads end."""
        self._scheduler.core.close()


def lines(folder: Path, running: int, policy: str, seed: int) -> dict[str, Line]:
    """Both schedulers; ours plans in its thread and keeps its log in the folder."""
    sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "tests" / "vllm"))
    from engineless import FakeEngine, make_request
    from vllm.v1.core.sched.async_scheduler import AsyncScheduler

    from lengthwise.data.slo import Slo
    from lengthwise.scheduler.serving.wire.hints import Hints
    from lengthwise.scheduler.vllm_adapter.engine.scheduler import LengthwiseScheduler
    from lengthwise.scheduler.vllm_adapter.server.tiny import build_tiny_model

    model = build_tiny_model(folder / "tiny")
    settings = {"policy": policy, "plan_in_thread": True, "request_log": str(folder / "log")}
    rng = np.random.default_rng(seed)
    slos = (Slo(ttft_s=3.0, tpot_s=0.2, slo_class="chat"), Slo(e2e_s=60.0, slo_class="code"))

    def request(name: str) -> Any:
        hints = Hints(
            slo=slos[int(rng.integers(2))],
            quantiles=QUANTILES,
            version="queue/1",
            features=tuple(rng.random(FEATURES).tolist()),
            contract="queue",
        )
        prompt = rng.integers(5, 95, PROMPT_TOKENS).tolist()
        return make_request(name, prompt=prompt, **hints.to_xargs())

    kinds = {"stock": AsyncScheduler, "ours": LengthwiseScheduler}
    found = {}
    for arm in ARMS:
        engine = FakeEngine(
            model,
            settings,
            max_num_seqs=running,
            blocks=16 * running,
            max_num_batched_tokens=8192,
            prefix_caching=True,
            scheduler_class=kinds[arm],
        )
        found[arm] = Line(engine, running, request, seed)
    return found


def measure(both: dict[str, Line], queued: int, rounds: int) -> dict[str, Figures]:
    """Figures of both with so many in line; a first round warms up."""
    for line in both.values():
        line.queued = queued
        line.fill()
        line.steps(STEPS)
        line.guests(GUESTS)
        line.watch.figures()
    gc.collect()
    for turn in range(rounds):
        for arm in ARMS if turn % 2 else reversed(ARMS):
            both[arm].guests(GUESTS)
            both[arm].steps(STEPS)
    return {arm: line.watch.figures() for arm, line in both.items()}


def tables(depths: Sequence[int], found: Sequence[dict[str, Figures]]) -> None:
    """Print them: both in turn, then ours alone."""

    def said(figures: Figures, name: str, key: str = "p50_us") -> str:
        return f"{figures[name][key]:.0f}" if name in figures else "-"

    print_table(
        ["queued", *(f"{name}, ours (stock)" for name in OF_BOTH)],
        [
            [
                f"{queued:,}",
                *(f"{said(one['ours'], name)} ({said(one['stock'], name)})" for name in OF_BOTH),
            ]
            for queued, one in zip(depths, found, strict=True)
        ],
    )
    print_table(
        ["queued", *OF_OURS, *(f"{name}, mean (most)" for name in OF_A_PLAN), "plans"],
        [
            [
                f"{queued:,}",
                *(said(one["ours"], name) for name in OF_OURS),
                *(
                    f"{said(one['ours'], name, 'mean_us')} ({said(one['ours'], name, 'max_us')})"
                    for name in OF_A_PLAN
                ),
                f"{one['ours'].get('set_order', {}).get('count', 0):.0f}",
            ]
            for queued, one in zip(depths, found, strict=True)
        ],
    )
    print_table(
        ["queued", *(f"waited in {name}, mean, ours (stock)" for name in OF_BOTH)],
        [
            [
                f"{queued:,}",
                *(
                    f"{said(one['ours'], name, 'waited_mean_us')} "
                    f"({said(one['stock'], name, 'waited_mean_us')})"
                    for name in OF_BOTH
                ),
            ]
            for queued, one in zip(depths, found, strict=True)
        ],
    )


@contextmanager
def computing(wanted: bool) -> Iterator[None]:
    """Another thread that never lets go of the interpreter by itself, if it is wanted."""
    over = threading.Event()

    def compute() -> None:
        while not over.is_set():
            sum(number * number for number in range(1000))

    thread = threading.Thread(target=compute, daemon=True)
    if wanted:
        thread.start()
    try:
        yield
    finally:
        over.set()


def main() -> None:
    """Measure each depth in turn, the queue growing from one to the next."""
    parser = plain_parser(__doc__)
    parser.add_argument("--queued", type=int, nargs="+", default=[0, 1000, 5000, 20_000])
    parser.add_argument("--running", type=int, default=32, help="slots")
    parser.add_argument("--rounds", type=int, default=12, help="of each depth")
    parser.add_argument("--policy", default="sa")
    parser.add_argument("--beside", action="store_true", help="a thread computes in Python")
    parser.add_argument("--seed", type=int, default=0)
    options: argparse.Namespace = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="queue-cost-") as scratch:
        # As a server has it, whose processes share their metrics; read where they are imported.
        os.environ["PROMETHEUS_MULTIPROC_DIR"] = scratch
        both = lines(Path(scratch), options.running, options.policy, options.seed)
        gc.collect()
        gc.freeze()  # as vLLM's engine does
        found = []
        depths = sorted(options.queued)
        with computing(options.beside):
            for queued in depths:
                found.append(measure(both, queued, options.rounds))
                note(f"{queued} queued: done")
        both["ours"].close()
    tables(depths, found)
    grown = {
        arm: found[-1][arm]["add_request"]["p50_us"] / found[0][arm]["add_request"]["p50_us"]
        for arm in ARMS
    }
    print(f"add_request at {depths[-1]:,} queued over {depths[0]:,}: "
          f"{grown['ours']:.2f}, stock {grown['stock']:.2f}.")  # fmt: skip
    finish("queue_cost", {"queued": depths, "figures": found, "add_request_grown": grown})


if __name__ == "__main__":
    main()
