"""The routers of this process, so that the front finds those that Serve has made beside it.

A module of its own: Serve ships the router's class by value, and a list beside it would be copied.
"""

from __future__ import annotations

import weakref
from collections.abc import Mapping
from typing import Any, Protocol


class HasStatus(Protocol):
    """Who can be asked for its status from any event loop."""

    async def status(self) -> Mapping[str, Any]:
        """Plain values."""
        ...


_routers: weakref.WeakSet[Any] = weakref.WeakSet()


def register(router: HasStatus) -> None:
    """A router was made; it is forgotten with itself."""
    _routers.add(router)


def routers() -> list[HasStatus]:
    """Those that there are."""
    return list(_routers)
