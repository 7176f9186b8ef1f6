"""How good the search is: annealing against the optimum, on the planner's own objective.

    python -m benchmarks.simulator.search --queues 24

The queues are moments of overloaded simulated runs. ``head``: the first n of the planner's own
order, which is what it searches; ``drawn``: n at random of those waiting, of whom some are
hopeless. The reference is the best of all orders for n <= 8, for longer ones the best of four
long annealing runs and of everything else tried. Every method gets the same number of cost
evaluations; annealing and descent start from the best of the rules' and the selection's orders.

``best start`` is the share of the way from arrival order's cost to the reference's that this
start has behind it; the methods' figures are shares of what it leaves, all in per cent, with
95 % bootstrap intervals over queues. ``reference found``: how often annealing ends there.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
from rich.console import Console
from rich.progress import track

from benchmarks.simulator.cells import WORKLOADS, Cell, build
from benchmarks.simulator.grid_tables import bootstrap_ratio
from lengthwise.data.arrays import FloatArray, IntArray
from lengthwise.scheduler.exact import LONGEST, best_order
from lengthwise.scheduler.plan.anneal import LONGEST_BLOCK, UNIFORMS, anneal
from lengthwise.scheduler.plan.jobs import Jobs, prepare
from lengthwise.scheduler.plan.kernels import DILATION
from lengthwise.scheduler.plan.moves import BLOCK, KINDS, apply_move
from lengthwise.scheduler.plan.objective import Evaluator, Objective
from lengthwise.scheduler.plan.selection import worth_order
from lengthwise.scheduler.policies.annealing import AnnealingPolicy, Settings
from lengthwise.scheduler.policies.paper import PaperSettings, search
from lengthwise.scheduler.policies.rules import RULES
from lengthwise.scheduler.problem import Plan, Problem
from lengthwise.scheduler.simulator.run import simulate

KINDS_OF_QUEUE = ("head", "drawn")
METHODS = ("annealing", "descent", "from arrival order", "random orders", "sa-paper")
WITH_INTERVAL = ("annealing", "descent")
ARRIVAL, START, REFERENCE = "arrival order", "best start", "reference"
PAPER_TEMPERATURES = 63  # from 500 to 20 by .95
SAME = 1e-9


@dataclass(frozen=True, slots=True)
class Moment:
    """A problem the planner saw, and the arrivals it expected then."""

    problem: Problem
    coming: tuple[FloatArray, FloatArray, FloatArray]


class Recorder:
    """``sa``, keeping one in ``every`` of the problems with at least ``waiting`` requests."""

    def __init__(self, seed: int, waiting: int, every: int) -> None:
        self.inner = AnnealingPolicy(Settings(), seed=seed, iterations=80)
        self.name, self.nominal_s = self.inner.name, self.inner.nominal_s
        self.waiting, self.every = waiting, every
        self.crowded = 0
        self.moments: list[Moment] = []

    def warm_up(self) -> None:
        self.inner.warm_up()

    def __call__(self, problem: Problem) -> Plan:
        plan = self.inner(problem)
        if len(problem.waiting) >= self.waiting:
            self.crowded += 1
            if self.crowded % self.every == 0:
                s, outlook = self.inner.settings, self.inner.outlook
                coming = outlook.expected(
                    problem.now_s,
                    problem.arrival_rate_rps,
                    s.foresight * outlook.slack_s(),
                    s.stand_ins,
                    s.persistence_s,
                )
                self.moments.append(Moment(problem, coming))
        return plan


def moments(requests: int, load: float, lengths: str, waiting: int, seeds: int) -> list[Moment]:
    """Crowded moments of runs of each workload, in random order."""
    found: list[Moment] = []
    for workload in WORKLOADS:
        for seed in range(seeds):
            cell = Cell(workload, load, "poisson", lengths, 100 + seed, requests)
            recorder = Recorder(seed, waiting, every=10)
            requests_of_cell, profile = build(cell)
            simulate(requests_of_cell, recorder, profile)
            found += recorder.moments
    np.random.default_rng(0).shuffle(found)  # type: ignore[arg-type]
    return found


@dataclass(frozen=True, slots=True)
class Queue:
    """``n`` rows of a moment to be ordered, and what an order of them costs."""

    problem: Problem
    jobs: Jobs
    selected: IntArray
    objective: Objective
    rows: IntArray

    @classmethod
    def at(cls, moment: Moment, kind: str, n: int, rng: np.random.Generator) -> Queue:
        """The planner's preparation of a moment, and ``n`` of its rows."""
        problem, s = moment.problem, Settings()
        jobs = prepare(problem, s.caution)
        selected, price, claimed_s = worth_order(
            problem.now_s,
            float(problem.capacity.max_num_seqs),
            jobs.latest_s,
            jobs.slot_s,
            jobs.weight * jobs.chance,
            *moment.coming,
        )
        left_s = np.maximum(jobs.latest_s - problem.now_s, 1e-3)
        jobs.waiting[:, DILATION] = claimed_s / np.maximum(left_s - claimed_s, 0.1 * left_s)
        rows = selected[:n] if kind == "head" else rng.permutation(len(jobs))[:n]
        objective = Objective(s.price_share * price, s.patience_s, s.spread, s.latency, s.paper_g)
        return cls(problem, jobs, selected, objective, rows.astype(np.int64))

    def evaluator(self) -> Evaluator:
        return Evaluator(self.jobs, self.objective, len(self.rows))

    def starts(self) -> dict[str, IntArray]:
        """Every rule's order of the rows, and the selection's."""
        orders = {name: rule(self.problem, self.jobs) for name, rule in RULES.items()}
        orders["selection"] = self.selected
        return {name: order[np.isin(order, self.rows)] for name, order in orders.items()}


