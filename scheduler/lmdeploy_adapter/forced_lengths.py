"""Answers of a comparison as long as they are to be, behind the planner's back.

A body may carry ``lengthwise``: ``{"replay_tokens": L}``, which is taken out before anybody reads
it. What is forced goes into the sampling parameters where a sequence starts, after the planner was
told of it, as ``max_new_tokens`` and ``ignore_eos``, at which none of LMDeploy's schedulers looks.
Stock servers get the same layer, so that all arms are asked alike.
"""

from __future__ import annotations

import json
from contextvars import ContextVar
from typing import Any

from lengthwise.scheduler.serving.api.asgi import (
    App,
    ClientGoneError,
    Receive,
    Scope,
    Send,
    given_again,
    of_length,
    read_limited,
    route_path,
)

FIELD, REPLAY = "lengthwise", "replay_tokens"
ROUTES = ("/v1/completions", "/v1/chat/completions")

_forced: ContextVar[int | None] = ContextVar("lengthwise_forced", default=None)


class ForcedLengths:
    """An ASGI layer; whatever it cannot read it passes on as it came."""

    def __init__(self, app: App) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http" or route_path(scope) not in ROUTES:
            await self.app(scope, receive, send)
            return
        try:
            raw, _ = await read_limited(receive, None)
        except ClientGoneError:
            return
        body, tokens = without_length(bytes(raw))
        _forced.set(tokens)
        await self.app(of_length(scope, len(body)), given_again(body, receive), send)


def without_length(raw: bytes) -> tuple[bytes, int | None]:
    """The body without our field, and the length that it forced, if it did."""
    try:
        document = json.loads(raw)
        tokens = int(document.pop(FIELD)[REPLAY])
        body = json.dumps(document).encode()
    except (ValueError, AttributeError, KeyError, TypeError, OverflowError, RecursionError):
        return raw, None
    return (body, tokens) if tokens >= 1 else (raw, None)


def is_forced_end(reason: str, max_tokens: int) -> bool:
    """Whether what LMDeploy takes for a cut (``length``) is the end that is played, which comes
    before the client's own ``max_tokens``."""
    forced = _forced.get()
    return reason == "length" and forced is not None and forced < max_tokens


def force(parameters: Any) -> None:
    """Put the length that this task's request is to have into its sampling parameters."""
    tokens = _forced.get()
    if tokens is not None:
        parameters.max_new_tokens, parameters.ignore_eos = tokens, True
