"""The servers of a comparison: stock vLLM and ours, both up, loaded in turn and never at once."""

from __future__ import annotations

import asyncio
import contextlib
import json
import signal
import socket
import threading
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from lengthwise.data.arena.whole_prompts import whole_prompt
from lengthwise.data.errors import InputError
from lengthwise.data.workload import WorkloadRequest
from lengthwise.scheduler.serving.server.server_handle import ServerHandle
from lengthwise.scheduler.serving.settings import ServerSettings
from lengthwise.scheduler.vllm_adapter.emulated.options import EmulateOptions, emulable_profile
from lengthwise.scheduler.vllm_adapter.server.launch import launch_server
from lengthwise.scheduler.vllm_adapter.server.tiny import TINY_NAME
from lengthwise.training.bench.engines.client import (
    BenchError,
    Call,
    completion_body,
    drive_closed,
    served_model,
)
from lengthwise.training.bench.engines.cores import bound_cores, keep_off, off_cores, punctual
from lengthwise.training.bench.engines.emulated_servers import EmulatedServers, StepReader
from lengthwise.training.bench.engines.generation import CHAT_PATH, Generation, chat_body
from lengthwise.training.packaged_model import packaged_model
from lengthwise.training.registry.models import ResolvedPredictor

REPLAY_LIMIT_TOKENS = 16_384
# A prompt's tokens are another tokenizer's count, and without those of a chat template.
PROMPT_MARGIN, CHAT_TEMPLATE_TOKENS = 1.15, 64
IDS_PER_LENGTH = 4
START_TIMEOUT_S = 900.0  # a cold compilation on a busy machine takes minutes
FIRST_ORDINARY_TOKEN = 100
# On two cores a message per token costs more than the built-in model's step, and the client that
# reads them shares a core with the engine. The first token still comes at once, on both servers.
TINY_ARGS = ("--stream-interval", "16")


@dataclass(frozen=True, slots=True)
class ReplayIds:
    """Opaque ids for every length up to a limit; row L - 1 of `ids` are those of length L.

    One table serves any workload, so servers can start before the requests are drawn.
    """

    ids: np.ndarray

    @classmethod
    def random(cls, limit_tokens: int, seed: int = 0) -> ReplayIds:
        """Ids in random order, so that an id says nothing about its length."""
        shuffled = np.random.default_rng(seed).permutation(limit_tokens * IDS_PER_LENGTH)
        return cls(shuffled.reshape(limit_tokens, IDS_PER_LENGTH))

    def id_of(self, length_tokens: int, turn: int) -> int:
        """An id of this length.

        Raises:
            InputError: longer than the served model can answer.
        """
        if length_tokens > len(self.ids):
            raise InputError(
                f"output_tokens {length_tokens} is above {len(self.ids)}, the longest answer "
                "this model and bench can replay"
            )
        return int(self.ids[length_tokens - 1, turn % self.ids.shape[1]])

    def write(self, path: Path) -> Path:
        """The table as the replay processor reads it: JSON object from id to length."""
        table = {str(i): row + 1 for row, ids in enumerate(self.ids.tolist()) for i in ids}
        path.write_text(json.dumps(table), encoding="utf-8")
        return path


@dataclass(frozen=True, slots=True)
class BenchServers:
    """Running servers of one model. `stock` is None where only ours is wanted.

    `context_tokens` are what a prompt and its answer may take together; 0 where that is unknown.
    With `generation` answers have the model's own lengths, else the replayed ones.
    """

    ours: ServerHandle
    stock: ServerHandle | None
    model: str
    max_tokens: int
    replay: ReplayIds
    vllm_args: tuple[str, ...]
    step_log: Path | None = None  # where `ours` logs its steps while it is told to
    emulated: EmulatedServers | None = None
    context_tokens: int = 0
    generation: Generation | None = None

    def calls(
        self, requests: Sequence[WorkloadRequest], *, salt: str, tell_length: bool = False
    ) -> list[Call]:
        """Encoded calls for `requests`; `salt` keeps the prefix caches of two runs apart."""
        if self.generation is not None:
            return [
                Call(
                    r.arrival_s,
                    chat_body(r, i, self.generation, model=self.model, cache_salt=salt),
                    CHAT_PATH,
                )
                for i, r in enumerate(requests)
            ]
        return [
            Call(
                r.arrival_s,
                completion_body(
                    replace(r, prompt=whole_prompt(r, i)),
                    model=self.model,
                    replay_id=self.replay.id_of(r.output_tokens, i),
                    max_tokens=self._most_tokens(r),
                    prompt_ids=None if r.prompt else prompt_ids(r, i),
                    cache_salt=salt,
                    tell_length=tell_length,
                ),
            )
            for i, r in enumerate(requests)
        ]

    def _most_tokens(self, request: WorkloadRequest) -> int:
        """What is said of the answer's length: the same of all, but what a long prompt leaves."""
        most = min(self.max_tokens, request.max_tokens or self.max_tokens)
        if not self.context_tokens:
            return most
        prompt = int(PROMPT_MARGIN * request.prompt_tokens) + CHAT_TEMPLATE_TOKENS
        return max(min(most, self.context_tokens - prompt), min(most, request.output_tokens))


def prompt_ids(request: WorkloadRequest, seed: int) -> list[int]:
    """Token ids for a request whose text is unknown, its shared beginning as everybody's."""
    shared = request.prefix_tokens or 0
    beginning = filler_ids(shared, zlib.crc32(str(request.prefix).encode())) if shared else []
    return [*beginning, *filler_ids(request.prompt_tokens - shared, seed)][: request.prompt_tokens]


