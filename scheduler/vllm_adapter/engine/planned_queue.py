"""A waiting queue served in a planned order; ``engine/scheduler.py`` makes it one of vLLM's.

Three strands, each an ordered mapping ``request_id -> request``, drained one after the other:

1. *recovery*: requests that have already computed something (those vLLM preempted); they hold
   a client's half-finished answer, so no plan comes before them;
2. *planned*: the order of the last plan, with those that gave up their slot to it;
3. *unplanned*: arrivals since, in order of arrival.

Every operation is O(1) except ``set_order`` and ``clear_order``, which are linear. A request
keeps the sequence number of its first arrival until ``forget``, so that arrival order survives
preemption and re-queueing.
"""

from __future__ import annotations

import itertools
from collections import OrderedDict
from collections.abc import Iterable, Iterator
from typing import Any

# An engine's request: opaque here but for its ``request_id``.
Request = Any
_Strand = OrderedDict[str, Request]


class PlannedQueue:
    """A queue whose order is a plan; without a plan it is first come, first served.

    Its methods are those of vLLM's ``RequestQueue``. ``has_run`` tells whether a request was
    running before, so that its work would be lost behind newcomers.

    ``peek_request`` pins what it shows: ``pop_request`` returns that very request even when an
    arrival or a new plan falls between the two. A prepend, or removal of the pinned request,
    unpins.
    """

    def __init__(self) -> None:
        self._recovery: _Strand = OrderedDict()
        self._planned: _Strand = OrderedDict()
        self._unplanned: _Strand = OrderedDict()
        self._sequence: dict[str, int] = {}
        self._counter = itertools.count()
        self._yielded: set[str] = set()
        self._pinned: str | None = None

    def has_run(self, request: Request) -> bool:
        """Whether the request was running before; by default none was."""
        return False

    # -- the RequestQueue contract ------------------------------------------------------------

    def add_request(self, request: Request) -> None:
        """Add at the end (or with the recovering ones, if it has already run)."""
        request_id = request.request_id
        self._discard(request_id)
        self._sequence.setdefault(request_id, next(self._counter))
        strand = self._recovery if self._recovers(request) else self._unplanned
        strand[request_id] = request

    def pop_request(self) -> Request:
        """Remove and return the front request; IndexError when empty."""
        request = self.peek_request()
        self._discard(request.request_id)
        return request

    def peek_request(self) -> Request:
        """The front request, pinned until popped; IndexError when empty."""
        if self._pinned is not None:
            strand = self._strand_of(self._pinned)
            if strand is not None:
                return strand[self._pinned]
        for strand in self._strands():
            if strand:
                request_id, request = next(iter(strand.items()))
                self._pinned = request_id
                return request
        raise IndexError("peek from an empty queue")

    def prepend_request(self, request: Request) -> None:
        """Put back at the front of its strand: preempted, or skipped during a step."""
        request_id = request.request_id
        self._discard(request_id)
        self._pinned = None
        self._sequence.setdefault(request_id, next(self._counter))
        strand = self._recovery if self._recovers(request) else self._planned
        strand[request_id] = request
        strand.move_to_end(request_id, last=False)

    def prepend_requests(self, requests: Iterable[Request]) -> None:
        """Prepend one by one, so the last of ``requests`` ends up first (as vLLM's own does)."""
        for request in list(requests):
            self.prepend_request(request)

    def remove_request(self, request: Request) -> None:
        """Remove; nothing happens when absent."""
        self._discard(request.request_id)

    def remove_requests(self, requests: Iterable[Request]) -> None:
        """Remove several; absent ones are ignored (vLLM asks every queue it has)."""
        for request in requests:
            self._discard(request.request_id)

    def __bool__(self) -> bool:
        return any(self._strands())

    def __len__(self) -> int:
        return sum(map(len, self._strands()))

    def __iter__(self) -> Iterator[Request]:
        for strand in self._strands():
            yield from list(strand.values())

    # -- the plan -----------------------------------------------------------------------------

    def __contains__(self, request_id: object) -> bool:
        return self._strand_of(str(request_id)) is not None

    @property
    def recovery_count(self) -> int:
        """How many requests go before any plan."""
        return len(self._recovery)

    def plannable_ids(self) -> list[str]:
        """Ids that a plan may order, in their present order."""
        return [*self._planned, *self._unplanned]

    def recovery_ids(self) -> list[str]:
        """Ids of those who go before any plan, next first."""
        return list(self._recovery)

    def yielded_ids(self) -> list[str]:
        """Ids of those here whose slots a plan took, oldest arrival first."""
        here = (request_id for request_id in self._yielded if request_id in self)
        return sorted(here, key=self._sequence.__getitem__)

    def set_order(self, request_ids: Iterable[str]) -> None:
        """Serve in this order; ids not (or no longer) here are ignored, the unnamed follow."""
        everyone = self._planned
        everyone.update(self._unplanned)
        planned: _Strand = OrderedDict()
        for request_id in request_ids:
            request = everyone.pop(request_id, None)
            if request is not None:
                planned[request_id] = request
        self._planned, self._unplanned = planned, self._by_arrival(everyone)

    def clear_order(self) -> None:
        """Forget the plan: back to order of arrival."""
        self.set_order(())

    def promote(self, request_id: str) -> None:
        """Move a plannable request to the front of the plan."""
        request = self._unplanned.pop(request_id, None)
        if request is not None:
            self._planned[request_id] = request
        if request_id in self._planned:
            self._planned.move_to_end(request_id, last=False)

    def demote(self, request_id: str) -> None:
        """A plan took the slot of this request, now queued: it waits at the end of the plan."""
        request = self._recovery.pop(request_id, None)
        if request is not None:
            self._yielded.add(request_id)
            self._planned[request_id] = request
            self._pinned = None

    def reinstate(self) -> None:
        """The plan holds no more: those whose slots it took stand before any plan, as they ran."""
        for request_id in self.yielded_ids():
            for strand in (self._planned, self._unplanned):
                if (request := strand.pop(request_id, None)) is not None:
                    self._recovery[request_id] = request
        self._yielded.clear()

    def may_displace(self, running_id: str) -> bool:
        """Whether who stands first here may be given the slot of this running request."""
        return True

    def settle(self) -> None:
        """After a step: who has its slot back recovers like anyone when vLLM preempts it."""
        if self._yielded:
            self._yielded = {request_id for request_id in self._yielded if request_id in self}

    def forget(self, request_id: str) -> None:
        """Drop a finished request's arrival number."""
        self._discard(request_id)
        self._yielded.discard(request_id)
        self._sequence.pop(request_id, None)

    # -- internals ----------------------------------------------------------------------------

    def _strands(self) -> tuple[_Strand, _Strand, _Strand]:
        return self._recovery, self._planned, self._unplanned

    def _recovers(self, request: Request) -> bool:
        return request.request_id not in self._yielded and self.has_run(request)

    def _strand_of(self, request_id: str) -> _Strand | None:
        for strand in self._strands():
            if request_id in strand:
                return strand
        return None

    def _discard(self, request_id: str) -> None:
        for strand in self._strands():
            strand.pop(request_id, None)
        if self._pinned == request_id:
            self._pinned = None

    def _by_arrival(self, strand: _Strand) -> _Strand:
        ranked = sorted(strand, key=lambda request_id: self._sequence[request_id])
        return OrderedDict((request_id, strand[request_id]) for request_id in ranked)
