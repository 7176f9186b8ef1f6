"""When to plan again, and where a newcomer stands until then."""

from __future__ import annotations

import math


class ReplanGate:
    """Allows a plan when the picture has changed and planning stays below a share of time.

    After a plan that took ``p`` seconds the next one waits at least ``p / plan_share`` and
    ``min_interval_s``. ``mark()`` notes a change (arrival, finish); when nothing changes, an
    age tick every ``max_age_s`` replans, because deadlines pass by themselves. A clock that
    steps back opens the gate rather than shutting it.
    """

    def __init__(
        self, plan_share: float = 0.01, min_interval_s: float = 0.0, max_age_s: float = 1.0
    ) -> None:
        if not 0 < plan_share <= 1:
            raise ValueError(f"plan_share must be in (0, 1], got {plan_share}")
        if min_interval_s < 0 or max_age_s <= 0:
            raise ValueError(
                "min_interval_s must not be negative and max_age_s must be positive, "
                f"got {min_interval_s} and {max_age_s}"
            )
        self.plan_share = plan_share
        self.min_interval_s = min_interval_s
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
        self._not_before_s = now_s + max(self.min_interval_s, elapsed_s / self.plan_share)
