"""An asyncio loop in virtual time: when nothing is ready, its clock jumps to the next timer."""

from __future__ import annotations

import asyncio
import selectors
from typing import Any

CLOCK_STEP_S = 1e-9


class VirtualLoop(asyncio.SelectorEventLoop):
    """A loop that never waits and knows no sockets; ``time()`` begins at 0."""

    def __init__(self) -> None:
        self.now_s = 0.0
        super().__init__(_Jump(self))
        # asyncio calls a timer due that lies within this of the clock; rounding needs it
        self._clock_resolution = CLOCK_STEP_S

    def time(self) -> float:
        """Virtual seconds."""
        return self.now_s


class _Jump(selectors.SelectSelector):
    """Asked to wait, it moves the clock instead."""

    def __init__(self, loop: VirtualLoop) -> None:
        super().__init__()
        self._loop = loop

    def select(self, timeout: float | None = None) -> list[Any]:
        if timeout is None:
            raise RuntimeError("nothing is left that could happen in virtual time")
        self._loop.now_s += max(timeout, 0.0)
        return []
