"""What every policy is: a problem in, a plan out."""

from __future__ import annotations

from typing import Any, Protocol, runtime_checkable

from lengthwise.scheduler.problem import Plan, Problem


class Policy(Protocol):
    """Orders the waiting requests; may keep what it learned from earlier problems."""

    name: str
    nominal_s: float  # what a plan is expected to take, for pacing before the first measure

    def __call__(self, problem: Problem) -> Plan:
        """The order to admit in."""
        ...

    def warm_up(self) -> None:
        """Compile what a plan needs, so that no request waits for it."""
        ...


@runtime_checkable
class Learns(Protocol):
    """A policy may also hold its plans to what came of them."""

    def finished(self, arrival_s: float, met: bool) -> None:
        """A request that was planned has ended, with all its objectives met or not."""
        ...

    def status(self) -> dict[str, Any]:
        """What it learned, as plain values for the server's status."""
        ...
