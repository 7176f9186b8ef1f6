"""Simulated annealing over a plan: order, slots given up, batch limit, prefill limit and period.

    plan = best = start;  T = first
    until the steps or the time end:
        propose a move on one part; Δ = value(plan) - value(proposed)
        accept when Δ <= 0, else with probability exp(-Δ / T)
        remember the best;  lower T

Every value is that of a whole rollout (``rollout``, ``value``), so a move on one part is judged
by what it does to everybody. Randomness is an array of uniforms.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from lengthwise.data.arrays import FloatArray, IntArray, njit
from lengthwise.scheduler.plan.rollout.rollout import rollout
from lengthwise.scheduler.plan.rollout.rollout_state import Engine, Rows, Work
from lengthwise.scheduler.plan.value import Objective, worth

FIRST_TEMPERATURE = 0.3  # of a met request
COOLING = 0.02
UNIFORMS = 5
LONGEST_BLOCK = 8
LEAST_PREFILL_LIMIT = 64.0
WIDEST_BATCH_MOVE = 0.5  # log of the factor a move changes a limit by, at most
WIDEST_PREFILL_MOVE = 1.5
WIDEST_PERIOD_MOVE = 1.2
LONGEST_PERIOD = 32.0
SWAP, INSERT, BLOCK, BATCH, PREFILL, SLOT, PERIOD = range(7)
MAX_RUNNING, MAX_PREFILL, PREFILL_PERIOD = 0, 1, 2


class Picture(NamedTuple):
    """What every rollout of one plan shares; see ``rollout`` and ``value``."""

    engine: Engine
    rows: Rows
    running: int
    recovering: int
    expected: int
    rested: float
    begin_s: float
    until_s: float
    objective: Objective
    work: Work
    chance: FloatArray


class Parts(NamedTuple):
    """A plan's parts: ``order`` of all that queue or will, ``given_up (running,)``, and ``limits``.

    These are most running, most prefill tokens a step, and from one step with prompts to the next.
    """

    order: IntArray
    given_up: IntArray
    limits: FloatArray


def no_limits(engine: Engine) -> FloatArray:
    """Limits that the engine has anyway."""
    return np.array([engine.slots, engine.batched_tokens, 1.0])


def copied(parts: Parts) -> Parts:
    """The same plan on arrays of its own."""
    return Parts(parts.order.copy(), parts.given_up.copy(), parts.limits.copy())


@njit(nogil=True)
def value_of(picture: Picture, parts: Parts, skip_late: bool) -> float:
    """Value of a plan; ``picture.chance`` then holds everybody's."""
    p = picture
    rollout(
        p.engine, p.rows, p.running, p.recovering, p.expected, parts.order, parts.given_up,
        parts.limits[MAX_RUNNING], parts.limits[MAX_PREFILL], parts.limits[PREFILL_PERIOD],
        p.rested, skip_late, p.begin_s, p.until_s, p.work,
    )  # fmt: skip
    return worth(
        p.engine, p.rows, p.running, p.recovering, parts.order, parts.given_up, p.begin_s,
        p.until_s, p.objective, p.work, p.chance,
    )  # fmt: skip


@njit
def carry(order: IntArray, source: int, target: int) -> None:
    """Take the row at ``source`` out and put it in at ``target``."""
    row = order[source]
    if source < target:
        for p in range(source, target):
            order[p] = order[p + 1]
    else:
        for p in range(source, target, -1):
            order[p] = order[p - 1]
    order[target] = row


@njit
def move(
    picture: Picture,
    parts: Parts,
    kind: int,
    u: FloatArray,
    first: int,
    head: int,
    reach: int,
    losing: IntArray,
) -> bool:
    """Change ``parts`` in place by one move; False where there was nothing to change.

    swap, insert and block rearrange the ``head`` positions from ``first`` on, with rows from as
    far as ``reach``; batch, prefill and period scale a limit or lift it; slot takes one of the
    ``losing`` rows' slots or gives it back.
    """
    if kind <= BLOCK:
        if head < 1 or reach < 2:
            return False
        i, j = first + int(u[1] * head), first + int(u[2] * reach)
        if i == j:
            return False
        if kind == SWAP:
            parts.order[i], parts.order[j] = parts.order[j], parts.order[i]
        elif kind == INSERT:
            carry(parts.order, j, i)
        else:
            low, high = min(i, j), max(i, j)
            length = 2 + int(u[3] * (LONGEST_BLOCK - 1))
            for q in range(min(length, len(parts.order) - high)):
                carry(parts.order, high + q, low + q)
        return True
    engine, limits = picture.engine, parts.limits
    if kind == BATCH:
        most = min(engine.slots, float(len(picture.rows.need)))
        now = min(limits[MAX_RUNNING], most)
        wanted = math.floor(now * math.exp((2.0 * u[1] - 1.0) * WIDEST_BATCH_MOVE) + 0.5)
        limits[MAX_RUNNING] = max(1.0, wanted) if wanted < most else engine.slots
    elif kind == PREFILL:
        most = engine.batched_tokens
        now = min(limits[MAX_PREFILL], most)
        wanted = now * math.exp((2.0 * u[1] - 1.0) * WIDEST_PREFILL_MOVE)
        least = min(LEAST_PREFILL_LIMIT, most)
        limits[MAX_PREFILL] = max(least, math.floor(wanted / 16.0) * 16.0)
        if wanted >= most:
            limits[MAX_PREFILL] = most
    elif kind == PERIOD:
        wanted = limits[PREFILL_PERIOD] * math.exp((2.0 * u[1] - 1.0) * WIDEST_PERIOD_MOVE)
        limits[PREFILL_PERIOD] = min(max(1.0, math.floor(wanted + 0.5)), LONGEST_PERIOD)
    else:
        if len(losing) == 0:
            return False
        row = losing[int(u[1] * len(losing))]
        parts.given_up[row] = 1 - parts.given_up[row]
    return True


@njit
def copy_parts(target: Parts, source: Parts) -> None:
    """Overwrite ``target`` by ``source``."""
    target.order[:] = source.order
    target.given_up[:] = source.given_up
    target.limits[:] = source.limits


@njit(nogil=True)
def anneal(
    picture: Picture,
    current: Parts,
    trial: Parts,
    best: Parts,
    values: FloatArray,
    skip_late: bool,
    first: int,
    head: int,
    reach: int,
    kinds: IntArray,
    losing: IntArray,
    temperatures: FloatArray,
    uniforms: FloatArray,
) -> None:
    """``len(temperatures)`` steps in place; ``values`` is (current, best), and only rises in best.

    ``trial`` must equal ``current`` and does again after. Positions below ``first`` stay.
    ``kinds`` are the moves to draw from, each as often as it stands there.
    """
    for step in range(len(temperatures)):
        u = uniforms[step]
        kind = kinds[int(u[0] * len(kinds))]
        if not move(picture, trial, kind, u, first, head, reach, losing):
            continue
        value = value_of(picture, trial, skip_late)
        change = values[0] - value
        if change <= 0.0 or (
            temperatures[step] > 0.0 and u[4] < math.exp(-min(change / temperatures[step], 700.0))
        ):
            values[0] = value
            copy_parts(current, trial)
            if value > values[1]:
                values[1] = value
                copy_parts(best, current)
        else:
            copy_parts(trial, current)


def temperatures(done: float, then: float, steps: int) -> FloatArray:
    """Temperatures of ``steps`` steps that take the search from ``done`` to ``then``, in [0, 1]."""
    return FIRST_TEMPERATURE * COOLING ** np.linspace(done, then, steps, endpoint=False)
