"""How long our middleware keeps the event loop of the API process from everybody else.

Two things keep it: what runs on the loop itself, and a thread that has the interpreter. Of both
the longest stretch of processor time is shown, for that of the loop a task that does nothing but
take its turn runs beside each request. The longest time between two of its turns on the wall also
holds what the machine does: the time it gives to others, or to the thread without need.
The application behind does not parse the body; the last column is what one `json.loads` of it, as
vLLM's own route makes it, takes.

    python -m benchmarks.engine.loop_hold                # a minute on a quiet machine
"""

from __future__ import annotations

import asyncio
import gc
import json
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

from benchmarks.common import finish, note, plain_parser, print_table
from benchmarks.engine.in_process import (
    CHAT,
    COMPLETIONS,
    Bare,
    chat,
    fitted_predictor,
    ours_before,
    post,
)
from lengthwise.scheduler.serving.api import middleware
from lengthwise.scheduler.serving.api.body import large_body

WORDS = "Explain how B-trees stay balanced when keys are inserted and deleted, step by step. "
MOST_HELD_MS = 5.0
NAMES = ("loop_ms", "thread_ms", "wall_least_ms", "wall_ms", "json_loads_ms")


class Switched:
    """A predictor whose calls take as long as one says."""

    def __init__(self, genuine: Any) -> None:
        self._genuine = genuine
        self.stall_s = 0.0

    def predict(self, *args: Any, **kwargs: Any) -> Any:
        if self.stall_s:
            time.sleep(self.stall_s)
        return self._genuine.predict(*args, **kwargs)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._genuine, name)


