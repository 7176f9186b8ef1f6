"""Plans in warped time: each takes its policy's nominal time, whatever the machine does."""

from __future__ import annotations

import time
from typing import Any

from lengthwise.scheduler.policies.policy import Learns
from lengthwise.scheduler.vllm_adapter.emulated.warp import WarpClock


class NominalTime:
    """A policy whose plans are paced by the time they are meant to take; ``plan_s`` has the real.

    How often plans are made is bounded by the time they take. Here each counts as the policy's
    nominal time, at most ``budget_s``, so that this repeats too; ``spent_s`` is the sum. A plan
    is there at once, as one that a thread makes while the device computes.
    """

    def __init__(self, policy: Any, clock: WarpClock, budget_s: float) -> None:
        self._policy = policy
        self._clock = clock
        self._taken_s = min(float(policy.nominal_s), budget_s)
        self.spent_s = 0.0
        self.plan_s: list[float] = []

    def __call__(self, problem: Any) -> Any:
        """The policy's plan."""
        began_s = time.perf_counter()
        with self._clock.stopped():
            plan = self._policy(problem)
        self.plan_s.append(time.perf_counter() - began_s)
        self.spent_s += self._taken_s
        return plan

    def finished(self, arrival_s: float, met: bool) -> None:
        """What the policy is told of a request that has ended."""
        if isinstance(self._policy, Learns):
            self._policy.finished(arrival_s, met)

    def status(self) -> dict[str, Any]:
        """What the policy learned."""
        return self._policy.status() if isinstance(self._policy, Learns) else {}

    def __getattr__(self, name: str) -> Any:
        return getattr(self._policy, name)


def pace_plans(planner: Any, clock: WarpClock, budget_s: float) -> NominalTime:
    """Let the plans of an engine's planner take their nominal time, for its pace only."""
    paced = NominalTime(planner.policy, clock, budget_s)
    planner.policy = paced
    note = planner.gate.planned
    counted_s = 0.0

    def planned(now_s: float, elapsed_s: float) -> None:
        nonlocal counted_s
        took_s, counted_s = paced.spent_s - counted_s, paced.spent_s
        note(now_s, took_s)

    planner.gate.planned = planned
    return paced
