"""Who has queued longest, and whose deadline passes next: two heaps that forget lazily."""

from __future__ import annotations

import heapq

from lengthwise.scheduler.serving.engine.queue.planned_queue import PlannedQueue
from lengthwise.scheduler.serving.engine.requests.request_table import RequestTable, Tracked

_Entry = tuple[float, str]


class QueueAges:
    """Requests by the time since which they queue; O(log n) a change.

    Entries of requests that left the queue, or queue anew since, are dropped when they come up.
    """

    def __init__(self, table: RequestTable, queue: PlannedQueue) -> None:
        self._table = table
        self._queue = queue
        self._heap: list[_Entry] = []

    def add(self, request_id: str, since_s: float) -> None:
        """The request queues since then."""
        heapq.heappush(self._heap, (since_s, request_id))

    def oldest(self) -> _Entry | None:
        """Who has queued longest and since when; None when nobody does."""
        while self._heap:
            since_s, request_id = self._heap[0]
            tracked = self._table.get(request_id)
            if tracked and request_id in self._queue and since_s >= (tracked.queued_s or since_s):
                return self._heap[0]
            heapq.heappop(self._heap)
        return None

    def promote_overdue(self, latest_s: float, most: int) -> None:
        """Move those that queue since before ``latest_s`` to the front, oldest first."""
        overdue: list[_Entry] = []
        while len(overdue) < most and (oldest := self.oldest()) and oldest[0] < latest_s:
            overdue.append(heapq.heappop(self._heap))
        for entry in reversed(overdue):
            self._queue.promote(entry[1])
            heapq.heappush(self._heap, entry)


class RunningDeadlines:
    """End-to-end deadlines of what runs."""

    def __init__(self, table: RequestTable, queue: PlannedQueue) -> None:
        self._table = table
        self._queue = queue
        self._heap: list[_Entry] = []

    def add(self, tracked: Tracked) -> None:
        """The request was admitted; nothing to note when it has no such deadline."""
        if tracked.slo.e2e_s is not None:
            heapq.heappush(self._heap, (tracked.arrival_s + tracked.slo.e2e_s, tracked.request_id))

    def passed(self, now_s: float) -> bool:
        """Whether the deadline of a running request has passed since the last time."""
        passed = False
        while self._heap and self._heap[0][0] < now_s:
            _, request_id = heapq.heappop(self._heap)
            passed |= request_id in self._table and request_id not in self._queue
        return passed
