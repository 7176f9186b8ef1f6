"""The bench's stub with a chat route: it ends its answers itself, by prompt, seed and limit."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from aiohttp import web
from bench_stub import Stub, running

__all__ = ["ChatStub", "running"]


@dataclass
class ChatStub(Stub):
    """An answer of `own_tokens(body)` tokens, cut at `max_tokens`."""

    shift: int = 0  # what another batch makes of the same request
    refused: set[str] = field(default_factory=set)

    def own_tokens(self, body: dict[str, Any]) -> int:
        return len(body["messages"][0]["content"]) + body["seed"] % 3 + self.shift

    def app(self) -> web.Application:
        app = super().app()
        app.router.add_post("/v1/chat/completions", self.chat)
        return app

    async def chat(self, request: web.Request) -> web.StreamResponse:
        body = await request.json()
        self.bodies.append(body)
        if body["messages"][0]["content"] in self.refused:
            return web.json_response({"error": {"message": "no"}}, status=400)
        wanted, limit = self.own_tokens(body), body["max_tokens"]
        n, ended = min(wanted, limit), "length" if wanted >= limit else "stop"
        self.waiting += 1
        async with self._gate:
            self.waiting -= 1
            self.running += 1
            try:
                return await self._stream(request, n, None, ended=ended)
            finally:
                self.running -= 1
