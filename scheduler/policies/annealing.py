"""The ``sa`` policy: choose what is worth serving, start from the best order, anneal the head.

1. Selection (``selection``): from the queue and the arrivals expected, the requests that pay
   for their slot time, by latest start; then what else can be met; then the hopeless, shortest
   first. Where a TPOT objective is too tight for a full batch, for smaller ones too
   (``batch_limit``).
2. Calm: when feasible-first by deadline is expected to meet nearly all that can be met, it is
   the plan; there is nothing to choose, and a search could only chase the model's errors.
3. Starts: that order, the previous plan, and any rules asked for; the cheapest by the objective.
4. Annealing (``anneal``) over the head of the order, until the budget ends.
5. Slots of running requests whose SLO is lost go to the head, where that pays (``preemption``).
6. The overdue go first, whatever came out.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np

from lengthwise.data.arrays import FloatArray, IntArray
from lengthwise.scheduler.plan.anneal import anneal
from lengthwise.scheduler.plan.batch_limit import binding_caps
from lengthwise.scheduler.plan.forecast import Outlook
from lengthwise.scheduler.plan.jobs import Jobs, prepare
from lengthwise.scheduler.plan.kernels import DILATION
from lengthwise.scheduler.plan.objective import Evaluator, Objective
from lengthwise.scheduler.plan.preemption import LEAST_GAIN, victims
from lengthwise.scheduler.plan.selection import worth_order
from lengthwise.scheduler.plan.slack import hasten
from lengthwise.scheduler.plan.wait_bound import bounded
from lengthwise.scheduler.policies import rules
from lengthwise.scheduler.problem import Plan, Problem, warm_up_problem


@dataclass(frozen=True, slots=True)
class Settings:
    """Knobs of the planner; the defaults are what the arena chose (docs/scheduler.md)."""

    window: int = 32  # positions at the head the search may change
    compared: int = 512  # positions over which starts are compared
    caution: float = 0.7  # length level the latest start is computed at
    foresight: float = 0.75  # horizon of expected arrivals, in shares of the mean slack
    persistence_s: float = 5.0  # how long a rate above the usual one is trusted to last
    stand_ins: int = 64  # how many expected arrivals take part in the selection
    price_share: float = 0.25  # price of slot time, as a share of the least density taken
    haste: float = 0.5  # share of a slack that shorter requests behind may spend
    calm: float = 0.05  # expected loss of feasible-edf up to which it is the plan
    patience_s: float = 1e4  # see objective.Objective; long: the selection looks ahead instead
    spread: float = 1.0
    latency: float = 0.1
    starts: tuple[str, ...] = ("selection", "previous")
    forlorn: float = 0.0  # chance up to which a running request may lose its slot; < 0: never
    paper_g: bool = False

    def __post_init__(self) -> None:
        if unknown := set(self.starts) - {"selection", "previous", *rules.RULES}:
            raise ValueError(f"unknown starts {sorted(unknown)}")
        if self.window < 2 or self.compared < self.window:
            raise ValueError(f"need 2 <= window <= compared, got {self.window} and {self.compared}")


ITERATIONS = 80  # search steps of a plan that no budget limits

# Shares of the budget: after the first the search ends, the rest is for settling the plan.
SEARCH_ENDS = 0.5


@dataclass(frozen=True, slots=True)
class _Draft:
    """A selection at one batch size: its order, the price of slot time, and what was claimed."""

    problem: Problem
    jobs: Jobs
    order: IntArray
    price: float
    claimed_s: FloatArray
    max_running: int | None


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
            iterations = ITERATIONS
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
        draft = self._draft(problem)
        if n == 1:
            return Plan(np.zeros(1, dtype=np.int64), elapsed_s=time.perf_counter() - began)

        compared = min(n, self.settings.compared)
        draft = self._at_best_concurrency(draft, compared)
        problem, jobs, price = draft.problem, draft.jobs, draft.price
        if (calm := self._calm(problem, jobs, compared)) is not None:
            order, cost = calm
            order, _ = bounded(problem, jobs, order)
            self._remember(problem, order)
            elapsed_s = time.perf_counter() - began
            return Plan(order, cost, cost, 1, elapsed_s, max_running=draft.max_running)

        selected = self._hastened(draft)
        evaluator = Evaluator(jobs, self._objective(price), compared)
        starts = [bounded(problem, jobs, order) for order in self._starts(problem, jobs, selected)]
        costs = [evaluator.cost(order[:compared]) for order, _ in starts]
        (start, overdue), start_cost = starts[int(np.argmin(costs))], min(costs)

        window = min(n, self.settings.window)
        found = anneal(
            evaluator,
            start[:window],
            self.rng,
            iterations=self.iterations,
            seconds_left=None if self.iterations is not None else self._timer(began),
            first=min(overdue, window),
        )
        order, cost = start, start_cost
        if found.cost < found.start_cost:
            proposed = np.concatenate([found.order, start[window:]])
            if (proposed_cost := evaluator.cost(proposed[:compared])) <= start_cost:
                order, cost = proposed, proposed_cost
        preempt = self._victims(problem, jobs, order[:compared], price)
        self._remember(problem, order)
        elapsed_s = time.perf_counter() - began
        late = self.iterations is None and found.evaluations == 1 and overdue < window - 1
        return Plan(
            order,
            cost,
            start_cost,
            found.evaluations + len(starts),
            elapsed_s,
            f"no time to search {n} requests in {self.budget_s * 1e3:g} ms" if late else None,
            preempt,
            draft.max_running,
        )

    def warm_up(self) -> None:
        """Compile everything on a throw-away twin, so that nothing is remembered of it."""
        for settings in (self.settings, replace(self.settings, calm=0.0)):
            twin = AnnealingPolicy(settings, iterations=40)
            twin(warm_up_problem())
            twin(warm_up_problem())

    def _timer(self, began: float) -> Callable[[], float]:
        return lambda: SEARCH_ENDS * self.budget_s - (time.perf_counter() - began)

    def _calm(self, problem: Problem, jobs: Jobs, compared: int) -> tuple[IntArray, float] | None:
        """feasible-edf and its cost when it loses next to nothing of what can be met."""
        if self.settings.calm <= 0:
            return None
        order = rules.feasible_edf(problem, jobs)
        head = order[:compared]
        ideal = float((jobs.weight * jobs.chance)[head].sum())
        cost = Evaluator(jobs, Objective(latency=0.0), compared).cost(head)
        return (order, cost) if ideal + cost <= self.settings.calm * max(ideal, 1.0) else None

    def _at_best_concurrency(self, full: _Draft, compared: int) -> _Draft:
        """The draft of the batch size at which the queue is worth most; see ``batch_limit``."""

        def cost(draft: _Draft) -> float:
            evaluator = Evaluator(draft.jobs, Objective(latency=0.0), compared)
            return evaluator.cost(draft.order[:compared])

        best, best_cost = full, None
        for cap in binding_caps(full.problem, full.jobs):
            best_cost = cost(full) if best_cost is None else best_cost
            capacity = replace(full.problem.capacity, max_num_seqs=cap)
            smaller = self._draft(replace(full.problem, capacity=capacity), max_running=cap)
            if (smaller_cost := cost(smaller)) < best_cost - LEAST_GAIN:
                best, best_cost = smaller, smaller_cost
        return best

    def _draft(self, problem: Problem, max_running: int | None = None) -> _Draft:
        """The order of step 1, the price of slot time, and what arrivals claim before each."""
        s = self.settings
        jobs = prepare(problem, s.caution, yielding=s.forlorn >= 0)
        if max_running is None:
            self.outlook.observe(problem, jobs)
        coming = self.outlook.expected(
            problem.now_s,
            problem.arrival_rate_rps,
            s.foresight * self.outlook.slack_s(),
            s.stand_ins,
            s.persistence_s,
        )
        order, price, claimed_s = worth_order(
            problem.now_s,
            float(problem.capacity.max_num_seqs),
            jobs.latest_s,
            jobs.slot_s,
            jobs.weight * jobs.chance,
            *coming,
        )
        left_s = np.maximum(jobs.latest_s - problem.now_s, 1e-3)
        jobs.waiting[:, DILATION] = claimed_s / np.maximum(left_s - claimed_s, 0.1 * left_s)
        return _Draft(problem, jobs, order, s.price_share * price, claimed_s, max_running)

    def _hastened(self, draft: _Draft) -> IntArray:
        """The draft's order with shorter requests moved up among those compared."""
        jobs, order, share = draft.jobs, draft.order, self.settings.haste
        if share <= 0:
            return order
        head = order[: self.settings.compared]
        work_s = jobs.slot_s / draft.problem.capacity.max_num_seqs
        moved = hasten(head, work_s, jobs.latest_s, draft.claimed_s, draft.problem.now_s, share)
        return np.concatenate([moved, order[len(head) :]])

    def _victims(self, problem: Problem, jobs: Jobs, head: IntArray, price: float) -> IntArray:
        """Running requests whose slots the head of the order uses better."""
        if self.settings.forlorn < 0:
            return np.empty(0, dtype=np.int64)
        objective = self._objective(price)

        def cost(jobs: Jobs, order: IntArray) -> float:
            return Evaluator(jobs, objective, len(order)).cost(order)

        return victims(problem, jobs, head, cost, price, self.settings.forlorn)

    def _objective(self, price: float) -> Objective:
        s = self.settings
        return Objective(price, s.patience_s, s.spread, s.latency, s.paper_g)

    def _starts(self, problem: Problem, jobs: Jobs, selected: IntArray) -> list[IntArray]:
        starts = []
        for name in self.settings.starts:
            if name == "selection":
                starts.append(selected)
            elif name == "previous":
                if (previous := self._recall(problem, selected)) is not None:
                    starts.append(previous)
            else:
                starts.append(rules.RULES[name](problem, jobs))
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
