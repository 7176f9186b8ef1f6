"""LMDeploy's pool of request handles with an order: a free handle goes to whose turn it is."""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections.abc import Hashable, Sequence
from typing import Any, Generic, TypeVar

from lmdeploy.serve.managers.session_manager import RequestHandlePool

Who = TypeVar("Who", bound=Hashable)


class OrderedPool(RequestHandlePool, ABC, Generic[Who]):
    """The stock pool's interface; who waits stands with whoever has the order, not in a queue."""

    handles: list[Any]

    def __init__(self, engine: Any, size: int) -> None:
        super().__init__(engine, size)
        self.handles = [self.known(handle) for handle in self.handles]
        self.free = list(self.handles)
        self._asking: dict[Who, asyncio.Future[Any]] = {}
        self._held: dict[int, Who] = {}  # by the handle's identity

    def known(self, handle: Any) -> Any:
        """The engine's handle as this pool hands it out."""
        return handle

    def renew(self, engine: Any) -> None:
        """The engine has woken up with other handles; who waits gets one of these."""
        self.handles = [self.known(engine.create_instance()) for _ in range(self.size)]
        self.free = list(self.handles)

    # -- the order's, whoever has it ----------------------------------------------------------

    @abstractmethod
    def who_asks(self) -> Who:
        """Whose task asks for a handle, and waits from now on."""

    @abstractmethod
    def admitted(self, free: int) -> Sequence[Who]:
        """Who gets one of the ``free`` handles each, in this order."""

    @abstractmethod
    def freed(self, who: Who) -> None:
        """A handle is given back."""

    @abstractmethod
    def gave_up(self, who: Who) -> None:
        """It waits no more."""

    # -- LMDeploy's ---------------------------------------------------------------------------

    async def get(self) -> Any:
        """A handle, once it is this task's turn."""
        asked = asyncio.get_running_loop().create_future()
        who = self.who_asks()
        self._asking[who] = asked
        self.hand_out()
        try:
            return await asked
        except asyncio.CancelledError:
            if asked.done() and not asked.cancelled():  # handed out, and nobody takes it
                self.put(asked.result())
            elif self._asking.pop(who, None) is not None:
                self.gave_up(who)
            raise

    def put(self, handle: Any) -> None:
        """The handle is free again."""
        if handle is None or id(handle) not in self._held:
            return
        self.freed(self._held.pop(id(handle)))
        if handle in self.handles:  # not of an engine that is there no more
            self.free.append(handle)
        self.hand_out()

    @property
    def num_dispatched(self) -> int:
        """Handles in use."""
        return len(self._held)

    def clear(self) -> None:
        """Forget all handles."""
        super().clear()
        self.free = []

    def holder(self, handle: Any) -> Who | None:
        """Who has this handle."""
        return self._held.get(id(handle))

    def hand_out(self) -> None:
        """Give free handles to whose turn it is."""
        passed_over = True
        while passed_over:
            passed_over = False
            for who in self.admitted(len(self.free)):
                asked = self._asking.pop(who)
                if asked.done():  # cancelled, and its task has not run since
                    self.freed(who)
                    passed_over = True
                    continue
                handle = self.free.pop(0)
                self._held[id(handle)] = who
                asked.set_result(handle)
