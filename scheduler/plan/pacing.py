"""When to plan again, and how fast requests arrive."""

from __future__ import annotations

import math
from collections import deque
from itertools import takewhile

LATELY_S = (2.0, 1.0, 0.5)
LEAST_AWAITED = 16.0  # arrivals: of fewer, none at all is four standard deviations at most
SURELY_FEWER = 4.0  # standard deviations of a Poisson count


class ReplanGate:
    """Allows a plan when the picture has changed and planning stays below a share of time.

    After a plan that took ``p`` seconds the next one waits at least ``p / plan_share``.
    ``mark()`` notes a change (arrival, finish); when nothing changes, an age tick every
    ``max_age_s`` replans, because deadlines pass by themselves. A clock that steps back opens
    the gate rather than shutting it.
    """

    def __init__(self, plan_share: float = 0.01, max_age_s: float = 1.0) -> None:
        if not 0 < plan_share <= 1:
            raise ValueError(f"plan_share must be in (0, 1], got {plan_share}")
        if max_age_s <= 0:
            raise ValueError(f"max_age_s must be positive, got {max_age_s}")
        self.plan_share = plan_share
        self.max_age_s = max_age_s
        self._dirty = True
        self._planned_s = -math.inf
        self._not_before_s = -math.inf

    def mark(self) -> None:
        """The picture changed."""
        self._dirty = True

    @property
    def not_before_s(self) -> float:
        """The earliest time of the next plan."""
        return self._not_before_s

    def next_s(self) -> float:
        """When a plan falls due if nothing more changes."""
        if self._dirty:
            return self._not_before_s
        return max(self._not_before_s, self._planned_s + self.max_age_s)

    def due(self, now_s: float) -> bool:
        """Whether to plan at ``now_s``."""
        if now_s < self._planned_s:
            self._planned_s = self._not_before_s = -math.inf
            self._dirty = True
        stale = self._dirty or now_s - self._planned_s >= self.max_age_s
        return stale and now_s >= self._not_before_s

    def planned(self, now_s: float, elapsed_s: float) -> None:
        """A plan was made at ``now_s`` and took ``elapsed_s``."""
        self._dirty = False
        self._planned_s = now_s
        self._not_before_s = now_s + elapsed_s / self.plan_share


class ArrivalRate:
    """Arrivals a second over the last ``window_s``, seen at the time of asking.

    A window rather than a decaying average: it forgets a burst entirely, and the planner's
    price of slot time rests on whether the overload still lasts. Where fewer than ``least`` came
    in it, as on engines that serve one long prompt after another, the last ``least`` say. Where
    far fewer came lately than the window would have, a burst is over, and what came since says.
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
        rate = len(self._times) / max(now_s - self._times[0], 1e-3)
        for lately_s in (now_s - self._times[-1], *LATELY_S):
            awaited = rate * lately_s
            if awaited < LEAST_AWAITED:
                continue
            came = self._since(now_s - lately_s)
            if came < awaited - SURELY_FEWER * math.sqrt(awaited):
                rate = (came + 1) / lately_s
        return rate

    def _since(self, then_s: float) -> int:
        """How many arrived after ``then_s``."""
        return sum(1 for _ in takewhile(lambda t: t > then_s, reversed(self._times)))