def descent(
    evaluator: Evaluator, start: IntArray, rng: np.random.Generator, evaluations: int
) -> float:
    """The annealing's moves, taking none that costs more."""
    order, cost, n = start.copy(), evaluator.cost(start), len(start)
    for u in rng.random((evaluations, UNIFORMS)):
        trial, kind = order.copy(), int(u[0] * KINDS)
        length = 2 + int(u[3] * (LONGEST_BLOCK - 1)) if kind == BLOCK else 1
        apply_move(trial, kind, int(u[1] * n), int(u[2] * n), length)
        if (trial_cost := evaluator.cost(trial)) <= cost:
            order, cost = trial, trial_cost
    return cost


def random_orders(
    evaluator: Evaluator, rows: IntArray, rng: np.random.Generator, evaluations: int
) -> float:
    """The best of so many random orders."""
    return min(evaluator.cost(rng.permutation(rows)) for _ in range(evaluations))


def paper(queue: Queue, rng: np.random.Generator, evaluations: int) -> float:
    """What the published method's order costs here; it searches its own G."""
    alone = replace(queue.problem, waiting=queue.problem.waiting.take(queue.rows))
    steps = max(1, round(evaluations / PAPER_TEMPERATURES))
    settings = PaperSettings(steps_per_temperature=steps)
    order, *_ = search(alone, prepare(alone), settings, rng, None)
    return queue.evaluator().cost(queue.rows[order])


def costs(
    queue: Queue, budgets: list[int], long_steps: int, rng: np.random.Generator
) -> dict[tuple[str, int], float]:
    """(method, evaluations) to the cost of what it finds; REFERENCE is the best known."""
    evaluator, starts = queue.evaluator(), queue.starts()
    found = {name: evaluator.cost(order) for name, order in starts.items()}
    start = starts[min(found, key=found.__getitem__)]
    out = {(ARRIVAL, 0): found["fcfs"], (START, 0): min(found.values())}
    for budget in budgets:
        begun_from = {"annealing": start, "from arrival order": starts["fcfs"]}
        for name, order in begun_from.items():
            out[name, budget] = anneal(evaluator, order, rng, iterations=budget).cost
        out["descent", budget] = descent(evaluator, start, rng, budget)
        out["random orders", budget] = random_orders(evaluator, queue.rows, rng, budget)
        out["sa-paper", budget] = paper(queue, rng, budget)
    if len(queue.rows) <= LONGEST:
        # best_order walks orders of 0 .. n-1: the rows alone, renumbered
        alone = replace(queue.jobs, waiting=queue.jobs.waiting[queue.rows])
        best = best_order(Evaluator(alone, queue.objective, len(queue.rows)), len(queue.rows))[1]
    else:
        begins = [start, starts["fcfs"], rng.permutation(queue.rows), rng.permutation(queue.rows)]
        runs = [anneal(evaluator, order, rng, iterations=long_steps).cost for order in begins]
        out["annealing", long_steps] = runs[0]
        best = min([*runs, *out.values()])
    return out | {(REFERENCE, 0): best}


