"""The name by which routers over several engines know a request: the router, then a number."""

from __future__ import annotations

import secrets
from typing import Any

_FRONT_BITS, _NUMBER_BITS = 20, 42  # 62 bits in all


def new_fleet_key(front: int) -> int:
    """A name for a request that no other has, also not one of another router (``front``)."""
    return (front << _NUMBER_BITS) | secrets.randbits(_NUMBER_BITS)


def new_front() -> int:
    """A number for a router, which its keys carry."""
    return secrets.randbits(_FRONT_BITS)


def front_of(key: int | None) -> int | None:
    """The router that a key is of; None of none."""
    return None if key is None else key >> _NUMBER_BITS


def read_fleet_key(value: Any) -> int | None:
    """A key off the wire; None when malformed."""
    most = 1 << (_FRONT_BITS + _NUMBER_BITS)
    return value if type(value) is int and 0 <= value < most else None
