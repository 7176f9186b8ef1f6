"""The ``sa`` policy: choose what is worth serving, start from the best rule, anneal the head.

1. Selection (``selection``): from the queue and the arrivals expected, the requests that pay
   for their slot time, by latest start; then what else can be met; then the hopeless, shortest
   first.
2. Starts: that order, the simple rules, and the previous plan; the cheapest by the objective.
3. Annealing (``anneal``) over the head of the order, until the budget ends.
4. The overdue go first, whatever came out.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, fields
from typing import Any

import numpy as np

from scheduler import heuristics
from scheduler.anneal import anneal
from scheduler.jobs import Jobs, prepare
from scheduler.kernels import WEIGHT
from scheduler.objective import Evaluator, Objective
from scheduler.outlook import Outlook
from scheduler.problem import FloatArray, IntArray, Plan, Problem
from scheduler.selection import select
from scheduler.starvation import overdue_first


@dataclass(frozen=True, slots=True)
class Settings:
    """Knobs of the planner; the defaults are what the arena chose (docs/scheduler.md)."""

    window: int = 96  # positions at the head the search may change
    compared: int = 512  # positions over which starts are compared
    caution: float = 0.6  # length level the latest start is computed at
    foresight: float = 1.0  # horizon of expected arrivals, in shares of the longest slack
    stand_ins: int = 64  # how many expected arrivals take part in the selection
    price_share: float = 0.5  # price of slot time, as a share of the least density taken
    patience: float = 1.0  # objective's patience in shares of the median slack
    spread: float = 1.0
    latency: float = 1e-3
    starts: tuple[str, ...] = ("selection", "feasible-edf", "feasible-sjf", "previous")
    paper_g: bool = False


class AnnealingPolicy:
    """Simulated annealing from the best of many starts; see the module's head."""

    name = "sa"

    def __init__(
        self,
        settings: Settings,
        budget_s: float | None = 0.001,
        seed: int = 0,
        iterations: int | None = None,
    ) -> None:
        if budget_s is None and iterations is None:
            raise ValueError("give budget_s or iterations")
        self.settings = settings
        self.budget_s = budget_s if budget_s is not None else 0.001
        self.nominal_s = self.budget_s
        self.iterations = iterations
        self.rng = np.random.default_rng(seed)
        self.outlook = Outlook()
        self._previous: tuple[FloatArray, FloatArray] = (np.empty(0), np.empty(0))

    @classmethod
    def with_params(
        cls, budget_s: float | None, seed: int, iterations: int | None = None, **params: Any
    ) -> AnnealingPolicy:
        """From loose parameters; TypeError for one that does not exist."""
        if unknown := set(params) - {f.name for f in fields(Settings)}:
            raise TypeError(f"unknown parameters {sorted(unknown)}")
        return cls(Settings(**params), budget_s, seed, iterations)

    def __call__(self, problem: Problem) -> Plan:
        """The order to admit in, and what it is expected to be worth."""
        began = time.perf_counter()
        n = len(problem.waiting)
        if n == 0:
            return Plan(np.empty(0, dtype=np.int64))
        jobs = prepare(problem, self.settings.caution)
        self.outlook.observe(problem, jobs)
        if n == 1:
            return Plan(np.zeros(1, dtype=np.int64), elapsed_s=time.perf_counter() - began)

        selected, price = self._selection(problem, jobs)
        objective = self._objective(jobs, price, problem.now_s)
        starts = self._starts(problem, jobs, selected)
        compared = min(n, self.settings.compared)
        evaluator = Evaluator(jobs, objective, compared)
        costs = [evaluator.cost(order[:compared]) for order in starts]
        start = starts[int(np.argmin(costs))]
        start_cost = min(costs)

        start, overdue = overdue_first(
            start, problem.waiting.arrival_s, problem.now_s, problem.max_wait_s
        )
        if overdue:
            start_cost = evaluator.cost(start[:compared])
        window = min(n, self.settings.window)
        order, cost, evaluations = start, start_cost, len(starts)
        degraded = None
        if overdue < window - 1:
            found = anneal(
                evaluator,
                start[:window],
                self.rng,
                iterations=self.iterations,
                seconds_left=None
                if self.iterations is not None
                else lambda: self.budget_s - (time.perf_counter() - began),
                first=overdue,
            )
            evaluations += found.evaluations
            if found.cost < found.start_cost:
                proposed = np.concatenate([found.order, start[window:]])
                if (proposed_cost := evaluator.cost(proposed[:compared])) <= start_cost:
                    order, cost = proposed, proposed_cost
            if found.evaluations <= 1 and self.iterations is None:
                degraded = "the budget ended before the search began"
        self._remember(problem, order)
        return Plan(order, cost, start_cost, evaluations, time.perf_counter() - began, degraded)

    def warm_up(self) -> None:
        """Compile everything on a throw-away twin, so that nothing is remembered of it."""
        from scheduler.policies import warm_up_problem

        twin = AnnealingPolicy(self.settings, iterations=40)
        twin(warm_up_problem())
        twin(warm_up_problem())

    def _selection(self, problem: Problem, jobs: Jobs) -> tuple[IntArray, float]:
        """The order of step 1 and the price of slot time."""
        s = self.settings
        value = jobs.waiting[:, WEIGHT] * jobs.hopeful
        horizon_s = s.foresight * self.outlook.slack_s(0.95)
        latest, slot_s, worth = self.outlook.expected(
            problem.now_s, problem.arrival_rate_rps, horizon_s, s.stand_ins
        )
        rows = np.flatnonzero(value > 0.0)
        all_latest = np.concatenate([jobs.latest_s[rows], latest])
        taken, least = select(
            # one that is late by the cautious length but not hopeless is due at once
            np.maximum(all_latest, problem.now_s),
            np.concatenate([jobs.slot_s[rows], slot_s]),
            np.concatenate([value[rows], worth]),
            np.argsort(all_latest, kind="stable"),
            problem.now_s,
            jobs.engine[5],
        )
        rank = np.full(len(jobs), 2.0)
        rank[rows] = 1.0 - taken[: len(rows)]
        density = value / jobs.slot_s
        within = np.where(rank == 0.0, jobs.latest_s, np.where(rank == 1.0, -density, jobs.slot_s))
        order = np.lexsort((within, rank)).astype(np.int64)
        dropped = (taken == 0.0).any()
        return order, s.price_share * least if dropped else 0.0

    def _objective(self, jobs: Jobs, price: float, now_s: float) -> Objective:
        slack = jobs.latest_s[(jobs.hopeful > 0) & np.isfinite(jobs.latest_s)] - now_s
        typical_s = float(np.median(slack)) if len(slack) else 1.0
        return Objective(
            price=price,
            patience_s=self.settings.patience * max(typical_s, 10 * jobs.release_gap_s),
            spread=self.settings.spread,
            latency=self.settings.latency,
            paper_g=self.settings.paper_g,
        )

    def _starts(self, problem: Problem, jobs: Jobs, selected: IntArray) -> list[IntArray]:
        starts = []
        for name in self.settings.starts:
            if name == "selection":
                starts.append(selected)
            elif name == "previous":
                if (previous := self._recall(problem, selected)) is not None:
                    starts.append(previous)
            else:
                starts.append(heuristics.RULES[name](problem, jobs))
        return starts or [selected]

    def _remember(self, problem: Problem, order: IntArray) -> None:
        """Keep the plan as (arrival times sorted, rank in the order); arrivals are the names."""
        arrival = problem.waiting.arrival_s
        rank = np.empty(len(order))
        rank[order] = np.arange(len(order))
        by_arrival = np.argsort(arrival, kind="stable")
        self._previous = (arrival[by_arrival], rank[by_arrival])

    def _recall(self, problem: Problem, base: IntArray) -> IntArray | None:
        """The previous plan without those gone; newcomers stand behind their base neighbour."""
        known, rank = self._previous
        if len(known) == 0:
            return None
        arrival = problem.waiting.arrival_s[base]
        place = np.minimum(np.searchsorted(known, arrival), len(known) - 1)
        old = known[place] == arrival
        if not old.any():
            return None
        key = np.where(old, rank[place], -1.0)
        behind = np.maximum.accumulate(np.where(old, np.arange(len(base)), -1))
        newcomers = ~old
        key[newcomers] = np.where(behind[newcomers] >= 0, key[behind[newcomers]] + 0.5, -1.0)
        return base[np.argsort(key, kind="stable")]
