"""A simulated engine of a fleet: one that may hang, and whose pace may change."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from lengthwise.data.arrays import IntArray
from lengthwise.scheduler.profile import EngineProfile
from lengthwise.scheduler.simulator import engine as e
from lengthwise.scheduler.simulator.instance import NOBODY, SimInstance


class FleetInstance(SimInstance):
    """See `SimInstance`; what is changed here is what happens from now on."""

    hung = False

    def hang(self) -> None:
        """Do nothing until `wake`."""
        self.hung = True

    def wake(self, now_s: float) -> None:
        """Go on with whoever is there."""
        if self.hung:
            self.hung = False
            self.clock[e.NOW] = max(self.clock[e.NOW], now_s)

    def slow(self, factor: float) -> EngineProfile:
        """Every step takes ``factor`` times as long; what a refit will find."""
        step_time = self.profile.step_time.slowed(factor)
        self.profile = replace(self.profile, step_time=step_time)
        self._coefficients = np.array(self.profile.scaled_step_time.numbers)
        return self.profile

    def advance(self, until_s: float) -> IntArray:
        """Serve until then, unless it hangs."""
        return NOBODY if self.hung else super().advance(until_s)

    def next_end_s(self) -> float:
        """A time before which nobody ends here; inf while it hangs."""
        return np.inf if self.hung else super().next_end_s()

    def soonest_end_s(self, row: int, at_s: float) -> float:
        """A time before which the row does not end; inf while it hangs."""
        return np.inf if self.hung else super().soonest_end_s(row, at_s)
