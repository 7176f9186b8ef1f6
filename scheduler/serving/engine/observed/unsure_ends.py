"""Ends of which the engine does not know what they were: answers whole, or clients gone.

Both come to it as an abort where a stop string is looked for. The API process says which it was in
its next message; what nobody says anything about was given up.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

from lengthwise.scheduler.serving.engine.requests.request_table import Tracked
from lengthwise.scheduler.serving.wire.left_early import LeftEarly

HELD_S = 5.0
_MOST_HELD = 10_000


@dataclass(frozen=True, slots=True)
class End:
    """How, with how many tokens and when a request ended, on both clocks."""

    tracked: Tracked
    status: str
    output_tokens: int
    now_s: float
    unix_s: float

    @property
    def is_unsure(self) -> bool:
        """Whether an abort may have been a stop string's."""
        return self.status == "aborted" and self.tracked.may_stop


class UnsureEnds:
    """Holds such ends until somebody says what they were, for ``HELD_S`` at most."""

    def __init__(self) -> None:
        self._held: OrderedDict[str, End] = OrderedDict()

    def __len__(self) -> int:
        return len(self._held)

    def hold(self, end: End) -> None:
        """Keep it."""
        self._held[end.tracked.request_id] = end

    def told(self, said: Iterable[Any]) -> list[End]:
        """The ends of these messages (``LeftEarly``, as plain values), with what they were."""
        ends = []
        for one in map(LeftEarly.from_wire, said):
            end = None if one is None else self._held.pop(one.request_id, None)
            if one is None or end is None:
                continue
            if one.output_tokens is not None:
                end = replace(end, status="stopped", output_tokens=one.output_tokens)
            ends.append(end)
        return ends

    def overdue(self, now_s: float) -> list[End]:
        """Ends that nobody said anything about in time."""
        ends = []
        while self._held:
            end = next(iter(self._held.values()))
            if now_s - end.now_s <= HELD_S and len(self._held) <= _MOST_HELD:
                break
            ends.append(self._held.popitem(last=False)[1])
        return ends
