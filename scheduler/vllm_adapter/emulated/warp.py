"""Time that passes with a thread's own work and jumps over its sleeps.

With it an emulated engine runs as fast as its control plane can: waiting for the device costs
nothing, and other load on the machine does not count.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import SupportsIndex

_real_sleep = time.sleep

# Whole seconds, so that sums round alike in every run; far enough that no earlier reading of the
# real clock lies ahead.
_MONOTONIC_BASE_S = 1 << 20


class WarpClock:
    """Stands in for ``time.monotonic``, ``time.time`` and ``time.sleep`` of one thread.

    ``host_factor`` scales the thread's own processor time as it enters the clock: 1 charges what
    scheduling costs on this machine, 0 nothing, and then a run repeats to the bit. Other threads
    read the time and sleep for real. ``time.perf_counter`` stays real: it measures, it does not
    schedule.
    """

    def __init__(self, host_factor: float = 0.0) -> None:
        self._thread = threading.get_ident()
        self._unix_s = int(time.time())
        self.restart(host_factor)

    def restart(self, host_factor: float) -> None:
        """Begin again at 0 s; there is one clock a process, as others keep references to it."""
        if not 0 <= host_factor <= 100:
            raise ValueError(f"host_factor must lie from 0 to 100, got {host_factor}")
        self._factor = host_factor
        self.set(0.0)

    def now(self) -> float:
        """Seconds since the clock was made or restarted."""
        if not self._factor or threading.get_ident() != self._thread:
            return self._at_s
        return self._at_s + self._factor * (time.thread_time() - self._cpu_s)

    def set(self, at_s: float) -> None:
        """It is ``at_s`` now: another engine's time, or later than this one's.

        Nothing happens in another thread, whose time this is not.
        """
        if threading.get_ident() != self._thread:
            return
        self._at_s = at_s
        self._cpu_s = time.thread_time()

    @contextmanager
    def stopped(self) -> Iterator[None]:
        """Work in here takes no time: another thread or process would do it."""
        now_s = self.now()
        try:
            yield
        finally:
            self.set(now_s)

    def sleep(self, seconds: float | SupportsIndex) -> None:
        """Pass over ``seconds`` at once; in another thread, sleep."""
        if threading.get_ident() != self._thread:
            _real_sleep(seconds)
        elif float(seconds) > 0:
            self.set(self.now() + float(seconds))

    @contextmanager
    def installed(self) -> Iterator[WarpClock]:
        """Replace the functions of ``time`` in here.

        Enter before importing what keeps references to them (default arguments): the project's
        engine modules and vLLM's.
        """
        before = time.monotonic, time.time, time.sleep
        time.monotonic = lambda: _MONOTONIC_BASE_S + self.now()
        time.time = lambda: self._unix_s + self.now()
        time.sleep = self.sleep
        try:
            yield self
        finally:
            time.monotonic, time.time, time.sleep = before
