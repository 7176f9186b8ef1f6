"""How long the engine's steps really are, against what plans expected of them.

Between two plans every request that decodes in both has gained some tokens. What the rollout of
the first plan expected of the same seconds is known, so the ratio of the two says whether the
profile's clock is right. Only a lasting and large error is corrected: one plan is noise, and the
steps' own fit (``step_time``) is the finer instrument.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from lengthwise.data.arrays import FloatArray
from lengthwise.scheduler.problem import Problem

GAIN_S = 5.0  # seconds of evidence after which 1 - 1/e of an error is taken in
DEADBAND = math.log(1.5)  # errors below this are left to the noise
MOST = math.log(32.0)
LONGEST_GAP_S = 5.0
AHEAD_S = 0.5  # how far a plan is asked what the steps will take


@dataclass(frozen=True, slots=True)
class _Seen:
    now_s: float
    arrival_s: FloatArray
    generated: FloatArray
    token_s: float  # expected by the plan, with the correction of its time


class StepPace:
    """A factor on the profile's step times, learned from the tokens that running requests gain."""

    def __init__(self) -> None:
        self._log = 0.0
        self._seen: _Seen | None = None

    @property
    def factor(self) -> float:
        """Real step time / the profile's; exactly 1 while the error is within the deadband."""
        return math.exp(self._log) if abs(self._log) > DEADBAND else 1.0

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
        gained = running.generated_tokens[now] - seen.generated[then]
        gained = gained[(gained > 0) & (seen.generated[then] > 0)]
        if len(gained) < 2:
            return
        tokens = float(np.median(gained)) + 0.5  # a step is in flight at either end
        if tokens < 4.0:
            self._seen = seen  # too few to tell: wait for more
            return
        error = math.log(elapsed_s / tokens / seen.token_s)
        share = 1.0 - math.exp(-elapsed_s / GAIN_S)
        self._log = float(np.clip(self._log + share * error, -MOST, MOST))

    def expect(self, problem: Problem, token_s: float) -> None:
        """A plan expects a token every ``token_s`` of those that run, under this factor."""
        if self._seen is not None:
            return
        self._seen = _Seen(
            problem.now_s,
            problem.running.arrival_s.copy(),
            problem.running.generated_tokens.copy(),
            token_s * math.exp(self._log) / self.factor,
        )
