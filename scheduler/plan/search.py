"""Simulated annealing over a plan's four parts: order, slots given up, batch limit, prefill limit.

    plan = best = start;  T = first
    until the steps or the time end:
        propose a move on one part; Δ = value(plan) - value(proposed)
        accept when Δ <= 0, else with probability exp(-Δ / T)
        remember the best;  lower T

Every value is that of a whole rollout. The temperature begins where a typical worsening is
accepted with probability ACCEPT_FIRST. Randomness is an array of uniforms.
"""

from __future__ import annotations

import math

import numpy as np

from scheduler.compiled import njit
from scheduler.plan.rollout import Engine, Rows, Work, rollout
from scheduler.plan.value import Objective, worth
from scheduler.problem import FloatArray, IntArray

ACCEPT_FIRST = 0.1
COOLING = 0.02
UNIFORMS = 5
LONGEST_BLOCK = 8
LEAST_BUDGET = 64.0
MOST_RUNNING, MOST_PREFILL = 0, 1
SWAP, INSERT, BLOCK, LIMIT, BUDGET, YIELD = range(6)


@njit(nogil=True)
def value_of(
    engine: Engine,
    rows: Rows,
    running: int,
    expected: int,
    order: IntArray,
    given_up: IntArray,
    limits: FloatArray,
    skip_late: bool,
    begin_s: float,
    until_s: float,
    objective: Objective,
    w: Work,
    chance: FloatArray,
) -> float:
    """Value of a plan: its rollout, and what that is worth."""
    rollout(
        engine, rows, running, expected, order, given_up, limits[MOST_RUNNING],
        limits[MOST_PREFILL], skip_late, begin_s, until_s, w,
    )  # fmt: skip
    return worth(engine, rows, running, order, given_up, begin_s, until_s, objective, w, chance)


@njit
def _carry(order: IntArray, source: int, target: int) -> None:
    row = order[source]
    if source < target:
        for p in range(source, target):
            order[p] = order[p + 1]
    else:
        for p in range(source, target, -1):
            order[p] = order[p - 1]
    order[target] = row


@njit(nogil=True)
def anneal(
    engine: Engine,
    rows: Rows,
    running: int,
    expected: int,
    order: IntArray,
    given_up: IntArray,
    limits: FloatArray,
    skip_late: bool,
    begin_s: float,
    until_s: float,
    objective: Objective,
    w: Work,
    chance: FloatArray,
    value: float,
    first: int,
    window: int,
    reach: int,
    kinds: IntArray,
    yieldable: IntArray,
    first_temperature: float,
    uniforms: FloatArray,
) -> float:
    """Anneal in place from a start of ``value``; what is left in the arrays is the best found.

    Positions below ``first`` stay; orders change within ``window`` positions after it, and by
    drawing rows from ``reach`` positions. ``kinds`` are the moves allowed, drawn evenly.
    """
    steps = len(uniforms)
    best_order, best_given, best_limits = order.copy(), given_up.copy(), limits.copy()
    trial, trial_given, trial_limits = order.copy(), given_up.copy(), limits.copy()
    best = value
    head = min(window, len(order) - first)
    deep = min(reach, len(order) - first)
    for step in range(steps):
        u = uniforms[step]
        kind = kinds[int(u[0] * len(kinds))]
        temperature = first_temperature * COOLING ** (step / steps)
        if kind <= BLOCK:
            if head < 2:
                continue
            i, j = first + int(u[1] * head), first + int(u[2] * deep)
            if i == j:
                continue
            if kind == SWAP:
                trial[i], trial[j] = trial[j], trial[i]
            elif kind == INSERT:
                _carry(trial, j, i)
            else:
                low, high = min(i, j), max(i, j)
                for q in range(min(2 + int(u[3] * (LONGEST_BLOCK - 1)), len(trial) - high)):
                    _carry(trial, high + q, low + q)
        elif kind == LIMIT:
            most = min(engine.slots, float(len(rows.need)))
            now = min(trial_limits[MOST_RUNNING], most)
            wanted = math.floor(now * math.exp((u[1] - 0.5) * 1.0) + 0.5)
            trial_limits[MOST_RUNNING] = max(1.0, wanted) if wanted < most else engine.slots
        elif kind == BUDGET:
            now = min(trial_limits[MOST_PREFILL], engine.batched_tokens)
            wanted = now * math.exp((u[1] - 0.5) * 3.0)
            most = engine.batched_tokens
            trial_limits[MOST_PREFILL] = (
                most if wanted >= most else max(LEAST_BUDGET, math.floor(wanted / 16.0) * 16.0)
            )
        else:
            if len(yieldable) == 0:
                continue
            i = yieldable[int(u[1] * len(yieldable))]
            trial_given[i] = 1 - trial_given[i]
        proposed = value_of(
            engine, rows, running, expected, trial, trial_given, trial_limits, skip_late,
            begin_s, until_s, objective, w, chance,
        )  # fmt: skip
        change = value - proposed
        if change <= 0.0 or (
            temperature > 0.0 and u[4] < math.exp(-min(change / temperature, 700.0))
        ):
            value = proposed
            order[:], given_up[:], limits[:] = trial, trial_given, trial_limits
            if value > best:
                best = value
                best_order[:], best_given[:], best_limits[:] = order, given_up, limits
        else:
            trial[:], trial_given[:], trial_limits[:] = order, given_up, limits
    order[:], given_up[:], limits[:] = best_order, best_given, best_limits
    return best
