"""The engine's steps as its pool sees them: by the moments that tokens are stamped with.

Nobody tells the pool of steps, but LMDeploy stamps each token with the wall clock's time of the
step it comes from, and a step lasts from the stamp before it. PyTorch's engine gives all tokens of
a step one stamp, TurboMind's are a callback apart. Tokens are read by one task a request, so a
later step's may be read before an earlier one's: a step is told once some newer ones have begun.

Where the API process lags, LMDeploy gathers the tokens of several steps under the last one's stamp,
for each reader as far as it lags: of sixteen sequences one or two may read each stamp, a dozen
tokens at once. A sequence that reads `k` tokens took part in `k` steps since the stamp it read
before. Of these some have stamps, which others read; what is left of `k` are the steps between the
last of them and its own. So a step is told once everybody who runs has read as far.

A stamp under which only prompts were read is a step of prompts alone, as PyTorch's engine has them.
"""

from __future__ import annotations

from bisect import bisect_right, insort
from dataclasses import dataclass, field
from itertools import pairwise
from typing import NamedTuple

import numpy as np

SAME_STEP_S = 0.001  # between the stamps of one step
OPEN_STEPS = 3  # of which tokens of newcomers may still come
MOST_OPEN_STEPS = 64  # that somebody is waited for
CLOCK_BACK_S = 1.0  # a stamp so much before the last step's is of a clock that was set back
_REMEMBERED_STEPS = 256  # stamps that a reader may be behind


@dataclass(frozen=True, slots=True)
class TimedStep:
    """A step's work and when it ran, unix seconds; ``decodes`` sequences with their context."""

    began_s: float
    ended_s: float
    prefill_tokens: int
    decodes: int
    context_tokens: int


class _Reading(NamedTuple):
    """Tokens that a sequence read at once; ``prompt_tokens`` with its first one, else 0."""

    since_s: float  # the stamp it read before
    tokens: int
    context_tokens: int
    prompt_tokens: int


@dataclass(slots=True, order=True)
class _Open:
    stamp_s: float
    readings: list[_Reading] = field(default_factory=list, compare=False)
    behind: int = field(default=0, compare=False)  # sequences that have not read as far

    @property
    def is_prompts_only(self) -> bool:
        return all(reading.prompt_tokens and reading.tokens == 1 for reading in self.readings)


class TokenSteps:
    """Steps told from tokens; whoever reads tells too when the engine goes to work from rest."""

    def __init__(self) -> None:
        self._open: list[_Open] = []  # oldest first
        self._last_s: float | None = None  # the end of the step told last, or when work began
        self._since_s: dict[str, float] = {}  # the stamp that each sequence read last
        self._ends_s: list[float] = []  # of steps that were told
        self._counts: list[int] = []  # how many there were up to each end

    def at_work(self, unix_s: float) -> None:
        """A request goes to an engine that is at rest."""
        self._last_s = unix_s

    def left(self, name: str) -> None:
        """A sequence reads no more."""
        since_s = self._since_s.pop(name, None)
        if since_s is not None:
            self._caught_up(since_s, np.inf)

    def read(
        self, name: str, stamp_s: float, context_tokens: int, prompt_tokens: int, tokens: int = 1
    ) -> list[TimedStep]:
        """A sequence got tokens, by which its context is so long; the steps that are told by it.

        ``prompt_tokens`` are those computed for it: its prompt with the first token, then 0.
        """
        if self._last_s is not None and stamp_s < self._last_s - CLOCK_BACK_S:
            self._forget()
            self._last_s = stamp_s
            return []
        since_s = self._since_s.get(name)
        step = self._step_of(stamp_s)
        read_s = stamp_s if step is None else step.stamp_s
        if since_s is not None:
            self._caught_up(since_s, read_s)
        self._since_s[name] = read_s
        if step is None:  # of one that is told already
            return []
        since_s = -np.inf if since_s is None else since_s
        step.readings.append(_Reading(since_s, tokens, context_tokens, prompt_tokens))
        return self._told(OPEN_STEPS)

    def at_rest(self) -> list[TimedStep]:
        """Nobody runs any more: all that is open is told."""
        told = self._told(0)
        self._forget()
        self._last_s = None
        return told

    def _forget(self) -> None:
        self._open.clear()
        self._since_s.clear()
        self._ends_s.clear()
        self._counts.clear()

    def _step_of(self, stamp_s: float) -> _Open | None:
        for step in self._open:
            if abs(step.stamp_s - stamp_s) <= SAME_STEP_S:
                return step
        if self._last_s is not None and stamp_s <= self._last_s:
            return None
        step = _Open(stamp_s, behind=sum(since_s < stamp_s for since_s in self._since_s.values()))
        insort(self._open, step)
        return step

    def _caught_up(self, since_s: float, read_s: float) -> None:
        """A sequence that had read one stamp has read another."""
        for step in self._open:
            step.behind -= since_s < step.stamp_s <= read_s

    def _told(self, kept: int) -> list[TimedStep]:
        told = []
        while len(self._open) > kept:
            if kept and self._open[0].behind > 0 and len(self._open) <= MOST_OPEN_STEPS:
                break
            step = self._open.pop(0)
            count = self._count(step)
            if self._last_s is not None:
                told += self._timed(self._last_s, step, count)
            self._remember(step.stamp_s, 0 if step.is_prompts_only else count)
            self._last_s = step.stamp_s
        return told

    def _count(self, step: _Open) -> int:
        """How many steps lie between the stamp told last and this one, its own among them."""
        left = [
            reading.tokens - self._told_after(reading.since_s)
            for reading in step.readings
            if not reading.prompt_tokens
        ]
        return max(1, min(left, default=1))

    def _told_after(self, since_s: float) -> int:
        place = bisect_right(self._ends_s, since_s)
        before = self._counts[place - 1] if place else 0
        return self._counts[-1] - before if self._counts else 0

    def _remember(self, end_s: float, count: int) -> None:
        self._ends_s.append(end_s)
        self._counts.append(count + (self._counts[-1] if self._counts else 0))
        if len(self._ends_s) > 2 * _REMEMBERED_STEPS:
            del self._ends_s[:_REMEMBERED_STEPS], self._counts[:_REMEMBERED_STEPS]

    def _timed(self, began_s: float, step: _Open, count: int) -> list[TimedStep]:
        """The steps up to this stamp, alike; none where nobody knows which computed a prompt."""
        prefill_tokens = sum(
            reading.prompt_tokens for reading in step.readings if reading.tokens == 1
        )
        nobody_decodes = all(reading.prompt_tokens for reading in step.readings)
        if nobody_decodes and not step.is_prompts_only:
            return []
        if count > 1 and prefill_tokens:
            return []
        decodes = context_tokens = 0
        for later, at in enumerate((step, *self._open)):
            for reading in at.readings:
                if reading.prompt_tokens and reading.tokens > 1:  # its prompt is so far back
                    if reading.tokens - 2 <= later < reading.tokens:
                        return []
                    took_part = later < reading.tokens - 2
                else:
                    took_part = not reading.prompt_tokens and reading.since_s < step.stamp_s
                decodes += took_part
                context_tokens += took_part * reading.context_tokens
        if nobody_decodes:
            decodes = context_tokens = 0
        ends_s = np.linspace(began_s, step.stamp_s, count + 1).tolist()
        work = (prefill_tokens, decodes, context_tokens)
        return [TimedStep(start_s, end_s, *work) for start_s, end_s in pairwise(ends_s)]
