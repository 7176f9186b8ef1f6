"""The requests that the router knows, as columns that compiled code reads."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import numpy as np

from lengthwise.data.arrays import FloatArray, IntArray
from lengthwise.data.lengths import STRATA, to_come
from lengthwise.scheduler.fleet.beginnings import Beginning
from lengthwise.scheduler.fleet.fleet_request import FleetRequest

ARRIVAL, PROMPT, TTFT_BY, TPOT, E2E_BY, WEIGHT, PREFIX_TOKENS, MEAN, SENT, CACHED = range(10)
FIGURES = 10
FIRST_ROOM = 256


class KnownColumns(NamedTuple):
    """``figures (n, FIGURES)`` of the columns above, ``prefix (n,)``, ``quantiles (n, q)`` at
    ``levels (q,)`` and the fresh answer's ``strata (n, s)``, equally likely lengths."""

    figures: FloatArray
    prefix: IntArray
    quantiles: FloatArray
    strata: FloatArray
    levels: FloatArray


class KnownRequests:
    """Requests by key, each in a slot of the columns until it is forgotten."""

    def __init__(self, levels: FloatArray) -> None:
        self.levels = np.ascontiguousarray(levels, dtype=np.float64)
        self._slots: dict[int, int] = {}
        self._free: list[int] = []
        self._starts: dict[int, Sequence[Beginning]] = {}  # by slot, of those that have any
        self._begun: set[int] = set()
        self.columns = self._columns(0)
        self._grow()

    def __len__(self) -> int:
        return len(self._slots)

    def __contains__(self, key: int) -> bool:
        return key in self._slots

    def add(self, request: FleetRequest) -> int:
        """The slot of a request from now on; ValueError where the key is taken."""
        if request.key in self._slots:
            raise ValueError(f"request {request.key} is known already")
        if len(request.quantiles) != len(self.levels):
            raise ValueError(
                f"quantiles must have {len(self.levels)} values, got {len(request.quantiles)}"
            )
        if not self._free:
            self._grow()
        slot = self._free.pop()
        c = self.columns
        row = c.quantiles[slot]
        np.maximum.accumulate(np.maximum(request.quantiles, 1.0), out=row)
        mean = to_come(self.levels, row, 0.0, -1.0, c.strata[slot])
        arrival_s = request.arrival_s
        c.figures[slot] = (
            arrival_s,
            request.prompt_tokens,
            arrival_s + request.ttft_s,
            request.tpot_s,
            arrival_s + request.e2e_s,
            max(request.weight, 0.0) if request.has_objective else 0.0,
            request.prefix_tokens,
            mean,
            arrival_s,
            0.0,
        )
        c.prefix[slot] = request.prefix
        self._slots[request.key] = slot
        if request.starts:
            self._starts[slot] = request.starts
        return slot

    def slot(self, key: int) -> int:
        """Where the request stands; KeyError for one that is not known."""
        return self._slots[key]

    def slots(self, keys: list[int]) -> IntArray:
        """Where the requests stand ``(n,)``, -1 for who is not known."""
        get = self._slots.get
        return np.array([get(key, -1) for key in keys], dtype=np.int64)

    def starts(self, slot: int) -> Sequence[Beginning]:
        """The beginnings of the request in this slot that others may share."""
        return self._starts.get(slot, ())

    def newly_begun(self, slots: Iterable[int]) -> Iterator[Sequence[Beginning]]:
        """Beginnings of those in these slots that are past them, each asked for once."""
        for slot in slots:
            if slot in self._starts and slot not in self._begun:
                self._begun.add(slot)
                yield self._starts[slot]

    def forget(self, key: int) -> None:
        """The request is over; what is not known is none of its business."""
        slot = self._slots.pop(key, None)
        if slot is not None:
            self._free.append(slot)
            self._starts.pop(slot, None)
            self._begun.discard(slot)

    def _columns(self, n: int) -> KnownColumns:
        q = len(self.levels)
        return KnownColumns(
            np.zeros((n, FIGURES)),
            np.zeros(n, dtype=np.int64),
            np.ones((n, q)),
            np.ones((n, len(STRATA))),
            self.levels,
        )

    def _grow(self) -> None:
        old = self.columns
        before = len(old.prefix)
        grown = self._columns(max(FIRST_ROOM, 2 * before))
        for ours, theirs in zip(grown[:4], old[:4], strict=True):
            ours[:before] = theirs
        self.columns = grown
        self._free += range(len(grown.prefix) - 1, before - 1, -1)
