"""Was every request answered exactly once? What the client got against what the log says.

Requests carry ids of ours, which vLLM keeps inside its own (``cmpl-ID-0-1a2b3c4d``), so replies
and rows of the request log can be joined. The length of every answer is known beforehand (a
replay table), so a reply that was cut or doubled shows.
"""

from __future__ import annotations

import asyncio
import json
import math
import re
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
import httpx

from lengthwise.data.request_log import FILE_PATTERN, read_request_log
from lengthwise.training.bench.engines.client import Reply, complete, new_session
from lengthwise.training.bench.engines.reply_rate import loaded_tokens_per_s

_ENGINE_ID = re.compile(r"(?:chat)?cmpl-(?P<own>.+)-\d+-[0-9a-f]{8}")


@dataclass(frozen=True)
class Asked:
    """One request: its id, its body, the answer's length; when and how its client leaves.

    ``leaves_after`` 0: before the first token, n: after n pieces of the answer; None: never.
    """

    own_id: str
    body: bytes
    output_tokens: int
    leaves_after: int | None = None


@dataclass(frozen=True)
class Account:
    """What became of a load; ``loaded_tokens_per_s`` while there was a queue, nan without one."""

    sent: int
    answered: int
    left: int
    elapsed_s: float
    output_tokens: int
    loaded_tokens_per_s: float = math.nan
    errors: dict[str, str] = field(default_factory=dict)
    wrong_lengths: dict[str, int] = field(default_factory=dict)
    rows: Mapping[str, int] | None = None

    @property
    def lost(self) -> int:
        """Requests whose client stayed and has no whole answer."""
        return len(self.errors.keys() | self.wrong_lengths.keys())

    @property
    def twice(self) -> list[str]:
        """Ids with more than one row in the request log."""
        return sorted(name for name, count in (self.rows or {}).items() if count > 1)

    @property
    def tokens_per_s(self) -> float:
        """Answer tokens that clients got, a second."""
        return self.output_tokens / self.elapsed_s


def ask(
    own_id: str,
    replay_id: object,
    output_tokens: int,
    *,
    prompt: Any = None,
    model: str = "tiny",
    max_tokens: int = 1000,
    leaves_after: int | None = None,
    **xargs: Any,
) -> Asked:
    """A streaming completion whose answer the replay table knows.

    ``replay_id`` None: the answer is as long as ``max_tokens`` says.
    """
    body = {
        "model": model,
        "request_id": own_id,
        "prompt": f"Tell me about {own_id}." if prompt is None else prompt,
        "max_tokens": max_tokens,
        "temperature": 0.0,
        "stream": True,
        "stream_options": {"include_usage": True},
        "vllm_xargs": xargs,
    }
    if replay_id is None:
        body["ignore_eos"] = True
    else:
        body["vllm_xargs"] = {"replay_id": replay_id, **xargs}
    return Asked(own_id, json.dumps(body).encode(), output_tokens, leaves_after)


async def drive(
    url: str, asked: Sequence[Asked], *, concurrency: int | None = None, timeout_s: float = 120.0
) -> Account:
    """Send all, at most ``concurrency`` in flight (None: at once), and follow every answer."""
    gate = asyncio.Semaphore(concurrency or len(asked))
    began_s = time.perf_counter()

    async with new_session() as session:

        async def one(request: Asked) -> Reply | None:
            async with gate:
                if request.leaves_after is not None:
                    await leave(session, url, request, timeout_s)
                    return None
                return await complete(
                    session, url, request.body, start=began_s, timeout_s=timeout_s
                )

        replies = await asyncio.gather(*(one(request) for request in asked))
    elapsed_s = time.perf_counter() - began_s
    pairs = [(a, r) for a, r in zip(asked, replies, strict=True) if r is not None]
    errors = {a.own_id: r.error for a, r in pairs if r.error is not None}
    good = [(a, r) for a, r in pairs if r.error is None]
    wrong = {a.own_id: r.output_tokens for a, r in good if r.output_tokens != a.output_tokens}
    return Account(
        sent=len(asked),
        answered=len(good) - len(wrong),
        left=len(asked) - len(pairs),
        elapsed_s=elapsed_s,
        output_tokens=sum(r.output_tokens for _, r in good),
        loaded_tokens_per_s=_loaded_tokens_per_s([r for _, r in good]),
        errors=errors,
        wrong_lengths=wrong,
    )


def _loaded_tokens_per_s(replies: Sequence[Reply]) -> float:
    """Without the burst at the start and the last answers, whose turn an order decides."""
    if len(replies) < 2:
        return math.nan
    try:
        return loaded_tokens_per_s(replies)
    except ValueError:  # everybody began at once
        return math.nan


async def leave(session: aiohttp.ClientSession, url: str, request: Asked, timeout_s: float) -> None:
    """Hang up after some pieces of the answer, or before the first."""
    headers = {"Content-Type": "application/json"}
    try:
        async with asyncio.timeout(timeout_s if request.leaves_after else 0.2):
            async with session.post(
                f"{url}/v1/completions", data=request.body, headers=headers
            ) as response:
                pieces = 0
                async for line in response.content:
                    pieces += line.startswith(b"data:")
                    if pieces >= (request.leaves_after or 0):
                        return
    except TimeoutError:
        return


def logged(log_dir: Path | str) -> Counter[str]:
    """Rows of the request log by our own id."""
    if not any(Path(log_dir).glob(FILE_PATTERN)):  # the texts' file may be there before it
        return Counter()
    ids = read_request_log(log_dir)["request_id"]
    return Counter(own_id(engine_id) for engine_id in ids)


def own_id(engine_id: str) -> str:
    """The client's id inside the engine's; the engine's own where there is none."""
    found = _ENGINE_ID.fullmatch(engine_id)
    return found["own"] if found else engine_id


def wait_for_rows(
    log_dir: Path | str, wanted: Iterable[str], patience_s: float = 15.0, each: int = 1
) -> Counter[str]:
    """The log's rows of the wanted ids once all have ``each``, or when patience ends."""
    names = set(wanted)
    return wait_for(
        lambda: _of(names, logged(log_dir)),
        lambda rows: all(rows[name] >= each for name in names),
        patience_s,
    )


def _of(names: set[str], rows: Counter[str]) -> Counter[str]:
    return Counter({name: count for name, count in rows.items() if name in names})


def wait_for(read: Callable[[], Any], done: Callable[[Any], bool], patience_s: float = 15.0) -> Any:
    """What ``read`` gives once ``done``, or what it gave last."""
    end_s = time.monotonic() + patience_s
    while not done(found := read()) and time.monotonic() < end_s:
        time.sleep(0.1)
    return found


def metric(url: str, name: str, **labels: str) -> float:
    """The sum of a metric's series that have these labels, from ``/metrics``; 0 without any.

    A value like ``"timeout|skipped"`` stands for either.
    """
    return metric_in(httpx.get(f"{url}/metrics", timeout=60).text, name, **labels)


def metric_in(text: str, name: str, **labels: str) -> float:
    """The same from a text already fetched."""
    wanted = [re.compile(f'\\b{label}="({value})"') for label, value in labels.items()]
    total = 0.0
    for line in text.splitlines():
        series, _, value = line.rpartition(" ")
        if series.partition("{")[0] == name and all(label.search(series) for label in wanted):
            total += float(value)
    return total
