"""The pool in virtual time: rows of a workload, in the order of a `PoolOrder`."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextvars import ContextVar
from typing import Any

from lengthwise.scheduler.lmdeploy_adapter.inside.ordered_pool import OrderedPool
from lengthwise.scheduler.lmdeploy_adapter.pool_order import PoolOrder

# get() is not told for whom: the row of the request whose task asks
ROW: ContextVar[int] = ContextVar("lengthwise_row")


class PlannedPool(OrderedPool[int]):
    """Who waits stands in the order."""

    def __init__(self, engine: Any, size: int, order: PoolOrder) -> None:
        super().__init__(engine, size)
        self.order = order

    def who_asks(self) -> int:
        """The row of this task."""
        row = ROW.get()
        self.order.arrive(row, asyncio.get_running_loop().time())
        return row

    def admitted(self, free: int) -> Sequence[int]:
        """The order's next."""
        return self.order.admit(asyncio.get_running_loop().time(), free)

    def freed(self, who: int) -> None:
        """The row gives its handle back."""
        self.order.leave(who)

    def gave_up(self, who: int) -> None:
        """The row no longer wants one."""
        self.order.leave(who)