def filler_ids(n: int, seed: int) -> list[int]:
    """`n` token ids for a request whose text is unknown; other ids for another seed."""
    ids = np.random.default_rng(seed).integers(
        FIRST_ORDINARY_TOKEN, 10 * FIRST_ORDINARY_TOKEN, max(n, 1)
    )
    return [int(i) for i in ids]


def free_port() -> int:
    """A TCP port free at this moment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextlib.contextmanager
def start_servers(
    model: str,
    *,
    directory: Path,
    cache_dir: Path,
    predictor: ResolvedPredictor | None = None,
    profile: Path | str | None = None,
    vllm_args: Sequence[str] = (),
    with_stock: bool = True,
    emulate: str | None = None,
    generation: Generation | None = None,
    **settings: Any,
) -> Iterator[BenchServers]:
    """Start both servers at once, wait until they answer, stop them at the end.

    Meanwhile this thread, which is the client's, and all of the servers that is not bound, keep
    off the cores that their engines are bound to, and the thread runs as it wakes (`cores`).

    Args:
        model: `tiny`, `smollm2` or anything vLLM serves.
        directory: for the servers' logs and the replay table.
        cache_dir: where the built-in model is kept.
        predictor: what our server predicts with; None for a server without one.
        profile: engine profile for the planner.
        vllm_args: passed to both servers alike.
        with_stock: start stock vLLM too.
        emulate: profile, by name or file, of the device that takes the engine's place.
        generation: let the model end its answers; nothing that could force a length is loaded.
        settings: further fields of ServerSettings.
    """

    directory.mkdir(parents=True, exist_ok=True)
    if model == TINY_NAME:
        vllm_args = (*TINY_ARGS, *vllm_args)
    model, vllm_args = packaged_model(model, vllm_args)
    replay = ReplayIds.random(REPLAY_LIMIT_TOKENS)
    table = replay.write(directory / "replay.json")
    step_log = (directory / "steps.jsonl").absolute()
    ours_settings = ServerSettings(
        predictor_dir=None if predictor is None else str(predictor.directory),
        predictor_version=None if predictor is None else predictor.label,
        lengths="none" if predictor is None else "learned",
        policy="sa",  # compiled before the server is up, and not when an arm is switched to it
        profile=None if profile is None else str(profile),
        allow_configure=True,
        step_log=str(step_log),
        # a fit to emulated steps would only find the profile again
        **({} if emulate is None else {"refit_steps": 0}),
        **settings,
    )
    device = None if emulate is None else emulable_profile(emulate)
    logs = {kind: (directory / f"emulated-{kind}.jsonl").absolute() for kind in ("ours", "stock")}

    def emulated(kind: str) -> EmulateOptions | None:
        return None if emulate is None else EmulateOptions(emulate, step_log=str(logs[kind]))

    common: dict[str, Any] = {
        "vllm_args": list(vllm_args),
        "cache_dir": cache_dir,
        "replay_table": table if generation is None else None,
    }
    with contextlib.ExitStack() as stack:
        stack.enter_context(leaving_on_sigterm())
        ours = stack.enter_context(
            launch_server(
                model,
                ours_settings,
                free_port(),
                log_path=directory / "server-lengthwise.log",
                emulate=emulated("ours"),
                **common,
            )
        )
        stock = None
        if with_stock:
            stock = stack.enter_context(
                launch_server(
                    model,
                    None,
                    free_port(),
                    log_path=directory / "server-stock.log",
                    emulate=emulated("stock"),
                    **common,
                )
            )
        for server in (ours, stock):
            if server is not None:
                server.wait_ready(START_TIMEOUT_S)
        leaders = [server.process.pid for server in (ours, stock) if server is not None]
        bound = bound_cores(leaders)
        keep_off(leaders, bound)
        stack.enter_context(off_cores(bound))
        stack.enter_context(punctual())
        name, context_tokens = asyncio.run(served_model(ours.url))
        yield BenchServers(
            ours=ours,
            stock=stock,
            model=name,
            max_tokens=min(REPLAY_LIMIT_TOKENS, context_tokens // 2),
            context_tokens=context_tokens,
            replay=replay,
            generation=generation,
            vllm_args=tuple(vllm_args),
            step_log=step_log,
            emulated=None
            if device is None
            else EmulatedServers(
                device, StepReader(logs["ours"]), StepReader(logs["stock"]) if with_stock else None
            ),
        )


@contextlib.contextmanager
def leaving_on_sigterm() -> Iterator[None]:
    """Turn SIGTERM into SystemExit, so that a terminated bench leaves no server behind."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def leave(number: int, frame: object) -> None:
        raise SystemExit(128 + number)

    previous = signal.signal(signal.SIGTERM, leave)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous)


async def warm_up(servers: BenchServers, url: str, requests: Sequence[WorkloadRequest]) -> None:
    """A few requests that are not measured: first calls compile, allocate and open files.

    Raises:
        BenchError: the server answers none of them.
    """
    calls = servers.calls(requests, salt="warm-up")
    replies = await drive_closed(
        url, [c.body for c in calls], concurrency=16, timeout_s=120, path=calls[0].path
    )
    if all(reply.error for reply in replies):
        raise BenchError(f"the server at {url} fails every request: {replies[0].error}")
