"""A daemon thread that makes one plan at a time beside the engine's loop.

The loop hands a job over with ``start`` and asks for the answer with ``take``; neither waits. The
thread may die or never come back: then ``lost`` says so, once, and the next ``start`` has a new
thread.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from queue import SimpleQueue
from typing import Generic, TypeVar

Job = TypeVar("Job")
Result = TypeVar("Result")


class _Worker(threading.Thread, Generic[Job, Result]):
    """Works off its inbox until it finds None in it."""

    def __init__(self, work: Callable[[Job], Result]) -> None:
        super().__init__(name="lengthwise-plan", daemon=True)
        self.inbox: SimpleQueue[Job | None] = SimpleQueue()
        self.result: Result | None = None
        self._work = work

    def run(self) -> None:
        while (job := self.inbox.get()) is not None:
            self.result = self._work(job)


class PlanThread(Generic[Job, Result]):
    """Runs ``work`` on a job beside its caller; a result is never None."""

    def __init__(self, work: Callable[[Job], Result]) -> None:
        self._work = work
        self._worker: _Worker[Job, Result] | None = None
        self._since_s: float | None = None

    @property
    def busy(self) -> bool:
        """Whether a job was given whose result has not been taken."""
        return self._since_s is not None

    def start(self, job: Job, now_s: float) -> bool:
        """Hand a job over; False while there is another."""
        if self.busy:
            return False
        if self._worker is None or not self._worker.is_alive():
            self._worker = _Worker(self._work)
            self._worker.start()
        self._since_s = now_s
        self._worker.inbox.put(job)
        return True

    def take(self) -> Result | None:
        """The result of the job, once; None while there is none."""
        if self._worker is None or self._worker.result is None:
            return None
        result, self._worker.result = self._worker.result, None
        self._since_s = None
        return result

    def lost(self, now_s: float, longest_s: float) -> str | None:
        """Why no result will come of the job ("dead", or "slow" after ``longest_s``), if so.

        A slow thread is left to itself: whatever it answers is never taken.
        """
        worker, since_s = self._worker, self._since_s
        if worker is None or since_s is None or worker.result is not None:
            return None
        dead = not worker.is_alive()
        if not dead and now_s - since_s <= longest_s:
            return None
        self.close()
        return "dead" if dead else "slow"

    def close(self) -> None:
        """Let the thread end after what it is doing; what it does is not waited for."""
        if self._worker is not None:
            self._worker.inbox.put(None)
        self._worker = self._since_s = None
