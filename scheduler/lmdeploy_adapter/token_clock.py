"""How much longer the engine's steps take than its profile says, told by when tokens come.

Nobody times steps in virtual time, but between two tokens of an answer lies a step, and sometimes
others' prompts, which LMDeploy computes in steps of their own. Where they lie between fewer than
half of all pairs, the median gap since the last plan is a step without any; where between more, it
holds their time as well, which the rollout, whose steps mix both, would leave out. A plan on a
clock 1.4 times as fast as the engine falls below the rules.
"""

from __future__ import annotations

from collections import deque

import numpy as np

from lengthwise.scheduler.step_time import StepTimeModel, clock_ratio

LEAST_GAPS, MOST_GAPS = 8, 1024  # between two plans; who never waits is never planned
LEAST_RATIOS = 8
RATIOS = 64  # of the last plans
DEADBAND = 0.03


class TokenClock:
    """The ratio of measured to modelled decode steps, over the last plans."""

    def __init__(self) -> None:
        self._read_s: dict[int, float] = {}
        self._gaps_s: deque[float] = deque(maxlen=MOST_GAPS)
        self._ratios: deque[float] = deque(maxlen=RATIOS)

    def read(self, row: int, tokens: int, now_s: float) -> None:
        """So many tokens of the row came at once."""
        before_s = self._read_s.get(row)
        self._read_s[row] = now_s
        if before_s is not None and now_s > before_s and tokens > 0:
            self._gaps_s.append((now_s - before_s) / tokens)

    def ended(self, row: int) -> None:
        """The row gets no more tokens."""
        self._read_s.pop(row, None)

    def compare(self, model: StepTimeModel, decoding: int, context_tokens: float) -> None:
        """The gaps since the last call, against a step of ``decoding`` sequences."""
        if len(self._gaps_s) >= LEAST_GAPS and decoding:
            modelled_s = model.step_s(0.0, decoding, context_tokens)
            self._ratios.append(float(np.median(self._gaps_s)) / modelled_s)
        self._gaps_s.clear()

    @property
    def ratio(self) -> float:
        """Measured over modelled; exactly 1 within the deadband and before there is evidence."""
        if len(self._ratios) < LEAST_RATIOS:
            return 1.0
        return clock_ratio(float(np.median(self._ratios)), DEADBAND)

    def corrected(self, model: StepTimeModel) -> StepTimeModel:
        """The model on this clock; itself where nothing is to be corrected."""
        return model.slowed(self.ratio)
