"""One outcome for a client's request that became several sequences.

A list of prompts, ``n`` samples, beams, the turns of a server's own tools: each sequence is planned
and logged by itself, but the client asked once, and its request has attained only as a whole.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field

from lengthwise.scheduler.serving.engine.observed.sequence_outcome import Outcome
from lengthwise.scheduler.serving.engine.requests.request_table import Tracked

MOST_WHOLES = 10_000  # open at a time; beyond, the oldest is booked with what it has

_WORST_FIRST = ("failed", "shed", "aborted", "length", "finished")

Parts = list[tuple[Tracked, Outcome]]


@dataclass(slots=True)
class _Open:
    expected: int  # 0: not known before somebody says that no more will come
    live: int = 0
    closed: bool = False
    parts: Parts = field(default_factory=list)

    @property
    def is_complete(self) -> bool:
        known = 0 < self.expected <= len(self.parts)
        return known or (self.closed and self.live <= 0)


class Wholes:
    """Gathers the parts of each request until all have ended."""

    def __init__(self, most: int = MOST_WHOLES) -> None:
        self._most = most
        self._open: OrderedDict[str, _Open] = OrderedDict()

    def __len__(self) -> int:
        return len(self._open)

    def began(self, tracked: Tracked) -> Parts:
        """A part arrived; the parts of a request that had to be booked to make room."""
        if tracked.whole is None:
            return []
        self._of(tracked).live += 1
        if len(self._open) <= self._most:
            return []
        return self._open.popitem(last=False)[1].parts

    def ended(self, tracked: Tracked, outcome: Outcome) -> Parts:
        """A part ended; all parts where it was the last."""
        if tracked.whole is None:
            return [(tracked, outcome)]
        whole = self._of(tracked)
        whole.live -= 1
        whole.parts.append((tracked, outcome))
        return self._complete(tracked.whole.whole_id)

    def closed(self, whole_id: str) -> Parts:
        """No further part will come; the parts, unless some still run."""
        if whole_id not in self._open:
            return []
        self._open[whole_id].closed = True
        return self._complete(whole_id)

    def _of(self, tracked: Tracked) -> _Open:
        assert tracked.whole is not None
        return self._open.setdefault(tracked.whole.whole_id, _Open(tracked.whole.parts))

    def _complete(self, whole_id: str) -> Parts:
        if not self._open[whole_id].is_complete:
            return []
        return self._open.pop(whole_id).parts


def together(parts: Sequence[tuple[Tracked, Outcome]]) -> tuple[Tracked, Outcome]:
    """The request's outcome, and the part whose class and objectives stand for it.

    Every part has the request's objectives, so the whole is as late as its latest part: TTFT and
    TPOT are the worst of its parts', e2e runs from the first arrival to the last end. Of a request
    whose parts follow one another the first token is the first part's.
    """
    first, outcome = min(parts, key=lambda part: part[0].arrival_s)
    if len(parts) == 1:
        return first, outcome
    in_turn = first.whole is not None and first.whole.parts == 0
    outcomes = [one for _, one in parts]
    ends_s = [tracked.arrival_s + one.e2e_s for tracked, one in parts]
    return first, Outcome(
        status=min((one.status for one in outcomes), key=_rank),
        output_tokens=sum(one.output_tokens for one in outcomes),
        ttft_s=outcome.ttft_s if in_turn else _worst([one.ttft_s for one in outcomes]),
        tpot_s=_worst([one.tpot_s for one in outcomes]),
        e2e_s=max(ends_s) - first.arrival_s,
        queue_s=_worst([one.queue_s for one in outcomes]),
    )


def _rank(status: str) -> int:
    """Statuses that are not known here come between those cut and those finished."""
    return _WORST_FIRST.index(status) if status in _WORST_FIRST else len(_WORST_FIRST) - 1


def _worst(seconds: Sequence[float | None]) -> float | None:
    """The largest; None where one never came."""
    known = [one for one in seconds if one is not None]
    return max(known) if len(known) == len(seconds) else None
