"""LMDeploy's pool of request handles with an order: a free handle goes to whom the plan names."""

from __future__ import annotations

import asyncio
from contextvars import ContextVar
from typing import Any

from lmdeploy.serve.managers.session_manager import RequestHandlePool

from lengthwise.scheduler.lmdeploy_adapter.pool_order import PoolOrder

# get() is not told for whom: the row of the request whose task asks
ROW: ContextVar[int] = ContextVar("lengthwise_row")


class PlannedPool(RequestHandlePool):
    """The stock pool's interface; who waits stands in a `PoolOrder`, not in a queue."""

    def __init__(self, engine: Any, size: int, order: PoolOrder) -> None:
        super().__init__(engine, size)
        self.order = order
        self._free = list(self.handles)
        self._asking: dict[int, asyncio.Future[Any]] = {}
        self._row_of: dict[int, int] = {}  # by the handle's identity

    async def get(self) -> Any:
        """A handle, once the order names this task's row."""
        row, loop = ROW.get(), asyncio.get_running_loop()
        asked = self._asking[row] = loop.create_future()
        self.order.arrive(row, loop.time())
        self._hand_out()
        try:
            return await asked
        except asyncio.CancelledError:
            if asked.done() and not asked.cancelled():  # handed out, and nobody takes it
                self.put(asked.result())
            else:
                del self._asking[row]
                self.order.leave(row)
            raise

    def put(self, handle: Any) -> None:
        """The handle is free again."""
        if handle is None or id(handle) not in self._row_of:
            return
        self.order.leave(self._row_of.pop(id(handle)))
        self._free.append(handle)
        self._hand_out()

    @property
    def num_dispatched(self) -> int:
        """Handles in use."""
        return len(self._row_of)

    def clear(self) -> None:
        """Forget all handles."""
        super().clear()
        self._free = []

    def _hand_out(self) -> None:
        now_s = asyncio.get_running_loop().time()
        for row in self.order.admit(now_s, len(self._free)):
            handle = self._free.pop(0)
            self._row_of[id(handle)] = row
            self._asking.pop(row).set_result(handle)