def text(size_bytes: int) -> str:
    return (WORDS * (size_bytes // len(WORDS) + 1))[:size_bytes]


def lists(count: int) -> bytes:
    return b"[" + b",".join([b"[]"] * count) + b"]"


def kinds() -> dict[str, tuple[str, bytes, int]]:
    """Name: route, body, sequences that the server starts for it."""
    part = {"type": "image_url", "image_url": {"url": "data:image/png;base64," + "A" * 5_000_000}}
    talk = [{"role": ("user", "assistant")[i % 2], "content": text(900)} for i in range(2000)]
    tool = {"type": "function", "function": {"name": "f", "description": text(800)}}
    prompts = {
        "300 prompts of 8 kB": [text(8_000)] * 300,
        "4,096 short prompts": [f"Say {i}." for i in range(4096)],
    }
    return {
        "500 tokens": (CHAT, chat(text(2_000)), 1),
        "empty lists, the most inline": (COMPLETIONS, b'{"prompt":' + lists(10_900) + b"}", 1),
        "1 MB of text": (CHAT, chat(text(1_000_000)), 1),
        "1.8 MB of text, escaped": (CHAT, chat("é\n" * 200_000), 1),
        "8 MB of text": (CHAT, chat(text(8_000_000)), 1),
        "8 MB of text in UTF-16": (CHAT, chat(text(4_000_000)).decode().encode("utf-16"), 1),
        "330,000 empty lists": (COMPLETIONS, b'{"prompt":' + lists(330_000) + b"}", 1),
        "330,000 empty lists as messages": (CHAT, b'{"messages":' + lists(330_000) + b"}", 1),
        "2,000 messages, 1.8 MB": (CHAT, json.dumps({"messages": talk}).encode(), 1),
        "1,000 tools, .9 MB": (CHAT, chat("Use one.", tools=[tool] * 1000), 1),
        "an image, 5 MB": (
            CHAT,
            json.dumps({"messages": [{"role": "user", "content": [part]}]}).encode(),
            1,
        ),
        "2 MB nested a million deep": (
            CHAT,
            b'{"messages":' + b"[" * 10**6 + b"]" * 10**6 + b"}",
            1,
        ),
        "8 MB with a null of ours": (CHAT, chat(text(8_000_000), vllm_xargs={"osl": None}), 1),
        **{
            name: (COMPLETIONS, json.dumps({"prompt": listed}).encode(), len(listed))
            for name, listed in prompts.items()
        },
    }


class Stretches:
    """The longest time that the reading thread keeps the interpreter: between two of the points
    where it lets go of it, which are its short sleeps and its compiled passes."""

    def __init__(self) -> None:
        self.longest_s = 0.0
        self._since_s: dict[int, float] = {}
        kernels = ("extent", "find_parts", "ends_of_text")
        for name in kernels:
            setattr(large_body, name, self._around(getattr(large_body, name)))
        large_body.time = SimpleNamespace(
            sleep=self._around(time.sleep), perf_counter=time.perf_counter
        )
        self._genuine = middleware.parse_body
        middleware.parse_body = self._read

    def _read(self, *args: Any) -> Any:
        self._since_s[threading.get_ident()] = time.thread_time()
        found = self._genuine(*args)
        self._note()
        return found

    def _around(self, call: Callable[..., Any]) -> Callable[..., Any]:
        def around(*args: Any) -> Any:
            self._note()
            found = call(*args)
            self._since_s[threading.get_ident()] = time.thread_time()
            return found

        return around

    def _note(self) -> None:
        now_s, thread = time.thread_time(), threading.get_ident()
        self.longest_s = max(self.longest_s, now_s - self._since_s.get(thread, now_s))


async def longest_hold_s(
    request: Callable[[], Any], stretches: Stretches
) -> tuple[float, float, float]:
    """While the request is served: of the event loop on the wall, of its own processor time in one
    turn, and of the reading thread's."""
    wall_s, own_s, done = 0.0, 0.0, False

    async def turns() -> None:
        nonlocal wall_s, own_s
        last = time.perf_counter(), time.thread_time()
        while not done:
            await asyncio.sleep(0)
            now = time.perf_counter(), time.thread_time()
            wall_s, own_s = max(wall_s, now[0] - last[0]), max(own_s, now[1] - last[1])
            last = now

    stretches.longest_s = 0.0
    beside = asyncio.create_task(turns())
    await asyncio.sleep(0)
    try:
        assert await request() in (200, 400)
    finally:
        done = True
        await beside
    return wall_s, own_s, stretches.longest_s


def parse_ms(raw: bytes) -> float:
    began_s = time.perf_counter()
    try:
        json.loads(raw)
    except RecursionError:
        return float("nan")
    return 1e3 * (time.perf_counter() - began_s)


def main() -> int:
    arguments = plain_parser(__doc__)
    arguments.add_argument("--repeats", type=int, default=15)
    arguments.add_argument("--trees", type=int, default=100)
    options = arguments.parse_args()
    rows: list[Mapping[str, Any]] = []
    with tempfile.TemporaryDirectory(prefix="loop-hold-") as scratch:
        folder = Path(scratch)
        app, found = Bare(), []

        def switched(predictor: Any) -> Switched:
            found.append(Switched(predictor))
            return found[0]

        note("training a predictor")
        ours = ours_before(
            app,
            fitted_predictor(folder / "predictor", options.trees),
            folder / "log",
            switched,
            log_prompts=True,
        )
        predictor, stretches = found[0], Stretches()

        async def measure(name: str, path: str, raw: bytes, sequences: int) -> None:
            app.sequences = sequences
            held = []
            for _ in range(options.repeats):
                ours.service.champion.inline = True  # each as the first one
                held.append(await longest_hold_s(lambda: post(ours, app, path, raw), stretches))
            row = {"body": name, "bytes": len(raw), "json_loads_ms": parse_ms(raw)}
            rows.append(row | summary(held))
            note(str(rows[-1]))

        async def everything() -> None:
            for _ in range(20):  # what loads at first use
                await post(ours, app, CHAT, chat(text(2_000)))
            gc.collect()
            gc.freeze()  # as vLLM's server does once it is up
            machine = {"body": "nothing (the machine)", "bytes": 0, "json_loads_ms": 0.0}
            rows.append(machine | await idle(options.repeats, stretches))
            for name, (path, raw, sequences) in kinds().items():
                await measure(name, path, raw, sequences)
            predictor.stall_s = 0.5
            await measure("500 tokens, the predictor turns slow", CHAT, chat(text(2_000)), 1)

        asyncio.run(everything())
    print_table(
        [
            "body", "kB", "on the loop, ms", "by the reading thread, ms",
            "between two turns, ms: least", "median", "`json.loads`, ms",
        ],
        [
            [
                row["body"], f"{row['bytes'] / 1e3:,.0f}",
                *(f"{row[name]:.1f}" for name in NAMES),
            ]
            for row in rows
        ],
    )  # fmt: skip
    over = [row["body"] for row in rows if max(row["loop_ms"], row["thread_ms"]) > MOST_HELD_MS]
    print(f"Above {MOST_HELD_MS:g} ms of processor time: {', '.join(over) or 'none'}.")
    finish("loop_hold", {"rows": rows, "over": over})
    return 1 if over else 0


async def idle(repeats: int, stretches: Stretches) -> dict[str, float]:
    """The same watch over nothing: what the machine does to it."""

    async def nothing() -> int:
        await asyncio.sleep(0.02)
        return 200

    return summary([await longest_hold_s(nothing, stretches) for _ in range(repeats)])


def summary(held_s: Sequence[tuple[float, float, float]]) -> dict[str, float]:
    wall, own, thread = 1e3 * np.asarray(held_s).T
    return {
        "loop_ms": float(np.median(own)), "thread_ms": float(np.median(thread)),
        "wall_least_ms": float(wall.min()), "wall_ms": float(np.median(wall)),
    }  # fmt: skip


if __name__ == "__main__":
    sys.exit(main())
