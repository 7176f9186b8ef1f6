"""The simple rules: each is one sort key over the waiting requests.

They are baselines, starts for the search, and what serves when the search cannot. Each takes
the prepared figures and returns a permutation ``(n,)``; ties go to the older request.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np

from lengthwise.data.arrays import BoolArray, FloatArray, IntArray
from lengthwise.scheduler.plan.jobs import Jobs, prepare
from lengthwise.scheduler.plan.starts.wait_bound import bounded
from lengthwise.scheduler.problem import Plan, Problem, warm_up_problem

Rule = Callable[[Problem, Jobs], IntArray]


def _by(problem: Problem, *keys: FloatArray | BoolArray) -> IntArray:
    """Rows sorted by the first key, then the next, then arrival, then row."""
    order = np.argsort(problem.waiting.arrival_s, kind="stable")
    for key in reversed(keys):
        order = order[np.argsort(key[order], kind="stable")]
    return order.astype(np.int64, copy=False)


def duration_s(jobs: Jobs) -> FloatArray:
    """Seconds from admission to the end at the mean length."""
    return jobs.mean_tokens * jobs.token_s


def fcfs(problem: Problem, jobs: Jobs) -> IntArray:
    """First come, first served."""
    return _by(problem)


def priority(problem: Problem, jobs: Jobs) -> IntArray:
    """The class with the tighter objective first."""
    return _by(problem, np.minimum(problem.waiting.ttft_s, problem.waiting.e2e_s))


def sjf(problem: Problem, jobs: Jobs) -> IntArray:
    """Shortest predicted answer first."""
    return _by(problem, jobs.mean_tokens)


def edf(problem: Problem, jobs: Jobs) -> IntArray:
    """Earliest deadline first; the first-token deadline where there is one."""
    return _by(problem, jobs.due_s)


def llf(problem: Problem, jobs: Jobs) -> IntArray:
    """Least laxity first: deadline less the time the work itself needs."""
    waiting = problem.waiting
    laxity = np.minimum(
        waiting.arrival_s + waiting.ttft_s, waiting.arrival_s + waiting.e2e_s - duration_s(jobs)
    )
    return _by(problem, laxity)


def feasible_sjf(problem: Problem, jobs: Jobs) -> IntArray:
    """Those that can still meet their objectives, shortest first; then the rest likewise."""
    return _by(problem, ~jobs.can_meet, jobs.mean_tokens)


def feasible_edf(problem: Problem, jobs: Jobs) -> IntArray:
    """Those that can still meet their objectives, by deadline; then the rest likewise."""
    return _by(problem, ~jobs.can_meet, jobs.due_s)


def hrrn(problem: Problem, jobs: Jobs) -> IntArray:
    """Highest response ratio next: (wait + service) / service."""
    service = duration_s(jobs)
    waited = np.maximum(problem.now_s - problem.waiting.arrival_s, 0.0)
    return _by(problem, -(waited + service) / service)


RULES: dict[str, Rule] = {
    "fcfs": fcfs,
    "priority": priority,
    "sjf": sjf,
    "edf": edf,
    "llf": llf,
    "feasible-sjf": feasible_sjf,
    "feasible-edf": feasible_edf,
    "hrrn": hrrn,
}


class RulePolicy:
    """One simple rule, with the bound on waiting; ``fcfs`` needs none."""

    nominal_s = 1e-4

    def __init__(self, name: str, rule: Rule) -> None:
        self.name = name
        self.rule = rule

    def __call__(self, problem: Problem) -> Plan:
        """The order to admit in."""
        began = time.perf_counter()
        if self.name == "fcfs":
            order: IntArray = np.argsort(problem.waiting.arrival_s, kind="stable").astype(np.int64)
        else:
            jobs = prepare(problem)
            order, _ = bounded(problem, jobs, self.rule(problem, jobs))
        return Plan(order, elapsed_s=time.perf_counter() - began)

    def warm_up(self) -> None:
        """Compile the figures the rules sort by."""
        self(warm_up_problem())
