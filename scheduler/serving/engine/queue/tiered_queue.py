"""A planned queue for each priority; one is served only while those before it are empty.

What a plan orders, it orders within a tier: an operator's priority is no objective to be weighed.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator

from lengthwise.scheduler.serving.engine.queue.planned_queue import PlannedQueue
from lengthwise.scheduler.serving.engine.queue.planned_strand import Request


class TieredQueue(PlannedQueue):
    """``tier`` makes a queue; ``priority`` reads a request's number, the smaller the sooner.

    A request keeps its tier until ``forget``. Each operation costs a tier's, and a look at the
    tiers before it that are empty: their requests run. Clients may give every request a number of
    its own, so nothing that is asked in each step looks at all tiers.
    """

    def __init__(
        self, tier: Callable[[], PlannedQueue], priority: Callable[[Request], int]
    ) -> None:
        super().__init__()
        self._make = tier
        self._priority = priority
        self._tiers: dict[int, PlannedQueue] = {}
        self._levels: list[int] = []
        self._level_of: dict[str, int] = {}
        self._members: Counter[int] = Counter()
        self._shared: set[int] = set()  # tiers of several requests, which alone have an order
        self._plannable: dict[str, None] = {}
        self._size = 0
        self._recovering: set[int] = set()  # tiers in which somebody goes before any plan
        self._yielding: set[int] = set()  # in which somebody's slot was taken

    def add_request(self, request: Request) -> None:
        """Add at the end of its tier."""
        self._enter_tier(request, lambda tier: tier.add_request(request))

    def pop_request(self) -> Request:
        """Remove and return the front request; IndexError when empty."""
        level = self._first()
        request = self._tiers[level].pop_request()
        self._size -= 1
        self._plannable.pop(request.request_id, None)
        self._note_recovery(level)
        self._pinned = None
        return request

    def peek_request(self) -> Request:
        """The front request, pinned until popped; IndexError when empty."""
        request = self._tiers[self._first()].peek_request()
        self._pinned = request.request_id
        return request

    def prepend_request(self, request: Request) -> None:
        """Put back at the front of its strand in its tier."""
        self.unpin()
        self._enter_tier(request, lambda tier: tier.prepend_request(request))

    def __bool__(self) -> bool:
        return self._size > 0

    def __len__(self) -> int:
        return self._size

    def __iter__(self) -> Iterator[Request]:
        for tier in self._in_turn():
            yield from tier

    def __contains__(self, request_id: object) -> bool:
        level = self._level_of.get(str(request_id))
        return level is not None and request_id in self._tiers[level]

    @property
    def recovery_count(self) -> int:
        """How many requests go before any plan of their tier."""
        return sum(self._tiers[level].recovery_count for level in self._recovering)

    def plannable_ids(self) -> Iterator[str]:
        """Ids that a plan may order, in their present order."""
        for tier in self._in_turn():
            yield from tier.plannable_ids()

    def plannable_members(self) -> list[str]:
        """All of them in any order, which costs less."""
        return list(self._plannable)

    def recovery_ids(self) -> list[str]:
        """Ids of those who go before any plan, next first."""
        levels = sorted(self._recovering)
        return [name for level in levels for name in self._tiers[level].recovery_ids()]

    def yielded_ids(self) -> list[str]:
        """Ids of those here whose slots a plan took."""
        levels = sorted(self._yielding)
        return [name for level in levels for name in self._tiers[level].yielded_ids()]

    def set_order(self, request_ids: Iterable[str]) -> None:
        """Serve in this order within each tier."""
        named: defaultdict[int, list[str]] = defaultdict(list)
        for request_id in request_ids:
            level = self._level_of.get(request_id)
            if level is not None and level in self._shared:
                named[level].append(request_id)
        for level in self._shared:
            self._tiers[level].set_order(named[level])

    def clear_order(self) -> None:
        """Forget the plan: back to order of arrival within each tier."""
        for tier in self._in_turn():
            tier.clear_order()

    def promote(self, request_id: str) -> None:
        """Move a plannable request to the front of its tier's plan."""
        if (tier := self._tier_of(request_id)) is not None:
            tier.promote(request_id)

    def defer(self, request_id: str) -> None:
        """Move a plannable request to the end of its tier."""
        if (tier := self._tier_of(request_id)) is not None:
            tier.defer(request_id)

    def demote(self, request_id: str) -> None:
        """A plan took the slot of this request, now queued: it waits at the end of its tier's."""
        if (level := self._level_of.get(request_id)) is not None:
            self._tiers[level].demote(request_id)
            self._note_place(request_id, level)
            self._note_recovery(level)
            self._yielding.add(level)
            self.unpin()

    def reinstate(self) -> None:
        """The plan holds no more: those whose slots it took stand first in their tiers."""
        for level in self._yielding:
            tier = self._tiers[level]
            names = tier.yielded_ids()
            tier.reinstate()
            for name in names:
                self._note_place(name, level)
            self._note_recovery(level)
        self._yielding.clear()

    def may_displace(self, running_id: str) -> bool:
        """Not where the running request's tier comes before that of who stands first."""
        level = self._level_of.get(running_id)
        first = next((one for one in self._levels if self._tiers[one]), None)
        return level is None or first is None or level >= first

    def unpin(self) -> None:
        """What was shown binds no more."""
        if self._pinned is not None and (tier := self._tier_of(self._pinned)) is not None:
            tier.unpin()
        self._pinned = None

    def settle(self) -> None:
        """After a step: who has its slot back recovers like anyone when vLLM preempts it."""
        for level in self._yielding:
            self._tiers[level].settle()

    def forget(self, request_id: str) -> None:
        """Drop a finished request, and its tier with the last of it."""
        self._discard(request_id)
        level = self._level_of.pop(request_id, None)
        if level is None:
            return
        self._tiers[level].forget(request_id)
        self._members[level] -= 1
        if self._members[level] == 1:
            self._shared.discard(level)
        elif not self._members[level]:
            del self._members[level], self._tiers[level]
            del self._levels[bisect_left(self._levels, level)]
            self._recovering.discard(level)
            self._yielding.discard(level)

    def _discard(self, request_id: str) -> None:
        level = self._level_of.get(request_id)
        if level is None or request_id not in self._tiers[level]:
            return
        self._tiers[level]._discard(request_id)
        self._size -= 1
        self._plannable.pop(request_id, None)
        self._note_recovery(level)

    def _enter_tier(self, request: Request, put: Callable[[PlannedQueue], None]) -> None:
        level = self._level_for(request)
        tier = self._tiers[level]
        self._size -= len(tier)  # whoever is here already is only moved
        put(tier)
        self._size += len(tier)
        self._note_place(request.request_id, level)
        self._note_recovery(level)

    def _note_place(self, request_id: str, level: int) -> None:
        if self._tiers[level].is_plannable(request_id):
            self._plannable[request_id] = None
        else:
            self._plannable.pop(request_id, None)

    def _note_recovery(self, level: int) -> None:
        if self._tiers[level].recovery_count:
            self._recovering.add(level)
        else:
            self._recovering.discard(level)

    def _level_for(self, request: Request) -> int:
        """The request's tier, made if it is the first of it."""
        request_id = request.request_id
        level = self._level_of.get(request_id)
        if level is None:
            level = self._level_of[request_id] = self._priority(request)
            self._members[level] += 1
            if self._members[level] == 2:
                self._shared.add(level)
        if level not in self._tiers:
            self._tiers[level] = self._make()
            insort(self._levels, level)
        return level

    def _tier_of(self, request_id: str) -> PlannedQueue | None:
        level = self._level_of.get(request_id)
        return None if level is None else self._tiers[level]

    def _in_turn(self) -> Iterator[PlannedQueue]:
        return (self._tiers[level] for level in self._levels)

    def _first(self) -> int:
        if self._pinned is not None and self._pinned in self:
            return self._level_of[self._pinned]
        for level in self._levels:
            if self._tiers[level]:
                return level
        raise IndexError("peek from an empty queue")
