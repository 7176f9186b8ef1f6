"""Requests in a plan's order: a new order costs what came since the last one, not what waits.

A plan for twenty thousand requests is adopted between two steps of the engine, so its order is
taken as the list that it is and read as far as the engine gets. Who has left in between is passed
by, and whom the list does not name is looked for only once it has been read to its end.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

Request = Any


class PlannedStrand:
    """First whoever was put first, then the plan's order, then whoever was put last.

    ``rank`` is the order of those whom the plan does not name; they stand behind all others.
    """

    def __init__(self, rank: Callable[[str], int]) -> None:
        self._rank = rank
        self._front: OrderedDict[str, Request] = OrderedDict()
        self._pool: dict[str, Request] = {}  # those that the plan may name
        self._order: Sequence[str] = ()
        self._next = 0  # in that order; all before have left
        self._behind: OrderedDict[str, Request] = OrderedDict()

    def __len__(self) -> int:
        return len(self._front) + len(self._pool) + len(self._behind)

    def __contains__(self, request_id: str) -> bool:
        return request_id in self._pool or request_id in self._front or request_id in self._behind

    def get(self, request_id: str) -> Request | None:
        """The request, or None."""
        for part in (self._front, self._pool, self._behind):
            if (request := part.get(request_id)) is not None:
                return request
        return None

    def pop(self, request_id: str) -> Request | None:
        """Take a request out; None when it is not here."""
        for part in (self._front, self._pool, self._behind):
            if (request := part.pop(request_id, None)) is not None:
                return request
        return None

    def first(self) -> Request | None:
        """The next request; None when nobody is left but those whom the plan does not name."""
        for request in self._front.values():
            return request
        while self._next < len(self._order):
            request = self._pool.get(self._order[self._next])
            if request is not None:
                return request
            self._next += 1
        return next(iter(self._behind.values()), None)

    def put_first(self, request_id: str, request: Request) -> None:
        """A request that is not here goes before all others."""
        self._front[request_id] = request
        self._front.move_to_end(request_id, last=False)

    def put_last(self, request_id: str, request: Request) -> None:
        """A request that is not here goes behind the plan."""
        self._behind[request_id] = request

    def reorder(self, order: Sequence[str], newcomers: Mapping[str, Request]) -> None:
        """Stand in this order, the newcomers too; ids that are not here name nobody.

        The order is kept as it is given, not copied.
        """
        for part in (self._front, self._behind, newcomers):
            self._pool.update(part)
        self._front.clear()
        self._behind.clear()
        self._order, self._next = order, 0

    def take_unnamed(self) -> list[tuple[str, Request]]:
        """Those whom the plan does not name, by rank; they are no longer here."""
        ids = self._unnamed(self._order[self._next :])
        return [(request_id, self._pool.pop(request_id)) for request_id in ids]

    def ids(self) -> Iterator[str]:
        """All in their order, found as they are asked for."""
        yield from self._front
        named: set[str] = set()
        for place in range(self._next, len(self._order)):
            request_id = self._order[place]
            if request_id in self._pool and request_id not in named:
                named.add(request_id)
                yield request_id
        yield from self._behind
        if len(named) < len(self._pool):
            yield from self._unnamed(named)

    def members(self) -> list[str]:
        """All in any order, sooner than in theirs."""
        return [*self._front, *self._pool, *self._behind]

    def _unnamed(self, named: Iterable[str]) -> list[str]:
        return sorted(self._pool.keys() - named, key=self._rank)
