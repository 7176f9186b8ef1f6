"""What waiting prompts share: with the engine's prefix cache now, and with each other.

A prompt is known by the chained hashes of its blocks: equal hashes at a place mean equal beginnings
up to it. ``PrefixGroups`` compares a few places of each prompt, denser at the beginning, so that a
long prompt costs little; ``PrefixLooks`` asks the cache in turn, a few prompts a step.
"""

from __future__ import annotations

import itertools
from collections import OrderedDict
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass

from lengthwise.scheduler.fleet.beginnings import PLACES
from lengthwise.scheduler.serving.engine.queue.planned_queue import PlannedQueue
from lengthwise.scheduler.serving.engine.requests.request_table import RequestTable

_LOOKS_A_STEP = 8


@dataclass(slots=True)
class _Group:
    number: int
    first: str
    members: int = 1


class PrefixGroups:
    """Who begins alike; numbers go to the table's ``prefix_id`` and ``prefix_tokens``."""

    def __init__(self, table: RequestTable) -> None:
        self._table = table
        self._groups: dict[Hashable, _Group] = {}
        self._hashes: dict[str, list[Hashable]] = {}
        self._shared: dict[str, int] = {}  # blocks that a request shares with its group
        self._numbers = itertools.count()

    def add(self, request_id: str, block_hashes: Sequence[Hashable], block_tokens: int) -> None:
        """A tracked request came whose prompt's full blocks have these hashes."""
        self.remove(request_id)
        known: list[Hashable] = []
        shared, group = 0, None
        for place in PLACES:
            if place > len(block_hashes):
                break
            name = block_hashes[place - 1]
            known.append(name)
            present = self._groups.get(name)
            if present is None:
                self._groups[name] = _Group(next(self._numbers), request_id)
            else:
                present.members += 1
                shared, group = place, present
        self._hashes[request_id] = known
        if group is None:
            return
        # Who came first could not know yet that anybody would begin alike.
        for name in (request_id, group.first):
            if name in self._hashes and shared > self._shared.get(name, 0):
                self._shared[name] = shared
                self._table.note_prefix(name, group.number, shared * block_tokens)

    def remove(self, request_id: str) -> None:
        """The request ended."""
        self._shared.pop(request_id, None)
        for name in self._hashes.pop(request_id, ()):
            group = self._groups[name]
            group.members -= 1
            if group.members == 0:
                del self._groups[name]


class PrefixLooks:
    """Asks for cached tokens of those who wait, newcomers first and then in turn."""

    def __init__(
        self,
        table: RequestTable,
        queue: PlannedQueue,
        cached_tokens: Callable[[str], int | None],
    ) -> None:
        self._table = table
        self._queue = queue
        self._cached_tokens = cached_tokens
        self._line: OrderedDict[str, int | None] = OrderedDict()  # with what the table knows

    def add(self, request_id: str) -> None:
        """The request joined the queue."""
        self._line[request_id] = None
        self._line.move_to_end(request_id, last=False)
        if len(self._line) > 2 * len(self._queue) + _LOOKS_A_STEP:  # most of them have left
            here = filter(self._waits, self._line)
            self._line = OrderedDict((name, self._line[name]) for name in here)

    def look(self) -> None:
        """The looks of one step."""
        for _ in range(min(_LOOKS_A_STEP, len(self._line))):
            request_id, known = self._line.popitem(last=False)
            if not self._waits(request_id):
                continue
            tokens = self._cached_tokens(request_id)
            if tokens is None:
                continue
            if tokens != known:
                self._table.note_cached(request_id, tokens)
            self._line[request_id] = tokens

    def _waits(self, request_id: str) -> bool:
        return request_id in self._queue and request_id in self._table
