"""Values kept in order: their median and quantiles without sorting anew.

Plain Python, since the engine's loop asks: numpy sorts with the interpreter's lock given away, and
a thread that computes then keeps it for milliseconds.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right, insort


class Ranked:
    """Numbers in order; adding and removing one costs O(log n) and a move in memory."""

    def __init__(self) -> None:
        self._values: list[float] = []

    def __len__(self) -> int:
        return len(self._values)

    def add(self, value: float) -> None:
        """One more."""
        insort(self._values, value)

    def remove(self, value: float) -> None:
        """One of those equal to ``value`` less; it must be there."""
        del self._values[bisect_left(self._values, value)]

    def median(self) -> float:
        """The middle one, or the mean of the two; IndexError for none."""
        middle = len(self._values) // 2
        return (self._values[middle] + self._values[-middle - 1]) / 2

    def quantile(self, level: float) -> float:
        """What ``numpy.quantile`` gives for a level in [0, 1], to the bit; IndexError for none."""
        place = level * (len(self._values) - 1)
        before = int(place)
        low, high = self._values[before], self._values[min(before + 1, len(self._values) - 1)]
        share = place - before
        if share < 0.5:
            return low + (high - low) * share
        return high - (high - low) * (1.0 - share)

    def above(self, value: float) -> int:
        """How many are larger."""
        return len(self._values) - bisect_right(self._values, value)
