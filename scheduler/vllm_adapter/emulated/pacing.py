"""Plans in warped time: each takes its policy's nominal time, whatever the machine does."""

from __future__ import annotations

import time
from typing import Any

from lengthwise.scheduler.vllm_adapter.emulated.warp import WarpClock


class NominalTime:
    """A policy whose plans take ``nominal_s`` of the clock; ``plan_s`` has their real times.

    So that how often plans are made, which is bounded by the time they take, repeats too.
    """

    def __init__(self, policy: Any, clock: WarpClock) -> None:
        self._policy = policy
        self._clock = clock
        self.plan_s: list[float] = []

    def __call__(self, problem: Any) -> Any:
        """The policy's plan."""
        began_s = time.perf_counter()
        with self._clock.stopped():
            plan = self._policy(problem)
        self.plan_s.append(time.perf_counter() - began_s)
        self._clock.sleep(float(self._policy.nominal_s))
        return plan

    def __getattr__(self, name: str) -> Any:
        return getattr(self._policy, name)
