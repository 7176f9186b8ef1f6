"""Which requests are worth the engine's time when not all can be met.

Moore and Hodgson's rule (minimise the number of late jobs): take jobs by deadline; whenever one
would start too late, drop the job of least value per slot-second taken so far. Here the machine
is the pool of slots, the deadline is the latest admission, and *expected arrivals take part*:
without them a rule that looks at the queue alone spends slot time that the arrivals of the next
seconds would put to better use, and loses to shortest-first under lasting overload.
"""

from __future__ import annotations

import numpy as np

from lengthwise.data.arrays import FloatArray, IntArray, njit


@njit
def select(
    latest_s: FloatArray,
    slot_s: FloatArray,
    value: FloatArray,
    by_latest: IntArray,
    begin_s: float,
    slots: float,
) -> tuple[FloatArray, float]:
    """Taken (1.0) or dropped (0.0) for each row, and the least value density taken.

    ``by_latest`` sorts the rows by ``latest_s``; ``begin_s`` is when the pool starts on them.
    A row's start is ``begin_s`` + the slot-seconds taken before it / ``slots``.
    """
    n = len(by_latest)
    taken = np.zeros(n)
    heap = np.empty(n, dtype=np.int64)
    density = value / np.maximum(slot_s, 1e-9)
    size, ahead = 0, 0.0
    for place in range(n):
        row = by_latest[place]
        # sift up: the least dense on top
        i = size
        while i > 0:
            parent = (i - 1) >> 1
            if density[heap[parent]] <= density[row]:
                break
            heap[i] = heap[parent]
            i = parent
        heap[i] = row
        size += 1
        taken[row] = 1.0
        while size > 0 and begin_s + ahead / slots > latest_s[row]:
            dropped = heap[0]
            size -= 1
            last = heap[size]
            i = 0
            while True:
                child = 2 * i + 1
                if child >= size:
                    break
                if child + 1 < size and density[heap[child + 1]] < density[heap[child]]:
                    child += 1
                if density[last] <= density[heap[child]]:
                    break
                heap[i] = heap[child]
                i = child
            if size > 0:
                heap[i] = last
            taken[dropped] = 0.0
            if dropped == row:
                break
            ahead -= slot_s[dropped]
        if taken[row] > 0.0:
            ahead += slot_s[row]
    least = density[heap[0]] if size > 0 else 0.0
    return taken, float(least)


@njit
def worth_order(
    now_s: float,
    slots: float,
    latest_s: FloatArray,
    slot_s: FloatArray,
    value: FloatArray,
    coming_latest_s: FloatArray,
    coming_slot_s: FloatArray,
    coming_value: FloatArray,
) -> tuple[IntArray, float, FloatArray]:
    """An order of the waiting rows by their worth, the price of slot time (0 if all fit), and
    the seconds of the pool that expected arrivals will take before each row's latest start.

    First what is taken, by latest start; then what is dropped but has value, densest first;
    then what has none, shortest first. The ``coming`` rows take part in the choice only. The
    price is the least density taken.
    """
    n, expected = len(latest_s), len(coming_latest_s)
    valued = np.flatnonzero(value > 0.0)
    m = len(valued)
    latest, work, gain = np.empty(m + expected), np.empty(m + expected), np.empty(m + expected)
    for p in range(m):
        row = valued[p]
        # late by the cautious length but not hopeless: due at once
        latest[p] = max(latest_s[row], now_s)
        work[p], gain[p] = slot_s[row], value[row]
    latest[m:], work[m:], gain[m:] = coming_latest_s, coming_slot_s, coming_value
    by_latest = np.argsort(latest, kind="mergesort")
    taken, least = select(latest, work, gain, by_latest, now_s, slots)
    key = np.empty(n)
    for row in range(n):
        key[row] = 2e9 + min(slot_s[row], 1e8)
    dropped = False
    for p in range(m):
        row = valued[p]
        if taken[p] > 0.0:
            key[row] = min(latest_s[row] - now_s, 1e8)
        else:
            dropped = True
            key[row] = 1e9 + min(slot_s[row] / value[row], 5e8)
    claimed_s, ahead = np.zeros(n), 0.0
    for place in range(m + expected):
        p = by_latest[place]
        if p < m:
            claimed_s[valued[p]] = ahead / slots
        elif taken[p] > 0.0:
            ahead += work[p]
    return np.argsort(key, kind="mergesort"), least if dropped else 0.0, claimed_s
