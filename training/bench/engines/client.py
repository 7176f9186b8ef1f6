"""An open-loop streaming client for an OpenAI-compatible server.

Every request goes out at its own time, fixed beforehand, whether or not earlier ones have come
back; how late the client itself was is recorded. Bodies are encoded before the clock starts, and
are the same for every arm but for the length hint of the `oracle` arm: nothing else in them
depends on the true length. The length comes from a table the server's replay processor holds,
by an opaque `replay_id`.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import json
import time
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import aiohttp

from lengthwise.data.workload import WorkloadRequest

COMPLETION_PATH = "/v1/completions"
QUEUE_METRICS = {
    "vllm:num_requests_waiting": "waiting",
    "vllm:num_requests_running": "running",
}


class BenchError(RuntimeError):
    """The engine did not do what a measurement needs."""


@dataclass(frozen=True, slots=True)
class Call:
    """One request ready to go: when, s from the start, the encoded JSON body, and where to."""

    arrival_s: float
    body: bytes
    path: str = COMPLETION_PATH


@dataclass(frozen=True, slots=True)
class Reply:
    """What came back. `send_s` from the run's start, `ttft_s` and `e2e_s` from the send.

    `cut` says that the answer ended at `max_tokens`.
    """

    send_s: float
    ttft_s: float | None = None
    e2e_s: float | None = None
    prompt_tokens: int = 0
    output_tokens: int = 0
    error: str | None = None
    cut: bool = False


@dataclass(frozen=True, slots=True)
class QueueSample:
    """Queue length as the server's /metrics gave it, `at_s` from the run's start."""

    at_s: float
    waiting: int
    running: int


@dataclass(frozen=True, slots=True)
class ReplayLog:
    """Replies in the order of the calls, and the queue over time."""

    replies: tuple[Reply, ...]
    queue: tuple[QueueSample, ...]


def completion_body(
    request: WorkloadRequest,
    *,
    model: str,
    replay_id: int,
    max_tokens: int,
    prompt_ids: Sequence[int] | None = None,
    cache_salt: str | None = None,
    tell_length: bool = False,
) -> bytes:
    """JSON body of a /v1/completions call for a workload request.

    Args:
        request: its text, or `prompt_ids` where it has none, is the prompt.
        model: served model name.
        replay_id: key of the true length in the server's replay table.
        max_tokens: the request's own, else one value for the whole run, which tells nothing.
        prompt_ids: token ids to send for a request without text.
        cache_salt: keeps the prefix cache of one run from serving the next.
        tell_length: send the true length as the client hint `osl` (the oracle arm).
    """
    xargs: dict[str, Any] = {"replay_id": replay_id, **request.slo.to_xargs()}
    if tell_length:
        xargs["osl"] = request.output_tokens
    body: dict[str, Any] = {
        "model": model,
        "prompt": request.prompt if request.prompt is not None else list(prompt_ids or [1]),
        "max_tokens": max_tokens,
        "temperature": 0.0,
        "stream": True,
        "stream_options": {"include_usage": True},
        "vllm_xargs": xargs,
    }
    if cache_salt is not None:
        body["cache_salt"] = cache_salt
    return json.dumps(body).encode()


async def _read_stream(response: aiohttp.ClientResponse, sent: float, reply: Reply) -> Reply:
    """Follow the server-sent events of one answer. `sent` is the clock at the send."""
    first = last = None
    prompt_tokens = output_tokens = 0
    cut = False
    async for raw in response.content:
        if not raw.startswith(b"data:"):
            continue
        payload = raw[5:].strip()
        if payload == b"[DONE]":
            break
        event = json.loads(payload)
        if "error" in event:
            return replace(reply, error=f"server: {event['error']}"[:300])
        if choices := event.get("choices"):
            last = time.perf_counter()
            first = first or last
            cut = cut or choices[0].get("finish_reason") == "length"
        if usage := event.get("usage"):
            prompt_tokens = int(usage.get("prompt_tokens", 0))
            output_tokens = int(usage.get("completion_tokens", 0))
    if first is None or last is None:
        return replace(reply, error="the stream ended without a token")
    if output_tokens == 0:
        return replace(reply, error="the stream ended without a usage record")
    return replace(
        reply,
        ttft_s=first - sent,
        e2e_s=last - sent,
        prompt_tokens=prompt_tokens,
        output_tokens=output_tokens,
        cut=cut,
    )


async def complete(
    session: aiohttp.ClientSession,
    url: str,
    body: bytes,
    *,
    start: float,
    timeout_s: float,
    path: str = COMPLETION_PATH,
) -> Reply:
    """Send one body, follow the stream to its end; a failure is a reply with `error` set."""
    sent = time.perf_counter()
    reply = Reply(send_s=sent - start)
    try:
        async with (
            asyncio.timeout(timeout_s),
            session.post(
                f"{url}{path}", data=body, headers={"Content-Type": "application/json"}
            ) as response,
        ):
            if response.status != 200:
                text = (await response.text())[:300]
                return replace(reply, error=f"HTTP {response.status}: {text}")
            return await _read_stream(response, sent, reply)
    except TimeoutError:
        return replace(reply, error=f"no end after {timeout_s:g} s")
    except (aiohttp.ClientError, ConnectionError, ValueError) as error:
        return replace(reply, error=f"{type(error).__name__}: {error}"[:300])


def parse_queue_metrics(text: str) -> dict[str, int]:
    """`waiting` and `running` from the Prometheus text of a vLLM server (summed over engines)."""
    found = {"waiting": 0, "running": 0}
    for line in text.splitlines():
        name = line.partition("{")[0].partition(" ")[0]
        if name in QUEUE_METRICS:
            found[QUEUE_METRICS[name]] += int(float(line.rpartition(" ")[2]))
    return found


@dataclass(slots=True)
class _QueueWatch:
    """Samples /metrics at a fixed period until stopped; a missed sample is left out."""

    url: str
    period_s: float
    start: float
    samples: list[QueueSample] = field(default_factory=list)

    async def run(self, session: aiohttp.ClientSession) -> None:
        while True:
            at_s = time.perf_counter() - self.start
            try:
                async with session.get(f"{self.url}/metrics") as response:
                    now = parse_queue_metrics(await response.text())
                self.samples.append(QueueSample(at_s, now["waiting"], now["running"]))
            except (aiohttp.ClientError, ConnectionError, TimeoutError):
                # the requests themselves will show what is wrong with the server
                await asyncio.sleep(self.period_s)
            await asyncio.sleep(self.period_s)


def new_session() -> aiohttp.ClientSession:
    """Session without a cap on connections: the server, not the client, does the queueing.

    Every request gets a connection of its own: the server closes idle ones after some seconds,
    and a request sent down one that is just being closed would be lost.
    """
    return aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=0, force_close=True),
        timeout=aiohttp.ClientTimeout(total=None, sock_connect=30),
        read_bufsize=2**18,
    )


async def replay(
    url: str,
    calls: Sequence[Call],
    *,
    timeout_s: float = 600.0,
    queue_period_s: float | None = 1.0,
    on_done: Callable[[], None] = lambda: None,
) -> ReplayLog:
    """Send `calls` open loop and wait for all of them.

    Args:
        url: base address of the server.
        calls: in order of arrival.
        timeout_s: per request; one that takes longer is lost.
        queue_period_s: period of queue samples; None for none.
        on_done: called as each answer ends (progress).
    """
    async with new_session() as session, collected():
        start = time.perf_counter() + 0.05
        watch = _QueueWatch(url, queue_period_s or 1.0, start)
        watcher = asyncio.create_task(watch.run(session)) if queue_period_s else None

        async def one(call: Call) -> Reply:
            reply = await complete(
                session, url, call.body, start=start, timeout_s=timeout_s, path=call.path
            )
            on_done()
            return reply

        tasks = []
        try:
            for call in calls:
                delay_s = start + call.arrival_s - time.perf_counter()
                if delay_s > 0:
                    await asyncio.sleep(delay_s)
                tasks.append(asyncio.create_task(one(call)))
            replies = await asyncio.gather(*tasks)
        finally:
            for task in tasks:
                task.cancel()
            if watcher is not None:
                watcher.cancel()
        return ReplayLog(tuple(replies), tuple(watch.samples))


@contextlib.asynccontextmanager
async def collected() -> AsyncIterator[None]:
    """Collect garbage now, which may take seconds, and not again until the end."""
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


async def drive_closed(
    url: str,
    bodies: Sequence[bytes],
    *,
    concurrency: int,
    timeout_s: float = 600.0,
    on_done: Callable[[], None] = lambda: None,
    path: str = COMPLETION_PATH,
) -> tuple[Reply, ...]:
    """Send `bodies` with at most `concurrency` in flight (closed loop, for calibration)."""
    gate = asyncio.Semaphore(concurrency)
    async with new_session() as session:
        start = time.perf_counter()

        async def one(body: bytes) -> Reply:
            async with gate:
                reply = await complete(
                    session, url, body, start=start, timeout_s=timeout_s, path=path
                )
            on_done()
            return reply

        return tuple(await asyncio.gather(*(one(body) for body in bodies)))


async def wait_idle(url: str, *, timeout_s: float = 120.0, poll_s: float = 0.2) -> None:
    """Wait until nothing waits or runs on the server.

    Raises:
        TimeoutError: it is still busy after `timeout_s`.
    """
    async with asyncio.timeout(timeout_s), new_session() as session:
        while True:
            async with session.get(f"{url}/metrics") as response:
                now = parse_queue_metrics(await response.text())
            if not now["waiting"] and not now["running"]:
                return
            await asyncio.sleep(poll_s)


async def served_model(url: str) -> tuple[str, int]:
    """Name and context length (tokens) of the model a server serves."""
    async with new_session() as session, session.get(f"{url}/v1/models") as response:
        entry = (await response.json())["data"][0]
        return str(entry["id"]), int(entry.get("max_model_len") or 4096)
