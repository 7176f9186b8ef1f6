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


@njit(nogil=True)
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
