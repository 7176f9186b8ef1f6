"""A running estimate of how many requests a second arrive."""

from __future__ import annotations

from collections import deque


class ArrivalRate:
    """Arrivals a second over the last ``window_s``, seen at the time of asking.

    A window rather than a decaying average: it forgets a burst entirely, and the planner's
    price of slot time rests on whether the overload still lasts. Where fewer than ``least`` came
    in it, as on engines that serve one long prompt after another, the last ``least`` say.
    """

    def __init__(self, window_s: float = 15.0, least: int = 8) -> None:
        if window_s <= 0:
            raise ValueError(f"window_s must be positive, got {window_s}")
        self.window_s = window_s
        self.least = least
        self._times: deque[float] = deque()

    def add(self, arrival_s: float) -> None:
        """A request arrived."""
        if self._times and arrival_s < self._times[-1]:
            self._times.clear()  # the clock stepped back
        self._times.append(arrival_s)

    def rps(self, now_s: float) -> float:
        """The rate; 0 (unknown) before ``least`` arrivals."""
        while len(self._times) > self.least and self._times[0] < now_s - self.window_s:
            self._times.popleft()
        if len(self._times) < self.least:
            return 0.0
        return len(self._times) / max(now_s - self._times[0], 1e-3)
