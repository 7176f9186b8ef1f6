"""What planning did and took: tallies for status and metrics."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Mapping
from typing import Any

import numpy as np

from lengthwise.scheduler.problem import Plan
from lengthwise.scheduler.serving.engine.engine_metrics import EngineMetrics

_KEPT_TIMES = 8192
_SHARE_WINDOW_S = 30.0


class PlanFigures:
    """Counts every plan; times are wall time, the share is of one core's processor time."""

    def __init__(self, metrics: EngineMetrics) -> None:
        self._metrics = metrics
        self._recent: deque[tuple[float, float]] = deque()  # when, processor seconds
        self.reset()

    def reset(self) -> None:
        """Start the tallies afresh; the share of processor time goes on."""
        self._times_s: deque[float] = deque(maxlen=_KEPT_TIMES)
        self._plans = self._evaluations = self._improved = 0
        self._degraded: Counter[str] = Counter()
        self._dropped: Counter[str] = Counter()

    def note(self, plan: Plan | None, wall_s: float, processor_s: float, now_s: float) -> None:
        """A plan was made, or not (None) though it took its time."""
        self._times_s.append(wall_s)
        self._recent.append((now_s, processor_s))
        self._plans += 1
        self._metrics.plan.observe(wall_s)
        if plan is None:
            return
        self._evaluations += plan.evaluations
        self._improved += plan.cost < plan.start_cost
        if plan.degraded:
            reason = self._metrics.reason_label(plan.degraded)
            self._degraded[reason] += 1
            self._metrics.degraded.labels(reason).inc()

    def drop(self, why: str) -> None:
        """A plan was made and is not adopted."""
        self._dropped[why] += 1
        self._metrics.plans_dropped.labels(why).inc()

    def show_trust(self, trust: Mapping[str, Mapping[str, float | None]]) -> None:
        """Show what a policy says of its plans' parts: promised, met, and whether withdrawn."""
        for part, row in trust.items():
            self._metrics.plan_trust.labels(part).set(float(not row.get("withdrawn_s")))
            for of in ("promised", "met"):
                share = row.get(of)
                if share is not None:
                    self._metrics.plan_promise.labels(part, of).set(share)

    def share(self, now_s: float) -> float:
        """Processor time of plans over the last half minute, as a share of that time."""
        while self._recent and self._recent[0][0] < now_s - _SHARE_WINDOW_S:
            self._recent.popleft()
        return sum(spent_s for _, spent_s in self._recent) / _SHARE_WINDOW_S

    def status(self, now_s: float) -> dict[str, Any]:
        """Plain values; times in milliseconds."""
        figures: dict[str, Any] = {
            "count": self._plans,
            "evaluations": self._evaluations,
            "improved": self._improved,
            "degraded": dict(self._degraded),
            "dropped": dict(self._dropped),
            "processor_share": self.share(now_s),
        }
        if self._times_s:
            p50, p99 = np.quantile(np.asarray(self._times_s) * 1e3, [0.5, 0.99])
            figures |= {"ms_p50": float(p50), "ms_p99": float(p99)}
        return figures
