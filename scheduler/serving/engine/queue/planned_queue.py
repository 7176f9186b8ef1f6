"""A waiting queue served in a planned order; ``engine/scheduler.py`` makes it one of vLLM's.

Three strands, drained one after the other:

1. *recovery*: requests that have already computed something (those vLLM preempted); they hold
   a client's half-finished answer, so no plan comes before them;
2. *planned*: the order of the last plan, with those that gave up their slot to it;
3. *unplanned*: arrivals since, in order of arrival, among them whoever was deferred meanwhile.

Operations on a request are O(1), a new order costs what came since the last one, and what lists
everybody is linear. A request keeps the sequence number of its first arrival until ``forget``, so
that arrival order survives preemption and re-queueing.
"""

from __future__ import annotations

import itertools
from collections import OrderedDict
from collections.abc import Iterable, Iterator

from lengthwise.scheduler.serving.engine.queue.planned_strand import PlannedStrand, Request


class PlannedQueue:
    """A queue whose order is a plan; without a plan it is first come, first served.

    Its methods are those of vLLM's ``RequestQueue``. ``has_run`` tells whether a request was
    running before, so that its work would be lost behind newcomers.

    ``peek_request`` pins what it shows: ``pop_request`` returns that very request even when an
    arrival or a new plan falls between the two. ``unpin``, a prepend, or removal of the
    pinned request unpins.
    """

    def __init__(self) -> None:
        self._sequence: dict[str, int] = {}
        self._recovery: OrderedDict[str, Request] = OrderedDict()
        self._planned = PlannedStrand(self._sequence.__getitem__)
        self._unplanned: OrderedDict[str, Request] = OrderedDict()
        self._by_arrival = True  # the unplanned
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
        self._by_arrival &= self._enter(request_id)
        strand = self._recovery if self._recovers(request) else self._unplanned
        strand[request_id] = request

    def pop_request(self) -> Request:
        """Remove and return the front request; IndexError when empty."""
        request = self.peek_request()
        self._discard(request.request_id)
        return request

    def peek_request(self) -> Request:
        """The front request, pinned until popped; IndexError when empty."""
        if self._pinned is not None and (request := self._get(self._pinned)) is not None:
            return request
        request = self._first()
        self._pinned = request.request_id
        return request

    def prepend_request(self, request: Request) -> None:
        """Put back at the front of its strand: preempted, or skipped during a step."""
        request_id = request.request_id
        self._enter(request_id)
        self._pinned = None
        if self._recovers(request):
            _put_first(self._recovery, request_id, request)
        else:
            self._planned.put_first(request_id, request)

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
        return bool(self._recovery or self._unplanned or len(self._planned))

    def __len__(self) -> int:
        return len(self._recovery) + len(self._planned) + len(self._unplanned)

    def __iter__(self) -> Iterator[Request]:
        everyone = [*self._recovery, *self.plannable_ids()]
        yield from [self._get(request_id) for request_id in everyone]

    # -- the plan -----------------------------------------------------------------------------

    def __contains__(self, request_id: object) -> bool:
        name = str(request_id)
        return name in self._planned or name in self._unplanned or name in self._recovery

    @property
    def recovery_count(self) -> int:
        """How many requests go before any plan."""
        return len(self._recovery)

    def is_plannable(self, request_id: str) -> bool:
        """Whether a plan may order this request."""
        return request_id in self._planned or request_id in self._unplanned

    def plannable_ids(self) -> Iterator[str]:
        """Ids that a plan may order, in their present order, found as they are asked for."""
        yield from self._planned.ids()
        yield from self._unplanned

    def plannable_members(self) -> list[str]:
        """All of them in any order, which costs less."""
        return [*self._planned.members(), *self._unplanned]

    def recovery_ids(self) -> list[str]:
        """Ids of those who go before any plan, next first."""
        return list(self._recovery)

    def yielded_ids(self) -> list[str]:
        """Ids of those here whose slots a plan took, oldest arrival first."""
        here = (request_id for request_id in self._yielded if request_id in self)
        return sorted(here, key=self._sequence.__getitem__)

    def set_order(self, request_ids: Iterable[str]) -> None:
        """Serve in this order; ids not (or no longer) here are ignored, the unnamed follow.

        A list is kept as it is: do not change it afterwards.
        """
        order = request_ids if isinstance(request_ids, list) else list(request_ids)
        self._planned.reorder(order, self._unplanned)
        self._unplanned.clear()
        self._by_arrival = True

    def clear_order(self) -> None:
        """Forget the plan: back to order of arrival."""
        if len(self._planned) or not self._by_arrival:
            self.set_order(())

    def promote(self, request_id: str) -> None:
        """Move a plannable request to the front of the plan."""
        request = self._pop_plannable(request_id)
        if request is not None:
            self._planned.put_first(request_id, request)

    def defer(self, request_id: str) -> None:
        """Move a plannable request to the end, until the next plan."""
        request = self._pop_plannable(request_id)
        if request is not None:
            self._unplanned[request_id] = request
            self._by_arrival = False

    def demote(self, request_id: str) -> None:
        """A plan took the slot of this request, now queued: it waits at the end of the plan."""
        request = self._recovery.pop(request_id, None)
        if request is not None:
            self._yielded.add(request_id)
            self._planned.put_last(request_id, request)
            self._pinned = None

    def reinstate(self) -> None:
        """The plan holds no more: those whose slots it took stand before any plan, as they ran."""
        if not self._yielded:
            return
        for request_id in self.yielded_ids():
            if (request := self._pop_plannable(request_id)) is not None:
                self._recovery[request_id] = request
        self._yielded.clear()

    def may_displace(self, running_id: str) -> bool:
        """Whether who stands first here may be given the slot of this running request."""
        return True

    def unpin(self) -> None:
        """A step begins: what an earlier one was shown and did not take binds it no more."""
        self._pinned = None

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

    def _recovers(self, request: Request) -> bool:
        return request.request_id not in self._yielded and self.has_run(request)

    def _first(self) -> Request:
        for request in self._recovery.values():
            return request
        request = self._planned.first()
        if request is not None:
            return request
        if len(self._planned):
            for request_id, unnamed in reversed(self._planned.take_unnamed()):
                _put_first(self._unplanned, request_id, unnamed)
        for request in self._unplanned.values():
            return request
        raise IndexError("peek from an empty queue")

    def _get(self, request_id: str) -> Request | None:
        for strand in (self._recovery, self._planned, self._unplanned):
            if (request := strand.get(request_id)) is not None:
                return request
        return None

    def _enter(self, request_id: str) -> bool:
        """Give a request that is to be put somewhere its number; whether it is a new one."""
        if request_id in self._sequence:
            self._discard(request_id)
            return False
        self._sequence[request_id] = next(self._counter)
        return True

    def _pop_plannable(self, request_id: str) -> Request | None:
        request = self._planned.pop(request_id)
        return self._unplanned.pop(request_id, None) if request is None else request

    def _discard(self, request_id: str) -> None:
        if self._pop_plannable(request_id) is None:
            self._recovery.pop(request_id, None)
        if self._pinned == request_id:
            self._pinned = None


def _put_first(strand: OrderedDict[str, Request], request_id: str, request: Request) -> None:
    strand[request_id] = request
    strand.move_to_end(request_id, last=False)
