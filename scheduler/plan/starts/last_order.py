"""The order of the last plan, as a start of the next one."""

from __future__ import annotations

import numpy as np

from lengthwise.data.arrays import FloatArray, IntArray


class LastOrder:
    """Ranks by arrival time, which names a request from plan to plan."""

    def __init__(self) -> None:
        self._known_s: FloatArray = np.empty(0)
        self._rank: FloatArray = np.empty(0)

    def remember(self, arrival_s: FloatArray) -> None:
        """The arrival times of a plan's rows, in its order."""
        by_arrival = np.argsort(arrival_s, kind="stable")
        self._known_s, self._rank = arrival_s[by_arrival], by_arrival.astype(np.float64)

    def among(self, queue_arrival_s: FloatArray, base: IntArray) -> IntArray | None:
        """``base``, an order of the queue, rearranged as remembered; None where nobody is known.

        Who is new stands behind its neighbour in ``base``.
        """
        if not len(self._known_s):
            return None
        arrival_s = queue_arrival_s[base]
        place = np.minimum(np.searchsorted(self._known_s, arrival_s), len(self._known_s) - 1)
        old = self._known_s[place] == arrival_s
        if not old.any():
            return None
        key = np.where(old, self._rank[place], -1.0)
        behind = np.maximum.accumulate(np.where(old, np.arange(len(base)), -1))
        fresh = ~old
        key[fresh] = np.where(behind[fresh] >= 0, key[np.maximum(behind[fresh], 0)] + 0.5, -1.0)
        return base[np.argsort(key, kind="stable")]