def share(value: float) -> str:
    """Per cent; what is worse than the start by more than the whole room is no number to read."""
    return f"{100 * value:.0f}" if value >= -1 else "< -100"


def rows_of(found: list[dict[tuple[str, int], float]], rng: np.random.Generator) -> Iterator[str]:
    """Markdown cells, a row a budget: shares of the room each method takes."""
    column = {m: np.array([f[m] for f in found]) for m in found[0]}
    start, best = column[START, 0], column[REFERENCE, 0]
    of_start, *_ = bootstrap_ratio(column[ARRIVAL, 0] - start, column[ARRIVAL, 0] - best, rng)
    for budget in sorted({budget for _, budget in column if budget}):
        cells = []
        for method in METHODS:
            if (method, budget) not in column:
                cells.append("")
                continue
            value, low, high = bootstrap_ratio(start - column[method, budget], start - best, rng)
            within = f" ({share(low)} to {share(high)})" if method in WITH_INTERVAL else ""
            cells.append(share(value) + within)
        # the walk restarts at different points, so equal orders may differ in the last digits
        hit = np.mean(column["annealing", budget] - best <= SAME * (np.abs(best) + 1.0))
        yield f"{share(of_start)} | {budget:,} | {' | '.join(cells)} | {share(float(hit))}"


def pace(queue: Queue, steps: int = 20_000) -> float:
    """Annealing steps a millisecond."""
    began = time.perf_counter()
    anneal(queue.evaluator(), queue.rows, np.random.default_rng(0), iterations=steps)
    return steps / (1e3 * (time.perf_counter() - began))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--queues", type=int, default=24, help="of each size and kind")
    parser.add_argument("--sizes", nargs="+", type=int, default=[8, 20, 32, 50])
    parser.add_argument("--budgets", nargs="+", type=int, default=[80, 400, 5_000])
    parser.add_argument("--long-steps", type=int, default=100_000)
    parser.add_argument("--load", type=float, default=1.7)
    parser.add_argument("--lengths", default="learned")
    parser.add_argument("--requests", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()

    pool = moments(args.requests, args.load, args.lengths, max(args.sizes), seeds=4)
    if len(pool) < args.queues:
        parser.error(f"only {len(pool)} crowded moments, asked for {args.queues}")
    rng = np.random.default_rng(args.seed)
    columns = ["queue", "n", "best start", "evaluations", *METHODS, "reference found"]
    print(f"| {' | '.join(columns)} |")
    print("|" + "---|" * len(columns))
    for n in args.sizes:
        results: dict[str, list[dict[tuple[str, int], float]]] = defaultdict(list)
        todo = [(kind, moment) for kind in KINDS_OF_QUEUE for moment in pool[: args.queues]]
        for kind, moment in track(todo, description=f"n = {n}", console=Console(stderr=True)):
            queue = Queue.at(moment, kind, n, rng)
            results[kind].append(costs(queue, args.budgets, args.long_steps, rng))
        for kind, found in results.items():
            for line in rows_of(found, rng):
                print(f"| {kind} | {n} | {line} |", flush=True)
        steps = pace(Queue.at(pool[0], "head", n, rng))
        print(f"n = {n}: {steps:.0f} annealing steps a millisecond here", file=sys.stderr)


if __name__ == "__main__":
    main()
