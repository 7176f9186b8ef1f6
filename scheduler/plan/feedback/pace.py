"""How long the engine's steps really are, against what plans expected of them.

Between two plans every request that runs in both has gained some tokens; the first plan, played up
to the moment of the second, says how many to expect. No mean pace would do: under a prefill period
some steps are many times as long as others, and a plan may fall on either side of one. The ratio
of the sums over the last half minute says whether the profile's clock is right. Only an error of a
factor is corrected: what arrives between two plans makes single ones wrong by much, and the fit to
timed steps (``step_time``) is the finer instrument, where there is one.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from lengthwise.data.arrays import FloatArray
from lengthwise.scheduler.problem import Problem

MEMORY_S = 20.0
LEAST_S = 5.0  # of evidence
DEADBAND = 2.0  # a factor below this is left alone
MOST = 32.0
LONGEST_GAP_S = 5.0


@dataclass(frozen=True, slots=True)
class _Seen:
    now_s: float
    arrival_s: FloatArray
    generated: FloatArray
    tokens_by: Callable[[float], float]


class StepPace:
    """A factor on the profile's step times, learned from the tokens that running requests gain."""

    def __init__(self) -> None:
        self._seen: _Seen | None = None
        self._gained = self._expected = self._seconds = 0.0
        self._factor = 1.0

    @property
    def factor(self) -> float:
        """Real step time / the profile's; exactly 1 while the error is within the deadband."""
        return self._factor

    def observe(self, problem: Problem) -> None:
        """Compare the tokens gained since ``expect`` with what was expected of the time."""
        seen, self._seen = self._seen, None
        if seen is None:
            return
        elapsed_s = problem.now_s - seen.now_s
        if not 0.0 < elapsed_s <= LONGEST_GAP_S:
            return
        running = problem.running
        _, now, then = np.intersect1d(running.arrival_s, seen.arrival_s, return_indices=True)
        if not len(now):
            return
        kept = math.exp(-elapsed_s / MEMORY_S)
        gained = running.generated_tokens[now] - seen.generated[then]
        self._gained = kept * self._gained + float(gained.mean())
        # by the profile's own times, which the plan had corrected
        expected = self._factor * seen.tokens_by(problem.now_s)
        self._expected = kept * self._expected + expected
        self._seconds = kept * self._seconds + elapsed_s
        if self._seconds < LEAST_S:
            return
        ratio = min(max(self._expected / max(self._gained, 1e-9), 1.0 / MOST), MOST)
        # once corrected it stays so until the error has clearly gone
        least = DEADBAND if self._factor == 1.0 else math.sqrt(DEADBAND)
        self._factor = ratio if abs(math.log(ratio)) > math.log(least) else 1.0

    def expect(self, problem: Problem, tokens_by: Callable[[float], float]) -> None:
        """A plan expects ``tokens_by(now_s)`` of everyone that runs, by the corrected times."""
        decoding = problem.running.prefill_left_tokens <= 0
        self._seen = _Seen(
            problem.now_s,
            problem.running.arrival_s[decoding],
            problem.running.generated_tokens[decoding],
            tokens_by,
        )
