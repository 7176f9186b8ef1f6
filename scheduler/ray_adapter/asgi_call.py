"""One call of an ASGI application, whose answer is read as a stream of parts."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from typing import Any

from lengthwise.scheduler.ray_adapter.forwarded import Forwarded, Started
from lengthwise.scheduler.serving.api.asgi import App, Message

_END = object()


def scope_of(request: Forwarded) -> dict[str, Any]:
    """The ASGI scope of a request."""
    return {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.3"},
        "http_version": "1.1",
        "method": request.method,
        "scheme": "http",
        "path": request.path,
        "raw_path": request.path.encode("utf-8", "surrogateescape"),
        "query_string": request.query,
        "root_path": "",
        "headers": list(request.headers),
        "client": request.client,
        "server": None,
        "state": {},
    }


async def answered(app: App, request: Forwarded) -> AsyncGenerator[Started | bytes, None]:
    """What the application answers: `Started`, then the body as it comes.

    Whoever stops reading is a client that has left: the application is told so and cancelled.
    Raises what the application raises before its answer is complete.
    """
    parts: asyncio.Queue[Any] = asyncio.Queue()
    left = asyncio.Event()
    given = False

    async def receive() -> Message:
        nonlocal given
        if not given:
            given = True
            return {"type": "http.request", "body": request.body, "more_body": False}
        await left.wait()
        return {"type": "http.disconnect"}

    async def send(message: Message) -> None:
        if message["type"] == "http.response.start":
            parts.put_nowait(Started(int(message["status"]), list(message.get("headers", ()))))
        elif message["type"] == "http.response.body":
            if body := message.get("body", b""):
                parts.put_nowait(bytes(body))
            if not message.get("more_body", False):
                parts.put_nowait(_END)

    async def run() -> None:
        try:
            await app(scope_of(request), receive, send)
        except BaseException as error:
            parts.put_nowait(error)
            raise
        parts.put_nowait(_END)

    task = asyncio.get_running_loop().create_task(run())
    _RUNNING.add(task)
    task.add_done_callback(_seen)
    complete = False
    try:
        while (part := await parts.get()) is not _END:
            if isinstance(part, BaseException):
                raise part
            yield part
        complete = True  # what the application does behind its answer it may finish
    finally:
        left.set()
        if not complete and not task.done():
            asyncio.get_running_loop().call_later(_LEAVE_S, task.cancel)


_LEAVE_S = 5.0  # for an application to end by itself after its client has left
_RUNNING: set[asyncio.Task[None]] = set()  # the loop itself keeps no task alive


def _seen(task: asyncio.Task[None]) -> None:
    """An error behind the answer is nobody's; it must not be reported as never retrieved."""
    _RUNNING.discard(task)
    if not task.cancelled():
        task.exception()
