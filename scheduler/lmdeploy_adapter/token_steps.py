"""The engine's steps as its pool sees them: by the moments that tokens are stamped with.

Nobody tells the pool of steps, but LMDeploy stamps each token with the wall clock's time of the
step it comes from, and a step lasts from the stamp before it. PyTorch's engine gives all tokens of
a step one stamp, TurboMind's are a callback apart. Tokens are read by one task a request, so a
later step's may be read before an earlier one's: a step is told once some newer ones have begun.
Where the API process lags, LMDeploy gathers the tokens of several steps under the last one's stamp.
"""

from __future__ import annotations

from bisect import insort
from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np

SAME_STEP_S = 0.001  # between the stamps of one step
OPEN_STEPS = 3  # of which tokens may still come
CLOCK_BACK_S = 1.0  # a stamp so much before the last step's is of a clock that was set back


@dataclass(frozen=True, slots=True)
class TimedStep:
    """A step's work and when it ran, unix seconds; ``decodes`` sequences with their context."""

    began_s: float
    ended_s: float
    prefill_tokens: int
    decodes: int
    context_tokens: int


@dataclass(slots=True, order=True)
class _Open:
    stamp_s: float
    prefill_tokens: int = field(default=0, compare=False)
    decodes: int = field(default=0, compare=False)
    context_tokens: int = field(default=0, compare=False)
    steps: int = field(default=1, compare=False)  # whose tokens came together


class TokenSteps:
    """Steps told from tokens; whoever reads tells too when the engine goes to work from rest."""

    def __init__(self) -> None:
        self._open: list[_Open] = []  # oldest first
        self._last_s: float | None = None  # the end of the step told last, or when work began

    def at_work(self, unix_s: float) -> None:
        """A request goes to an engine that is at rest."""
        self._last_s = unix_s

    def read(
        self, stamp_s: float, context_tokens: int, prompt_tokens: int, tokens: int = 1
    ) -> list[TimedStep]:
        """A sequence got tokens, by which its context is so long; the steps that are told by it.

        ``prompt_tokens`` are those computed for it: its prompt with the first token, then 0.
        """
        if self._last_s is not None and stamp_s < self._last_s - CLOCK_BACK_S:
            self._open.clear()
            self._last_s = stamp_s
            return []
        step = self._step_of(stamp_s)
        if step is None:  # of one that is told already
            return []
        step.steps = max(step.steps, tokens)
        if prompt_tokens:
            step.prefill_tokens += prompt_tokens
        else:
            step.decodes += 1
            step.context_tokens += context_tokens
        return self._told(OPEN_STEPS)

    def at_rest(self) -> list[TimedStep]:
        """Nobody runs any more: all that is open is told."""
        told = self._told(0)
        self._last_s = None
        return told

    def _step_of(self, stamp_s: float) -> _Open | None:
        for step in self._open:
            if abs(step.stamp_s - stamp_s) <= SAME_STEP_S:
                return step
        if self._last_s is not None and stamp_s <= self._last_s:
            return None
        step = _Open(stamp_s)
        insort(self._open, step)
        return step

    def _told(self, kept: int) -> list[TimedStep]:
        told = []
        while len(self._open) > kept:
            step = self._open.pop(0)
            if self._last_s is not None:
                told += _timed(self._last_s, step)
            self._last_s = step.stamp_s
        return told


def _timed(began_s: float, step: _Open) -> list[TimedStep]:
    """The steps whose tokens came together, alike; none where prompts are among them."""
    if step.steps > 1 and step.prefill_tokens:
        return []
    ends_s = np.linspace(began_s, step.stamp_s, step.steps + 1).tolist()
    work = (step.prefill_tokens, step.decodes, step.context_tokens)
    return [TimedStep(start_s, end_s, *work) for start_s, end_s in pairwise(ends_s)]
