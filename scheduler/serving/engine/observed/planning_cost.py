"""What planning beside the engine's loop costs its steps, and how much of a core that allows.

With cores to spare it costs nothing that shows. Without, as on two cores of which the model's
worker has one, the loop waits while a plan is made: vLLM asks for a step's answer in a busy loop,
which gives its core away, and a second of planning is about a second without steps. Steps beside
a plan, held against steps beside none, say which; steps without prompts, and with none in the steps
before and after: what prompts take is less well known, newcomers come in as a plan ends, and with
asynchronous scheduling a step's duration holds the launch of the next one, on a GPU 40 ms of
prompts where the step takes 10 (docs/results/gpu.md). That is an upper bound: plans begin as
requests arrive, and what an arrival costs the loop counts, too. More than the processor time that
planning took it cannot be.
"""

from __future__ import annotations

import math

from lengthwise.scheduler.serving.engine.observed.step_clock import is_stall

MEMORY_S = 30.0  # of busy time
LEAST_S = 0.5  # of evidence on either side
LEAST_PLANS = 8  # one slow plan says little
SHOWS = 0.01  # of the time: what is less cannot be told from none
AT_MOST = 0.03  # of the engine's time is given to plans
# Half as many plans are about as good, a fifth are not (docs/log.md).
LEAST_SHARE = 0.4  # of the share that is allowed


class PlanningCost:
    """Seconds of steps that a processor second of planning costs, over the last half minute."""

    def __init__(self) -> None:
        self._measured_s, self._modelled_s = [0.0, 0.0], [0.0, 0.0]  # beside no plan, beside one
        self._beside_s = self._spent_s = self._all_s = 0.0
        self._plans = 0
        self._last: tuple[float, float, bool] | None = None  # a step that the next one may rule out
        self._after_prompts = False

    def note_step(
        self, duration_s: float, modelled_s: float, prefill_tokens: int, *, beside_plan: bool
    ) -> None:
        """A step took ``duration_s``, for which the model says ``modelled_s``."""
        if is_stall(duration_s, modelled_s):
            return
        kept = math.exp(-duration_s / MEMORY_S)
        self._all_s = kept * self._all_s + duration_s
        self._spent_s *= kept
        self._beside_s = kept * self._beside_s + duration_s * beside_plan
        for side in (0, 1):
            self._measured_s[side] *= kept
            self._modelled_s[side] *= kept
        if self._last is not None and not prefill_tokens:
            measured_s, expected_s, beside = self._last
            self._measured_s[beside] += measured_s
            self._modelled_s[beside] += expected_s
        alone = not prefill_tokens and not self._after_prompts
        self._last = (duration_s, modelled_s, beside_plan) if alone else None
        self._after_prompts = prefill_tokens > 0

    def note_plan(self, processor_s: float) -> None:
        """A plan took so much of a core."""
        self._spent_s += processor_s
        self._plans += 1

    @property
    def lost(self) -> float:
        """Share of the engine's time that planning took from it; 0 where it does not show."""
        if self._plans < LEAST_PLANS or min(self._measured_s) < LEAST_S:
            return 0.0
        if min(self._modelled_s) <= 0.0:
            return 0.0
        alone, beside = (m / s for m, s in zip(self._measured_s, self._modelled_s, strict=True))
        lost_s = min(max(0.0, 1.0 - alone / beside) * self._beside_s, self._spent_s)
        lost = lost_s / self._all_s
        return lost if lost > SHOWS else 0.0

    def share(self, most: float) -> float:
        """The share of a core that plans may take, of ``most`` that is allowed."""
        lost_s = self.lost * self._all_s
        if lost_s <= 0.0 or self._spent_s <= 0.0:
            return most
        return most * min(1.0, max(LEAST_SHARE, AT_MOST * self._spent_s / lost_s / most))
