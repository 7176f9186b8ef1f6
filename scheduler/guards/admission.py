"""Admission control: turn away, or serve without promises, who cannot meet its SLO anyway.

The chance of a newcomer is read off the plan it would be part of: the policy orders the queue
with it, the order is rolled out to its admission, and its objectives are judged there over its
length distribution. Below the threshold it is shed (503, come back later) or downgraded to best
effort. The default threshold is low, so that only the hopeless go; and however bad the forecasts,
no more than a capped share of the recent requests is acted on, in total and by class.

The forecast leaves out arrivals to come, so it errs to the kind side.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from lengthwise.data.arrays import IntArray
from lengthwise.scheduler.plan.rollout.outcome import PlayedOrder, played
from lengthwise.scheduler.problem import Problem, warm_up_problem

Mode = Literal["off", "shed", "downgrade"]
Action = Literal["admit", "shed", "downgrade"]
MODES: tuple[Mode, ...] = ("off", "shed", "downgrade")

_LONGEST_RETRY_S = 600.0


@dataclass(frozen=True, slots=True)
class AdmissionRule:
    """What to do below which chance, and how often at most.

    ``max_share`` caps the share acted on among the last ``window`` requests that have an
    objective; ``per_class`` caps that of a class among its own.
    """

    mode: Mode = "off"
    threshold: float = 0.05
    max_share: float = 0.3
    per_class: Mapping[Any, float] = field(default_factory=dict)
    window: int = 200

    def __post_init__(self) -> None:
        if self.mode not in MODES:
            raise ValueError(f"mode must be one of {', '.join(MODES)}, got {self.mode!r}")
        shares = {"threshold": self.threshold, "max_share": self.max_share}
        shares |= {f"per_class[{name!r}]": share for name, share in self.per_class.items()}
        for name, share in shares.items():
            if not 0 <= share <= 1:
                raise ValueError(f"{name} must lie in [0, 1], got {share}")
        if self.window < 1:
            raise ValueError(f"window must be at least 1, got {self.window}")


@dataclass(frozen=True, slots=True)
class Verdict:
    """The decision; ``chance`` is None where it was not asked for, ``retry_after_s`` if shed."""

    action: Action
    chance: float | None = None
    retry_after_s: float | None = None


class ShareCap:
    """At most ``share`` of the last ``window`` (or of all so far, if fewer) are acted on."""

    def __init__(self, share: float, window: int) -> None:
        self.share = share
        self._recent: deque[bool] = deque(maxlen=window)
        self._acted = 0

    def allows(self) -> bool:
        """Whether acting on the next request keeps the cap."""
        full = len(self._recent) == self._recent.maxlen
        leaving = self._recent[0] if full else False
        size = len(self._recent) + (0 if full else 1)
        return self._acted - leaving + 1 <= self.share * size + 1e-9

    def note(self, acted: bool) -> None:
        """A request was decided on."""
        if len(self._recent) == self._recent.maxlen:
            self._acted -= self._recent[0]
        self._recent.append(acted)
        self._acted += acted

    @property
    def acted_share(self) -> float:
        """The share acted on in the window; 0 before the first request."""
        return self._acted / len(self._recent) if self._recent else 0.0


class AdmissionControl:
    """Decides request by request and keeps the windows of the caps."""

    def __init__(self, rule: AdmissionRule) -> None:
        self.rule = rule
        self.total = ShareCap(rule.max_share, rule.window)
        self._by_class = {
            name: ShareCap(share, rule.window) for name, share in rule.per_class.items()
        }

    def decide(
        self, problem: Problem, plan: Callable[[Problem], IntArray], slo_class: Hashable = None
    ) -> Verdict:
        """What to do with the last row of ``problem.waiting``, the newcomer.

        ``plan`` gives the order of all the waiting rows; it is asked only where it matters.
        """
        if self.rule.mode == "off" or is_best_effort(problem):
            return Verdict("admit")
        caps = [self.total]
        if (own := self._by_class.get(slo_class)) is not None:
            caps.append(own)
        verdict = Verdict("admit")
        if all(cap.allows() for cap in caps):
            verdict = self._judge(problem, plan)
        for cap in caps:
            cap.note(verdict.action != "admit")
        return verdict

    def _judge(self, problem: Problem, plan: Callable[[Problem], IntArray]) -> Verdict:
        newcomer = len(problem.waiting) - 1
        others = np.arange(newcomer, dtype=np.int64)
        chance = float(played(problem, np.r_[newcomer, others]).chance[newcomer])
        if chance >= self.rule.threshold:  # admitted now it could be met: what does the plan say?
            chance = min(chance, float(played(problem, plan(problem)).chance[newcomer]))
        if chance >= self.rule.threshold:
            return Verdict("admit", chance)
        if self.rule.mode == "downgrade":
            return Verdict("downgrade", chance)
        return Verdict("shed", chance, drain_s(problem))


def warm_up() -> None:
    """Compile what a verdict needs, so that no request waits for it."""
    drain_s(warm_up_problem())


def is_best_effort(problem: Problem) -> bool:
    """Whether the last waiting row has no objective."""
    rows = problem.waiting
    return bool(
        np.isinf(rows.ttft_s[-1]) and np.isinf(rows.tpot_s[-1]) and np.isinf(rows.e2e_s[-1])
    )


def drain_s(problem: Problem) -> float:
    """Seconds until all that wait (the last row, the newcomer, left out) are admitted, 1 to 600."""
    before = len(problem.waiting) - 1
    if before < 1:
        return 1.0
    outcome: PlayedOrder = played(problem, np.arange(before + 1, dtype=np.int64))
    last_s = float(np.max(outcome.first_s[:before])) - problem.now_s
    return min(max(last_s, 1.0), _LONGEST_RETRY_S)
