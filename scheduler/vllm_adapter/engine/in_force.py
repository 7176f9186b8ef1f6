"""The plan in force: its limits on the engine, until the next plan or until it is stale.

A plan's limits are for the traffic it saw. They end when nobody waits any more, and when plans
stop coming: after ``STALE_INTERVALS`` of the time in which the next one was to be expected.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from lengthwise.scheduler.problem import Plan

STALE_INTERVALS = 4.0


@dataclass(slots=True)
class PlanInForce:
    """Limits of the plan adopted last (None: none), and when it was made."""

    max_running: int | None = None
    max_prefill_tokens: int | None = None
    adopted: int = 0
    _made_s: float = -math.inf
    _until_s: float = -math.inf
    _holds: bool = False

    def adopt(self, plan: Plan, made_s: float, interval_s: float) -> None:
        """The plan of the picture at ``made_s`` holds now; another comes every ``interval_s``."""
        self.max_running = plan.max_running
        self.max_prefill_tokens = plan.max_prefill_tokens
        self.adopted += 1
        self._made_s, self._until_s = made_s, made_s + STALE_INTERVALS * interval_s
        self._holds = True

    def stale(self, now_s: float) -> bool:
        """Whether the plan in force has outlived its time."""
        return self._holds and now_s > self._until_s

    def lift(self) -> None:
        """No plan is in force: the engine's own limits hold."""
        self.max_running = self.max_prefill_tokens = None
        self._holds = False

    def age_s(self, now_s: float) -> float:
        """Seconds since the picture that the plan in force was made of; 0 without one."""
        return max(0.0, now_s - self._made_s) if self._holds else 0.0
