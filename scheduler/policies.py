"""The policies by name: a problem in, a plan out."""

from __future__ import annotations

import time
from typing import Any, Protocol

import numpy as np

from lengthwise.data.arrays import IntArray
from lengthwise.scheduler.heuristics import RULES, Rule
from lengthwise.scheduler.plan.jobs import prepare
from lengthwise.scheduler.plan.wait_bound import bounded
from lengthwise.scheduler.planner import AnnealingPolicy
from lengthwise.scheduler.problem import Plan, Problem, warm_up_problem
from lengthwise.scheduler.sa_paper import PaperSettings, search

POLICIES = (
    "fcfs",
    "priority",
    "sjf",
    "edf",
    "llf",
    "feasible-sjf",
    "feasible-edf",
    "hrrn",
    "sa-paper",
    "sa",
)


class Policy(Protocol):
    """Orders the waiting requests; may keep what it learned from earlier problems."""

    name: str
    nominal_s: float  # what a plan is expected to take, for pacing before the first measure

    def __call__(self, problem: Problem) -> Plan:
        """The order to admit in."""
        ...

    def warm_up(self) -> None:
        """Compile what a plan needs, so that no request waits for it."""
        ...


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


class PaperPolicy:
    """The published annealing; ``sa_paper`` says what is known of it."""

    name = "sa-paper"

    def __init__(
        self, budget_s: float | None = 0.001, seed: int = 0, settings: PaperSettings | None = None
    ) -> None:
        self.budget_s = budget_s
        self.nominal_s = budget_s if budget_s is not None else 0.05
        self.settings = settings or PaperSettings()
        self.rng = np.random.default_rng(seed)

    def __call__(self, problem: Problem) -> Plan:
        """The order to admit in."""
        began = time.perf_counter()
        n = len(problem.waiting)
        if n < 2:
            return Plan(np.arange(n, dtype=np.int64))
        jobs = prepare(problem)
        spent = time.perf_counter() - began
        left = None if self.budget_s is None else max(0.0, self.budget_s - spent)
        order, g, start_g, evaluations = search(problem, jobs, self.settings, self.rng, left)
        order, _ = bounded(problem, jobs, order)
        return Plan(order, -g, -start_g, evaluations, time.perf_counter() - began)

    def warm_up(self) -> None:
        """Compile the search."""
        self(warm_up_problem())


def make_policy(
    name: str, *, budget_s: float | None = 0.001, seed: int = 0, **params: Any
) -> Policy:
    """The policy called ``name``, one of POLICIES; ``params`` go to it.

    ``sa`` takes the fields of ``planner.Settings`` and ``iterations`` (a fixed amount of search
    instead of a time budget: then the plans depend on the problems and the seed alone);
    ``sa-paper`` takes the fields of ``PaperSettings``. Raises ValueError for an unknown name
    or parameter.
    """
    if name not in POLICIES:
        raise ValueError(f"unknown policy {name!r}; known are {', '.join(POLICIES)}")
    try:
        if name == "sa":
            return AnnealingPolicy.with_params(budget_s, seed, **params)
        if name == "sa-paper":
            return PaperPolicy(budget_s, seed, PaperSettings(**params))
    except TypeError as error:
        raise ValueError(f"policy {name!r}: {error}") from error
    if params:
        raise ValueError(f"policy {name!r} takes no parameters, got {sorted(params)}")
    return RulePolicy(name, RULES[name])
