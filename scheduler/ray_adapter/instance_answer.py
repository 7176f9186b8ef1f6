"""What an instance answers, passed on as it is made, until the client has left."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

from lengthwise.scheduler.ray_adapter.forwarded import Forwarded, Started
from lengthwise.scheduler.serving.api.asgi import Message, Receive


async def answer_messages(
    handle: Any, request: Forwarded, gone: asyncio.Future[None]
) -> AsyncIterator[Message]:
    """The ASGI messages of an instance's answer; none any more once the client has left.

    ``handle`` is Serve's to the instances' streaming method. The status of a stream comes long
    before its first token, so it is kept back until there is something to answer: what had only
    been accepted is not lost with its instance.
    """
    parts = handle.remote(request)
    start: Message | None = None
    try:
        async for part in _until(parts, gone):
            if isinstance(part, Started):
                headers = list(part.headers)
                start = {
                    "type": "http.response.start", "status": part.status, "headers": headers,
                }  # fmt: skip
                continue
            if start is not None:
                yield start
                start = None
            yield {"type": "http.response.body", "body": part, "more_body": True}
        if not gone.done():
            if start is not None:
                yield start
            yield {"type": "http.response.body", "body": b"", "more_body": False}
    finally:
        parts.cancel()


async def _until(parts: Any, gone: asyncio.Future[None]) -> AsyncIterator[Any]:
    """The parts, until the client has left."""
    while True:
        following = asyncio.ensure_future(anext(parts, None))
        following.add_done_callback(_seen)
        try:
            await asyncio.wait({following, gone}, return_when=asyncio.FIRST_COMPLETED)
        except BaseException:
            following.cancel()
            raise
        if not following.done():
            following.cancel()
            return
        part = following.result()
        if part is None:
            return
        yield part


def _seen(part: asyncio.Future[Any]) -> None:
    """What becomes of a part that nobody waits for any more is not reported as unseen."""
    if not part.cancelled():
        part.exception()


async def client_left(receive: Receive) -> None:
    """Ends when the client has left."""
    while (await receive())["type"] != "http.disconnect":
        pass
