"""Pure ASGI in front of LMDeploy's server: what a request's planner may know, and forced lengths.

A body may carry ``lengthwise``: ``{"quantiles": [...], "slo": {"ttft_s": ...}, "replay_tokens"}``.
It is taken out before LMDeploy sees the body. The forced length goes into ``max_tokens`` and
``ignore_eos``, at which none of LMDeploy's schedulers looks, and never to the planner. Stock
servers get the same middleware, so that all arms are asked alike.
"""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, MutableMapping
from contextvars import ContextVar
from typing import Any

from lengthwise.data.errors import shown

HINTS: ContextVar[dict[str, Any]] = ContextVar("lengthwise_hints")
FIELD = "lengthwise"
ROUTES = ("/v1/completions", "/v1/chat/completions")
CONFIGURE = "/lengthwise/configure"
STATUS = "/lengthwise/status"

# ASGI's own types
Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]


class PoolMiddleware:
    """``configure`` and ``status`` answer the two routes of ours with a JSON object each."""

    def __init__(
        self,
        app: Callable[[Scope, Receive, Send], Awaitable[None]],
        configure: Callable[[dict[str, Any]], dict[str, Any]],
        status: Callable[[], dict[str, Any]],
    ) -> None:
        self.app, self.configure, self.status = app, configure, status

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        path = scope.get("path")
        if scope["type"] != "http" or path not in (*ROUTES, CONFIGURE, STATUS):
            await self.app(scope, receive, send)
        elif path == STATUS:
            await _answer(send, 200, self.status())
        elif path == CONFIGURE:
            try:
                await _answer(send, 200, self.configure(json.loads(await _body(receive))))
            except (ValueError, KeyError, TypeError) as error:
                await _answer(send, 400, {"error": str(error)})
        else:
            await self._generate(scope, receive, send)

    async def _generate(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            document = json.loads(await _body(receive))
        except ValueError as error:
            document = str(error)
        if not isinstance(document, dict):
            await _answer(send, 400, {"error": f"the body is no JSON object: {shown(document)}"})
            return
        hints = document.pop(FIELD, {})
        if isinstance(document.get("prompt"), list):
            refusal = "LMDeploy's /v1/completions takes text, not token ids: send them to /generate"
            await _answer(send, 400, {"error": refusal})
            return
        replay_tokens = hints.pop("replay_tokens", None)
        HINTS.set(hints)
        if replay_tokens is not None:
            document |= {"max_tokens": int(replay_tokens), "ignore_eos": True}
        body = json.dumps(document).encode()
        headers = [(k, v) for k, v in scope["headers"] if k != b"content-length"]
        headers.append((b"content-length", str(len(body)).encode()))
        told = False

        async def once() -> MutableMapping[str, Any]:
            nonlocal told
            if told:
                return await receive()
            told = True
            return {"type": "http.request", "body": body, "more_body": False}

        await self.app({**scope, "headers": headers}, once, send)


async def _body(receive: Receive) -> bytes:
    parts, more = [], True
    while more:
        message = await receive()
        parts.append(message.get("body", b""))
        more = bool(message.get("more_body"))
    return b"".join(parts)


async def _answer(send: Send, status: int, document: dict[str, Any]) -> None:
    body = json.dumps(document).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body))]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
