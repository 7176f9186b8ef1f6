"""A thread that works for an event loop, which may stand still for the result or be told of it.

``concurrent.futures`` does the same for any number of threads and waiters, and its bookkeeping
costs a tenth of what a prediction takes. The thread is a daemon: a stuck call keeps no process
from ending.
"""

from __future__ import annotations

import asyncio
import threading
import weakref
from collections.abc import Callable
from contextlib import suppress
from queue import SimpleQueue
from typing import Generic, TypeVar

T = TypeVar("T")


class Work(Generic[T]):
    """One call: its result, or its error, once ``is_done``."""

    __slots__ = ("_call", "_on_done", "_ready", "error", "is_done", "result")

    def __init__(self, call: Callable[[], T]) -> None:
        self.is_done = False
        self.result: T | None = None
        self.error: BaseException | None = None
        self._call: Callable[[], T] | None = call
        self._on_done: Callable[[], None] | None = None
        self._ready = threading.Lock()
        self._ready.acquire()

    def wait(self, timeout_s: float) -> bool:
        """Stand still until it is done, at most so long; whether it is. To be called once."""
        self._ready.acquire(timeout=timeout_s)
        return self.is_done

    def tell(self, loop: asyncio.AbstractEventLoop, on_done: Callable[[], None]) -> None:
        """Have ``on_done`` called in the loop when it is done, once."""
        left = [on_done]

        def once() -> None:
            if left:
                left.pop()()

        def from_the_thread() -> None:
            with suppress(RuntimeError):  # the loop was closed meanwhile
                loop.call_soon_threadsafe(once)

        self._on_done = from_the_thread
        if self.is_done:  # the thread may have looked before
            loop.call_soon(once)

    def run(self) -> None:
        """In the thread."""
        call, self._call = self._call, None
        assert call is not None
        try:
            self.result = call()
        except BaseException as error:  # it is the asker's to know
            self.error = error
        self.is_done = True
        self._ready.release()
        if self._on_done is not None:
            self._on_done()


class WorkerThread:
    """Does one piece of work after another; ends with this object."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._inbox: SimpleQueue[Work[object] | None] = SimpleQueue()
        self._thread: threading.Thread | None = None
        self._end = weakref.finalize(self, self._inbox.put, None)

    def submit(self, call: Callable[[], T]) -> Work[T]:
        """Begin a call as soon as those before it are done."""
        if self._thread is None:
            self._thread = threading.Thread(
                target=_work, args=(self._inbox,), name=self._name, daemon=True
            )
            self._thread.start()
        work = Work(call)
        self._inbox.put(work)  # type: ignore[arg-type]
        return work

    def close(self) -> None:
        """End after what was begun."""
        self._end()


def _work(inbox: SimpleQueue[Work[object] | None]) -> None:
    while (work := inbox.get()) is not None:
        work.run()
        del work
