"""What became of one sequence, in times since its arrival."""

from __future__ import annotations

import math
from dataclasses import dataclass

from lengthwise.scheduler.serving.engine.requests.request_table import Tracked

# How a request ends: of itself, at its limit, at a stop string, by vLLM's detection of repetition,
# or in a way that this package does not know yet; then given up by the client, lost, turned away.
ANSWERED = ("finished", "length", "stopped", "repetition", "otherwise")
# Of these the model or the limit decided how long the answer is, which is what can be learned.
TELLS_LENGTH = ("finished", "length")


@dataclass(frozen=True, slots=True)
class Outcome:
    """Times of a request that ended, seconds since its arrival; None where it did not get there.

    ``status`` is one of ``lengthwise.data.request_log.STATUSES``.
    """

    status: str
    output_tokens: int
    ttft_s: float | None
    tpot_s: float | None
    e2e_s: float
    queue_s: float | None

    @classmethod
    def of(cls, tracked: Tracked, status: str, output_tokens: int, now_s: float) -> Outcome:
        """Outcome at ``now_s``; TPOT = (e2e - TTFT) / (n - 1), 0 for n <= 1."""
        e2e_s = now_s - tracked.arrival_s
        first = tracked.first_token_s
        ttft_s = None if first is None else first - tracked.arrival_s
        tpot_s = None
        if ttft_s is not None:
            tpot_s = (e2e_s - ttft_s) / (output_tokens - 1) if output_tokens > 1 else 0.0
        admitted = tracked.admitted_s
        queue_s = None if admitted is None else admitted - tracked.arrival_s
        return cls(status, output_tokens, ttft_s, tpot_s, e2e_s, queue_s)

    def met(self, tracked: Tracked) -> bool | None:
        """Whether all objectives hold; None for best effort and for what the client gave up."""
        if tracked.slo.is_best_effort or self.status == "aborted":
            return None
        if self.status not in ANSWERED:
            return False
        return tracked.slo.met(_or_nan(self.ttft_s), _or_nan(self.tpot_s), self.e2e_s)


def _or_nan(seconds: float | None) -> float:
    return math.nan if seconds is None else seconds
