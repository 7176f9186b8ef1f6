"""The plan in force: its limits on the engine, until the next plan or until it is stale.

A plan's limits are for the traffic it saw. They end when nobody waits any more, and when plans
stop coming: after ``STALE_INTERVALS`` of the time in which the next one was to be expected. That
is soon once the picture has changed, for then the next plan waits for its turn only.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from lengthwise.scheduler.fleet.fleet_request import PlanLimits
from lengthwise.scheduler.problem import Plan

STALE_INTERVALS = 4.0
# However quick plans are, the next one is started in a step and adopted in a later one.
LEAST_PACE_S = 0.1
LEAST_STEPS = 4


@dataclass(slots=True)
class PlanInForce:
    """Limits of the plan adopted last (None: none), and when it was made."""

    max_running: int | None = None
    max_prefill_tokens: int | None = None
    prefill_period: int | None = None
    adopted: int = 0
    _made_s: float = -math.inf
    _until_s: float = -math.inf
    _pace_s: float = math.inf
    _changed_s: float = math.inf
    _steps: int = 0
    _holds: bool = False

    def adopt(self, plan: Plan, made_s: float, interval_s: float, pace_s: float = math.inf) -> None:
        """The plan of the picture at ``made_s`` holds now.

        Another comes every ``interval_s``, and after ``pace_s`` once the picture has changed.
        """
        self.max_running = plan.max_running
        self.max_prefill_tokens = plan.max_prefill_tokens
        self.prefill_period = plan.prefill_period
        self.adopted += 1
        self._made_s, self._until_s = made_s, made_s + STALE_INTERVALS * interval_s
        self._pace_s, self._changed_s = max(pace_s, LEAST_PACE_S), math.inf
        self._holds = True

    def note_change(self, now_s: float) -> None:
        """The picture is no longer the plan's; the first time counts."""
        if self._changed_s == math.inf:
            self._changed_s, self._steps = now_s, 0

    def step_ended(self) -> None:
        """The engine has done another step."""
        self._steps += 1

    def stale(self, now_s: float) -> bool:
        """Whether the plan in force has outlived its time."""
        if not self._holds:
            return False
        changed = now_s > self._changed_s + STALE_INTERVALS * self._pace_s
        return now_s > self._until_s or (changed and self._steps >= LEAST_STEPS)

    def rests(self, rested_steps: float) -> bool:
        """Whether the next step is one without prompt tokens, so many after the last with some."""
        return self.prefill_period is not None and rested_steps < self.prefill_period - 1

    @property
    def limits(self) -> PlanLimits:
        """Its limits, as a router is told."""
        return PlanLimits(
            math.inf if self.max_running is None else float(self.max_running),
            math.inf if self.max_prefill_tokens is None else float(self.max_prefill_tokens),
            float(self.prefill_period or 1),
        )

    @property
    def holds(self) -> bool:
        """Whether a plan is in force."""
        return self._holds

    def lift(self) -> None:
        """No plan is in force: the engine's own limits hold."""
        self.max_running = self.max_prefill_tokens = self.prefill_period = None
        self._holds = False

    def age_s(self, now_s: float) -> float:
        """Seconds since the picture that the plan in force was made of; 0 without one."""
        return max(0.0, now_s - self._made_s) if self._holds else 0.0
