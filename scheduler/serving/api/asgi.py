"""ASGI in small: its types, a request's body read whole and given again, an answer in one piece."""

from __future__ import annotations

import asyncio
import json
import math
from collections.abc import Awaitable, Callable, Mapping, MutableMapping, Sequence
from typing import Any

from lengthwise.scheduler.serving.api.body.large_body import pieces

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]
Headers = Sequence[tuple[bytes, bytes]]

_MOST_READ_BYTES = 32 * 1024 * 1024  # where a server sets no limit of its own


class BodyTooLargeError(Exception):
    """A body beyond the limit."""


class ClientGoneError(Exception):
    """The client left before its body was complete."""


async def read_body(receive: Receive, *, enough_bytes: float = math.inf) -> tuple[bytearray, bool]:
    """The body, and whether that is all of it: beyond ``enough_bytes`` reading stops.

    Raises ClientGoneError.
    """
    body = bytearray()  # not a list of chunks: a client may send a byte at a time
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ClientGoneError
        body += message.get("body", b"")
        if not message.get("more_body", False):
            return body, True
        if len(body) > enough_bytes:
            return body, False


async def read_limited(receive: Receive, limit_bytes: int | None) -> tuple[bytearray, bool]:
    """The same within a server's limit, beyond which BodyTooLargeError is raised; without one,
    what is very large is not read to its end."""
    enough = _MOST_READ_BYTES if limit_bytes is None else limit_bytes
    body, complete = await read_body(receive, enough_bytes=enough)
    if limit_bytes is not None and len(body) > limit_bytes:
        raise BodyTooLargeError
    return body, complete


def given_again(raw: bytes | bytearray, receive: Receive, *, more: bool = False) -> Receive:
    """A ``receive`` that gives the body first, then whatever the client does (the rest of a body,
    disconnects)."""
    parts = pieces(raw)
    given = 0

    async def replayed() -> Message:
        nonlocal given
        if 0 < given < len(raw):
            await asyncio.sleep(0)  # whoever wants all of it takes all in one turn
        part = next(parts, None)
        if part is None:
            return await receive()
        given += len(part)
        return {"type": "http.request", "body": part, "more_body": more or given < len(raw)}

    return replayed


def route_path(scope: Scope) -> str:
    """The path that routes are matched by: without the root path that the server may run under.

    A line feed at the end (``%0A``) is nothing to the framework, whose expressions end in ``$``.
    """
    path, root = str(scope["path"]), str(scope.get("root_path", ""))
    path = path[len(root) :] if root and path.startswith(f"{root}/") else path
    return path.removesuffix("\n")


def header_map(scope: Scope) -> dict[str, str]:
    """Values by lower-case name; of a header given twice the last counts."""
    return {
        name.decode("latin-1").lower(): value.decode("latin-1") for name, value in scope["headers"]
    }


def of_length(scope: Scope, length: int) -> Scope:
    """A copy of the scope that states the length of another body."""
    dropped = (b"content-length", b"transfer-encoding")
    headers = [(name, value) for name, value in scope["headers"] if name.lower() not in dropped]
    headers.append((b"content-length", str(length).encode()))
    return {**scope, "headers": headers}


async def send_whole(send: Send, status: int, headers: Headers, body: bytes) -> None:
    """An answer in one piece; its length is ours to say."""
    kept = [pair for pair in headers if pair[0].lower() != b"content-length"]
    kept.append((b"content-length", str(len(body)).encode()))
    await send({"type": "http.response.start", "status": status, "headers": kept})
    await send({"type": "http.response.body", "body": body})


async def send_json(send: Send, status: int, document: Any, headers: Headers = ()) -> None:
    """A JSON document, with further headers; a number that is none or infinite is null there."""
    kind = (b"content-type", b"application/json")
    try:
        text = json.dumps(document, allow_nan=False)
    except ValueError:
        text = json.dumps(_finite(document), allow_nan=False)
    await send_whole(send, status, [kind, *headers], text.encode())


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: _finite(part) for key, part in value.items()}
    return [_finite(part) for part in value] if isinstance(value, list | tuple) else value
