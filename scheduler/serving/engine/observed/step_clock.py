"""How much longer the engine's steps take than the step-time model says, all in all.

A fit says what a usual step takes and leaves out what is not usual; what a request waits for is
the sum of all of them, what the host adds while it serves included. On an H200 it was some 8 to
15 % more (docs/results/gpu.md), and plans that keep a TPOT objective by a few per cent then miss
it. Only sums are compared, so it does not matter which of two neighbours a duration is booked on.
"""

from __future__ import annotations

import math

from lengthwise.scheduler.step_time import StepTimeModel, clock_ratio

MEMORY_S = 10.0  # of busy time
LEAST_S = 2.0  # of evidence
DEADBAND = 0.015  # an error as small is left to the fit
_STALL_S, _STALL_TIMES = 0.25, 10.0  # beyond what any step takes: no step, but a stall


def is_stall(duration_s: float, modelled_s: float) -> bool:
    """Whether a measured duration is no step's."""
    return not 0.0 < duration_s < _STALL_S + _STALL_TIMES * modelled_s


class StepClock:
    """The ratio of measured to modelled step times, over the last seconds of work."""

    def __init__(self) -> None:
        self._measured_s = self._modelled_s = 0.0

    def note(self, duration_s: float, modelled_s: float) -> None:
        """A step took ``duration_s``; the model says ``modelled_s``."""
        if is_stall(duration_s, modelled_s):
            return
        kept = math.exp(-duration_s / MEMORY_S)
        self._measured_s = kept * self._measured_s + duration_s
        self._modelled_s = kept * self._modelled_s + modelled_s

    def forget(self) -> None:
        """Another model is believed from now on."""
        self._measured_s = self._modelled_s = 0.0

    @property
    def ratio(self) -> float:
        """Measured over modelled; exactly 1 within the deadband and before there is evidence."""
        if self._measured_s < LEAST_S or self._modelled_s <= 0.0:
            return 1.0
        return clock_ratio(self._measured_s / self._modelled_s, DEADBAND)

    def corrected(self, model: StepTimeModel) -> StepTimeModel:
        """The model on this clock; itself where nothing is to be corrected."""
        return model.slowed(self.ratio)
