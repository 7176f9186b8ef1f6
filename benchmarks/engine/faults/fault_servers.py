"""What the parts of the table share: the predictor, the requests, servers of both kinds."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from benchmarks.common import note
from benchmarks.engine.accounts import Asked, ask, drive
from benchmarks.engine.faults.fault_pair import SLOTS, Pair
from benchmarks.engine.faults.fault_rows import Book
from lengthwise.data.sources.synthetic.corpus import synthetic_table
from lengthwise.data.splits import split_table
from lengthwise.scheduler.serving.server.server_handle import ServerHandle
from lengthwise.scheduler.serving.settings import ServerSettings
from lengthwise.scheduler.vllm_adapter.server.launch import launch_server
from lengthwise.training.bench.engines.cores import bound_cores, off_cores
from lengthwise.training.bench.engines.servers import free_port

START_TIMEOUT_S = 600.0
ANSWER_TOKENS = 160
"""Of every answer: who serves the short ones first computes more prompts and fewer answer tokens a
second, with or without a fault."""
CLASSES: dict[str, dict[str, float]] = {
    "chat": {"ttft_ms": 3000.0}, "code": {"e2e_ms": 20000.0},
}  # fmt: skip
SERVER_ARGS = ("--max-num-seqs", str(SLOTS), "--stream-interval", "16")


class Bench:
    """Files, the predictor and the requests that all parts share."""

    def __init__(
        self, scratch: Path, seconds: float, eager: Sequence[str], book: Book, pairs: int
    ) -> None:
        from lengthwise.predictor.fitting.fit import fit_predictor

        self.scratch = scratch
        self.seconds = seconds
        self.eager = eager
        self.book = book
        self.pairs = pairs
        self.cache = Path.cwd() / ".lengthwise"
        table = synthetic_table(2000, seed=11)
        parts = split_table(table)
        predictor = fit_predictor(parts["train"], parts["calibration"], n_estimators=40)
        self.predictor_dir = scratch / "predictor"
        predictor.save(self.predictor_dir)
        frame = parts["test"].head(400).reset_index(drop=True)
        self.prompts = frame["prompt"].tolist()
        self.replay = scratch / "replay.json"
        self.replay.write_text(json.dumps({str(i): ANSWER_TOKENS for i in range(len(frame))}))
        self.count = 4 * SLOTS

    def requests(self, prefix: str) -> list[Asked]:
        """The same prompts and classes for every prefix."""
        names = list(CLASSES)
        return [
            ask(
                f"{prefix}-{i}",
                str(k := i % len(self.prompts)),
                ANSWER_TOKENS,
                prompt=self.prompts[k],
                slo_class=names[i % len(names)],
            )
            for i in range(self.count)
        ]

    def pair(self, stock: ServerHandle, ours: ServerHandle, log_dir: Path) -> Pair:
        """Both warm, and the number of requests fitted to stock's pace."""
        self.fit_to(stock)
        pair = Pair(stock, ours, self.requests, log_dir, self.book, self.pairs)
        pair.load(ours, self.requests(f"warm-{log_dir.name}"), 2 * SLOTS)
        return pair

    def fit_to(self, server: ServerHandle) -> None:
        """As many requests as stock serves in the wanted seconds."""
        asyncio.run(drive(server.url, self.requests("warm"), concurrency=2 * SLOTS))
        account = asyncio.run(drive(server.url, self.requests("pace"), concurrency=2 * SLOTS))
        pace = account.answered / account.elapsed_s
        self.count = max(2 * SLOTS, int(pace * self.seconds))
        note(f"stock serves {pace:.1f} requests/s, {account.tokens_per_s:.0f} tokens/s")

    def settings(self, log_dir: Path, **more: Any) -> ServerSettings:
        return ServerSettings(
            predictor_dir=str(self.predictor_dir),
            predictor_version="faults/1",
            slo_table=CLASSES,
            request_log=str(log_dir),
            **more,
        )

    def server(
        self,
        name: str,
        settings: ServerSettings | None,
        args: Sequence[str],
        env: dict[str, str] | None = None,
    ) -> ServerHandle:
        return launch_server(
            "tiny",
            settings,
            free_port(),
            [*SERVER_ARGS, *self.eager, *args],
            log_path=self.scratch / f"{name}.log",
            replay_table=self.replay,
            cache_dir=self.cache,
            env=env,
        )


@contextlib.contextmanager
def running(*servers: ServerHandle) -> Iterator[None]:
    """Servers until they are ready, and to their end; the client keeps off their engines' cores."""
    with contextlib.ExitStack() as stack:
        for server in servers:
            stack.enter_context(server)
        for server in servers:
            server.wait_ready(START_TIMEOUT_S)
        stack.enter_context(off_cores(bound_cores(server.process.pid for server in servers)))
        yield
