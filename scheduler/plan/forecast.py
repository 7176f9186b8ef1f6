"""What the planner expects to arrive: recent requests as a sample of the next ones."""

from __future__ import annotations

import numpy as np

from lengthwise.data.arrays import FloatArray
from lengthwise.scheduler.plan.jobs import Jobs
from lengthwise.scheduler.problem import Problem


class Outlook:
    """A ring of recent requests: slot-seconds, weight, and slack between arrival and latest start.

    Each request is taken once, when it is first seen waiting. The clock stepping back only
    means that newcomers are recognised late.
    """

    def __init__(self, size: int = 256) -> None:
        self.size = size
        self._slot_s = np.zeros(size)
        self._weight = np.zeros(size)
        self._slack_s = np.zeros(size)
        self._count = 0
        self._seen_until_s = -np.inf
        self._first_s = np.inf

    def __len__(self) -> int:
        return min(self._count, self.size)

    def observe(self, problem: Problem, jobs: Jobs) -> None:
        """Take in the requests that arrived since the last call."""
        arrival = problem.waiting.arrival_s
        if len(arrival) == 0:
            return
        if self._seen_until_s > problem.now_s:
            self._seen_until_s = problem.now_s
        new = np.flatnonzero(arrival > self._seen_until_s)[-self.size :]
        if len(new) == 0:
            return
        place = (self._count + np.arange(len(new))) % self.size
        self._slot_s[place] = jobs.slot_s[new]
        self._weight[place] = jobs.weight[new]
        self._slack_s[place] = jobs.latest_s[new] - arrival[new]
        self._count += len(new)
        self._first_s = min(self._first_s, float(arrival[new].min()))
        self._seen_until_s = float(arrival[new].max())

    def slot_s(self) -> float:
        """Mean slot-seconds of a recent request; 0 before the first."""
        return float(self._slot_s[: len(self)].mean()) if len(self) else 0.0

    def expected(
        self, now_s: float, rate_rps: float, horizon_s: float, count: int, persistence_s: float
    ) -> tuple[FloatArray, FloatArray, FloatArray]:
        """(latest start, slot-seconds, value) of ``count`` stand-ins for the arrivals to come.

        They arrive evenly over ``horizon_s``; each stands for as many requests as its share of
        it will bring, so its work and value are multiplied by that. The rate falls from
        ``rate_rps`` to the mean of all that was seen, by 1/e in ``persistence_s``: a burst is
        not the weather. Empty when nothing is known.
        """
        known = len(self)
        if known == 0 or rate_rps <= 0 or horizon_s <= 0 or count == 0:
            return np.empty(0), np.empty(0), np.empty(0)
        rows = np.arange(count) * 97 % known  # spread few stand-ins over the whole sample
        wait = (np.arange(count) + 0.5) * (horizon_s / count)
        seen_s = max(now_s - self._first_s, 1e-3)
        usual = min(rate_rps, self._count / seen_s) if seen_s > 1.0 else rate_rps
        mass = (usual + (rate_rps - usual) * np.exp(-wait / persistence_s)) * horizon_s / count
        return (
            now_s + wait + self._slack_s[rows],
            self._slot_s[rows] * mass,
            self._weight[rows] * mass,
        )

    def slack_s(self) -> float:
        """Mean slack of the recent requests that have a deadline; 0 when none had."""
        slack = self._slack_s[: len(self)]
        slack = slack[slack < np.inf]
        return max(0.0, float(slack.sum() / len(slack))) if len(slack) else 0.0
