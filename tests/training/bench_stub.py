"""A loopback server that speaks streaming /v1/completions with known timing, for client tests."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from aiohttp import web


@dataclass
class Stub:
    """Answers take `ttft_s` + (n - 1) x `itl_s`; n comes from `lengths[replay_id]`."""

    ttft_s: float = 0.05
    itl_s: float = 0.01
    lengths: dict[int, int] = field(default_factory=dict)
    fail_ids: dict[int, str] = field(default_factory=dict)
    slots: int = 1000
    bodies: list[dict[str, Any]] = field(default_factory=list)
    configured: list[dict[str, Any]] = field(default_factory=list)
    waiting: int = 0
    running: int = 0
    refuse: str = ""
    steps: list[list[float]] = field(default_factory=list)
    step_log: Path | None = None
    capacity: dict[str, int] = field(default_factory=dict)
    plan: dict[str, float] = field(default_factory=lambda: {"ms_p50": 0.4, "ms_p99": 0.9})
    url: str = ""

    def app(self) -> web.Application:
        self._gate = asyncio.Semaphore(self.slots)
        app = web.Application()
        app.router.add_post("/v1/completions", self.completions)
        app.router.add_get("/v1/models", self.models)
        app.router.add_get("/metrics", self.metrics)
        app.router.add_get("/lengthwise/status", self.status)
        app.router.add_post("/lengthwise/configure", self.configure)
        return app

    async def completions(self, request: web.Request) -> web.StreamResponse:
        body = await request.json()
        self.bodies.append(body)
        key = body["vllm_xargs"]["replay_id"]
        fault = self.fail_ids.get(key)
        if fault == "400":
            return web.json_response({"error": {"message": "no"}}, status=400)
        n = self.lengths[key]
        self.waiting += 1
        async with self._gate:
            self.waiting -= 1
            self.running += 1
            try:
                return await self._stream(request, n, fault)
            finally:
                self.running -= 1

    async def _stream(
        self, request: web.Request, n: int, fault: str | None, ended: str = "stop"
    ) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)

        async def send(event: Any) -> None:
            await response.write(b"data: " + json.dumps(event).encode() + b"\n\n")

        for i in range(n):
            await asyncio.sleep(self.ttft_s if i == 0 else self.itl_s)
            if fault == "break" and i == 1:
                assert request.transport is not None
                request.transport.close()
                return response
            if fault == "error" and i == 1:
                await send({"error": {"message": "engine died"}})
                return response
            reason = ended if i == n - 1 else None
            choice = {"index": 0, "text": 'x"usage"', "finish_reason": reason}
            await send({"choices": [choice], "usage": None})
        if fault != "no usage":
            usage = {"prompt_tokens": 7, "completion_tokens": n}
            await send({"choices": [], "usage": usage})
        await response.write(b"data: [DONE]\n\n")
        return response

    async def models(self, request: web.Request) -> web.Response:
        return web.json_response({"data": [{"id": "stub", "max_model_len": 2048}]})

    async def metrics(self, request: web.Request) -> web.Response:
        return web.Response(
            text="# HELP vllm:num_requests_waiting x\n"
            f'vllm:num_requests_waiting{{engine="0",model_name="stub"}} {float(self.waiting)}\n'
            'vllm:num_requests_waiting_by_reason{engine="0"} 99.0\n'
            f'vllm:num_requests_running{{engine="0"}} {float(self.running)}\n'
        )

    async def status(self, request: web.Request) -> web.Response:
        cache = {"block_tokens": 32}
        return web.json_response(
            {"plan": self.plan, "capacity": self.capacity, "prefix_cache": cache}
        )

    async def configure(self, request: web.Request) -> web.Response:
        body = await request.json()
        if self.refuse and body.get("policy") == self.refuse:
            return web.json_response({"error": "not now"}, status=400)
        self.configured.append(body)
        if body.get("log_steps"):
            assert self.step_log is not None
            self.step_log.write_text("".join(json.dumps(row) + "\n" for row in self.steps))
        return web.json_response({})


@contextmanager
def running(stub: Stub) -> Iterator[Stub]:
    """The stub on a free loopback port, in a thread with its own loop."""
    ready, stop = threading.Event(), threading.Event()

    async def serve() -> None:
        runner = web.AppRunner(stub.app())
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        assert site._server is not None
        stub.url = "http://127.0.0.1:%d" % site._server.sockets[0].getsockname()[1]  # noqa: UP031
        ready.set()
        while not stop.is_set():
            await asyncio.sleep(0.02)
        await runner.cleanup()

    thread = threading.Thread(target=lambda: asyncio.run(serve()), daemon=True)
    thread.start()
    assert ready.wait(5)
    try:
        yield stub
    finally:
        stop.set()
        thread.join(5)
