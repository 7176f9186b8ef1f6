"""Keeps the client, and whatever else a server runs, off the cores that an engine is bound to.

vLLM binds the worker of a CPU engine to its cores and leaves one to everybody else. Between two
messages the worker spins, giving way by `sched_yield`; Linux (seen on 6.18, a session of its own
each) then lets another program that woke up on such a core wait for seconds, ready to run. An
open-loop client would send that late. And where Linux happens to place a server's API process on
the worker's core, that server alone loses a tenth of its tokens/s (measured): a comparison of two
servers is then one of their luck.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Iterator
from pathlib import Path

from lengthwise.training.bench.results.provenance import usable_cores


def bound_cores(leaders: Iterable[int]) -> set[int]:
    """Cores to which processes of these sessions are bound; those that may run anywhere are none.

    Empty where the system does not say (no Linux).
    """
    if not hasattr(os, "sched_getaffinity"):
        return set()
    everywhere = os.sched_getaffinity(0)
    bound: set[int] = set()
    for pid in _processes(leaders):
        with contextlib.suppress(OSError):  # it ended meanwhile
            cores = os.sched_getaffinity(pid)
            bound |= cores if cores < everywhere else set()
    return bound


def keep_off(leaders: Iterable[int], cores: set[int]) -> None:
    """Keep every process of these sessions that may run anywhere off these cores.

    Nothing changes where no other core is left.
    """
    everywhere = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set()
    if not cores & everywhere or not everywhere - cores:
        return
    for pid in _processes(leaders):
        for thread in Path(f"/proc/{pid}/task").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                if os.sched_getaffinity(int(thread.name)) >= everywhere:
                    os.sched_setaffinity(int(thread.name), everywhere - cores)


def _processes(leaders: Iterable[int]) -> list[int]:
    """Of these sessions."""
    sessions, found = set(leaders), []
    for entry in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if os.getsid(int(entry.name)) in sessions:
                found.append(int(entry.name))
    return found


@contextlib.contextmanager
def off_cores(cores: set[int]) -> Iterator[None]:
    """Keep this thread, and those it starts, off these cores, unless no other is left."""
    own = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set()
    if not cores & own or not own - cores:
        yield
        return
    usable_cores()  # counted before any are left
    os.sched_setaffinity(0, own - cores)
    try:
        yield
    finally:
        os.sched_setaffinity(0, own)


@contextlib.contextmanager
def punctual() -> Iterator[None]:
    """Let this thread run as soon as it wakes, where the system allows it.

    The client shares a core with an engine that spins on it too, and does little: to send at the
    right time it must not queue for the core. Processes that it starts do not inherit this.
    """
    if not hasattr(os, "sched_setscheduler"):
        yield
        return
    policy, parameters = os.sched_getscheduler(0), os.sched_getparam(0)
    with contextlib.suppress(OSError):  # not permitted
        os.sched_setscheduler(0, os.SCHED_RR | os.SCHED_RESET_ON_FORK, os.sched_param(1))
    try:
        yield
    finally:
        with contextlib.suppress(OSError):
            os.sched_setscheduler(0, policy, parameters)
