"""What the front sends to an instance: a client's request, and what was found of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from lengthwise.scheduler.fleet.fleet_request import FleetRequest
from lengthwise.scheduler.serving.wire.hints import Hints

Headers = Sequence[tuple[bytes, bytes]]


@dataclass(frozen=True, slots=True)
class ForwardedCall:
    """The hints of a request's sequences, in the order of its prompts; see `sequences.Call`."""

    hints: Sequence[Hints]
    others: Hints
    whole_id: str
    is_open: bool
    levels: int


@dataclass(frozen=True, slots=True)
class Forwarded:
    """An HTTP request as ASGI has it, its body whole.

    ``call`` is what its sequences are told, None on a route that is passed on unread. ``fleet`` is
    what the router is told, None of what is no generation.
    """

    method: str
    path: str
    query: bytes
    headers: Headers
    body: bytes
    client: tuple[str, int] | None = None
    call: ForwardedCall | None = None
    fleet: FleetRequest | None = field(default=None, compare=False)


@dataclass(frozen=True, slots=True)
class Started:
    """The first part of an answer: status and headers. What follows are pieces of its body."""

    status: int
    headers: Headers
