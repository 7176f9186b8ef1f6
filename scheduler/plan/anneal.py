"""Simulated annealing over the head of an admission order.

    order = best = start;  T = first
    until the budget ends:
        propose a move; Δ = cost(proposed) - cost(order)
        accept when Δ <= 0, else with probability exp(-Δ / T)
        remember the best;  lower T

The temperature comes from the cost itself: it begins where a typical worsening move (the mean
over a first, rejecting, round) is accepted with probability ACCEPT_FIRST and ends a factor
COOLING lower, so that no scale has to be guessed. Randomness is an array of uniforms.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from lengthwise.data.arrays import FloatArray, IntArray, njit
from lengthwise.scheduler.plan import kernels as k
from lengthwise.scheduler.plan.moves import BLOCK, KINDS, apply_move
from lengthwise.scheduler.plan.objective import Evaluator

ACCEPT_FIRST = 0.1
COOLING = 0.01
ROUND = 32
FIRST_ROUND = 8
LONGEST_BLOCK = 8
UNIFORMS = 5


@dataclass(frozen=True, slots=True)
class Found:
    """The best order of the searched stretch, its cost, the start's, and the work done."""

    order: IntArray
    cost: float
    start_cost: float
    evaluations: int


@njit
def _round(
    engine: FloatArray,
    objective: FloatArray,
    running: FloatArray,
    jobs: FloatArray,
    order: IntArray,
    trial: IntArray,
    best: IntArray,
    states: FloatArray,
    heaps: IntArray,
    side: IntArray,
    work: IntArray,
    uniforms: FloatArray,
    temperatures: FloatArray,
    costs: FloatArray,
    first: int,
) -> float:
    """Run ``len(temperatures)`` steps in place; returns the mean worsening seen.

    ``costs`` is (current, best). Positions below ``first`` stay. A temperature of 0 accepts
    improvements only.
    """
    n = len(order)
    worse, worsenings = 0.0, 0
    for step in range(len(temperatures)):
        kind = int(uniforms[step, 0] * KINDS)
        i = first + int(uniforms[step, 1] * (n - first))
        j = first + int(uniforms[step, 2] * (n - first))
        length = 2 + int(uniforms[step, 3] * (LONGEST_BLOCK - 1)) if kind == BLOCK else 1
        low = apply_move(trial, kind, i, j, length)
        if low >= n:
            continue
        begin = low // k.RESTART_EVERY
        cost = k.evaluate(engine, objective, running, jobs, trial, begin, states, heaps, side, work)
        change = cost - costs[0]
        if change > 0.0:
            worse += change
            worsenings += 1
        temperature = temperatures[step]
        if change <= 0.0 or (
            temperature > 0.0 and uniforms[step, 4] < math.exp(-change / temperature)
        ):
            order[low:] = trial[low:]
            costs[0] = cost
            for point in range(begin + 1, len(side)):
                side[point] = 1 - side[point]
            if cost < costs[1]:
                costs[1] = cost
                best[:] = order
        else:
            trial[low:] = order[low:]
    return worse / max(worsenings, 1)


class _Steps:
    """How many steps the next round may take, and how far the search is.

    Against a clock the first round is short; each later one is at most half of what its
    predecessors' pace leaves time for, so the last overruns by little.
    """

    def __init__(self, iterations: int | None, seconds_left: Callable[[], float] | None) -> None:
        self.iterations = iterations
        self.seconds_left = seconds_left
        self.budget_s = seconds_left() if seconds_left is not None else 0.0
        self.left_s = self.budget_s

    def next_round(self, done: int) -> int:
        if self.seconds_left is None:
            return min(ROUND, (self.iterations or 0) - done)
        self.left_s = self.seconds_left()
        if self.left_s <= 0:
            return 0
        if done == 0:
            return FIRST_ROUND
        step_s = max((self.budget_s - self.left_s) / done, 1e-7)
        return min(ROUND, int(self.left_s / step_s / 2))

    def progress(self, done: int) -> float:
        if self.seconds_left is None:
            return done / (self.iterations or 1)
        return 1.0 - self.left_s / self.budget_s if self.budget_s > 0 else 1.0


def anneal(
    evaluator: Evaluator,
    start: IntArray,
    rng: np.random.Generator,
    *,
    iterations: int | None = None,
    seconds_left: Callable[[], float] | None = None,
    first: int = 0,
) -> Found:
    """Search the order ``start``; stop after ``iterations`` or when ``seconds_left()`` ends.

    With ``iterations`` the result depends on the arguments alone. ``start`` may be a part of
    the queue; rows outside it are not looked at. Positions below ``first`` are kept.
    """
    if (iterations is None) == (seconds_left is None):
        raise ValueError("give either iterations or seconds_left")
    order = start.copy()
    start_cost = evaluator.cost(order)
    evaluator.settle()
    if len(order) - first < 2:
        return Found(order, start_cost, start_cost, 1)
    trial, best = order.copy(), order.copy()
    costs = np.array([start_cost, start_cost])
    clock = _Steps(iterations, seconds_left)
    hottest, done = 0.0, 0
    while (steps := clock.next_round(done)) > 0:
        temperature = hottest * COOLING ** clock.progress(done)
        worsening = _round(
            evaluator.jobs.engine,
            evaluator.numbers,
            evaluator.jobs.running,
            evaluator.jobs.waiting,
            order,
            trial,
            best,
            evaluator.states,
            evaluator.heaps,
            evaluator.side,
            evaluator.work,
            rng.random((steps, UNIFORMS)),
            np.full(steps, temperature),
            costs,
            first,
        )
        if done == 0:
            hottest = worsening / -math.log(ACCEPT_FIRST)
        done += steps
    return Found(best, float(costs[1]), start_cost, done + 1)
