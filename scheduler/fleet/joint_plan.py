"""Assignment and order of what is held, found together by annealing from a list schedule.

    list schedule: each request in turn to the line where the value rises most (the first few),
                   or where it ends first (the rest)
    plan = best = the list schedule
    until the steps end:
        swap two in a line, move one, exchange two, or exchange two lines' ends
        accept by the change of the summed value of the at most two instances touched

Each instance's line stands behind what it has already. The value is the router's own (`gain`), so
what is found is never worth less than the list schedule by the measure that requests are routed
by. Randomness is an array of uniforms.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from lengthwise.data.arrays import BoolArray, FloatArray, IntArray, njit
from lengthwise.scheduler.fleet import fleet_rows as fr
from lengthwise.scheduler.fleet.fleet_rows import FleetRows, work_of, write_row
from lengthwise.scheduler.fleet.gain import (
    BY_ARRIVAL,
    LATENCY_PRICE,
    NEAR,
    Scratch,
    Weighing,
    objective_at,
    queue_order,
    value_at,
)
from lengthwise.scheduler.fleet.known_requests import (
    E2E_BY,
    MEAN,
    PROMPT,
    TPOT,
    TTFT_BY,
    KnownColumns,
)
from lengthwise.scheduler.plan.rollout import rollout_state as rs
from lengthwise.scheduler.plan.search import COOLING, FIRST_TEMPERATURE

SWAP, MOVE, EXCHANGE, ENDS = range(4)
UNIFORMS = 6
VALUED = 24  # requests that the list schedule places by value


class Lines(NamedTuple):
    """Who is held for whom: ``of (m, n)`` numbers of held requests, the first ``size (m,)`` of
    each line valid, the next to send first."""

    of: IntArray
    size: IntArray


@dataclass(frozen=True, slots=True)
class JointPlan:
    """Lines of the cell's instances, whom each would admit ``soon (m, n)``, what each request
    adds ``gain (n,)``, and what the plan and the list schedule are worth."""

    lines: Lines
    soon: BoolArray
    gain: FloatArray
    value: float
    start_value: float

    def sendable(self, place: int) -> IntArray:
        """Held requests that the cell's instance would begin soon, in the order of its line."""
        line = self.lines.of[place, : self.lines.size[place]]
        return line[self.soon[place, line]]


@njit
def line_value(
    r: FleetRows,
    known: KnownColumns,
    i: int,
    c: int,
    slots: IntArray,
    cached: FloatArray,
    lines: Lines,
    w: Weighing,
    ahead_s: float,
    s: Scratch,
) -> float:
    """Value of instance ``i`` with its line behind what it has, played ``ahead_s`` from now."""
    k, size = r.counts[i, fr.ALL], lines.size[c]
    n = queue_order(r, i, k, w.order, w.now_s, s.order)
    for p in range(size):
        h = lines.of[c, p]
        found = cached[h, c]
        left = known.figures[slots[h], PROMPT] - found
        write_row(r, known, i, k + p, slots[h], w.now_s, 0.0, left, found, np.nan, -1.0)
        s.order[n + p] = k + p
    o = objective_at(r, i, w)
    until_s = max(w.now_s, r.figures[i, fr.BEGIN_S]) + ahead_s
    return value_at(r, i, k + size, s.order[: n + size], until_s, w.order != BY_ARRIVAL, o, s)


@njit
def list_schedule(
    r: FleetRows,
    known: KnownColumns,
    instances: IntArray,
    slots: IntArray,
    cached: FloatArray,
    w: Weighing,
    lines: Lines,
    s: Scratch,
    gain: FloatArray,
) -> None:
    """Each request in turn to the end of the line where the value rises most.

    Of equal lines to that where it ends first; from the VALUED-th on, of those where it can be
    met. What each of the first adds to the attained weight is in ``gain (n,)``, else 0.
    """
    m = len(instances)
    ready_s, values = np.zeros(m), np.zeros(m)
    lines.size[:] = 0
    gain[:] = 0.0
    for c in range(m):
        i = instances[c]
        for p in range(r.counts[i, fr.RUNNING], r.counts[i, fr.ALL]):
            ready_s[c] += work_of(r, i, p)
        values[c] = line_value(r, known, i, c, slots, cached, lines, w, w.horizon_s, s)
    merit, end_s = np.zeros(m), np.zeros(m)
    for h in range(len(slots)):
        f = known.figures[slots[h]]
        for c in range(m):
            i = instances[c]
            token_s = r.figures[i, fr.TOKEN_S]
            first_s = (
                w.now_s + ready_s[c] + r.engines[i, fr.PREFILL_TOKEN_S] * (f[PROMPT] - cached[h, c])
            )
            end_s[c] = first_s + token_s * f[MEAN]
            if h < VALUED:
                lines.of[c, lines.size[c]] = h
                lines.size[c] += 1
                value = line_value(r, known, i, c, slots, cached, lines, w, w.horizon_s, s)
                lines.size[c] -= 1
                merit[c] = value - values[c]
            else:
                in_time = first_s <= f[TTFT_BY] and end_s[c] <= f[E2E_BY] and token_s <= f[TPOT]
                merit[c] = 1.0 if in_time else 0.0
        best, least = 0, merit.max() - NEAR
        for c in range(1, m):
            if merit[c] >= least and (merit[best] < least or end_s[c] < end_s[best]):
                best = c
        i = instances[best]
        lines.of[best, lines.size[best]] = h
        lines.size[best] += 1
        ready_s[best] += work_on(r, f, i, cached[h, best])
        if h < VALUED:
            before = values[best]
            values[best] = line_value(r, known, i, best, slots, cached, lines, w, w.horizon_s, s)
            gain[h] = values[best] - before + own_latency(r, i, lines.size[best] - 1, w, s)


@njit
def own_latency(r: FleetRows, i: int, at: int, w: Weighing, s: Scratch) -> float:
    """What the value that ``s`` holds took off for the time of its line's request ``at``."""
    finish_s = s.work.finish_s[r.counts[i, fr.ALL] + at]
    taken_s = min(finish_s, w.now_s + w.horizon_s) - w.now_s
    return LATENCY_PRICE * max(taken_s, 0.0) / objective_at(r, i, w).mean_time_s


@njit(inline="always")
def work_on(r: FleetRows, f: FloatArray, i: int, cached: float) -> float:
    """Seconds of instance ``i`` that a request of these figures takes."""
    return (
        r.engines[i, fr.PREFILL_TOKEN_S] * (f[PROMPT] - cached)
        + r.figures[i, fr.ANSWER_TOKEN_S] * f[MEAN]
    )


@njit
def change(lines: Lines, kind: int, u: FloatArray, a: int, b: int) -> bool:
    """Change the lines ``a`` and ``b`` in place by one move; False where there is nothing to."""
    na, nb = lines.size[a], lines.size[b]
    if na == 0:
        return False
    p = int(u[3] * u[3] * na)  # the next to go matter most
    if kind == SWAP:
        q = int(u[4] * u[4] * na)
        lines.of[a, p], lines.of[a, q] = lines.of[a, q], lines.of[a, p]
        return p != q
    if a == b:
        return False
    if kind == MOVE:
        q = int(u[4] * u[4] * (nb + 1))
        h = lines.of[a, p]
        for x in range(p, na - 1):
            lines.of[a, x] = lines.of[a, x + 1]
        for x in range(nb, q, -1):
            lines.of[b, x] = lines.of[b, x - 1]
        lines.of[b, q] = h
        lines.size[a], lines.size[b] = na - 1, nb + 1
        return True
    if nb == 0:
        return False
    q = int(u[4] * u[4] * nb)
    if kind == EXCHANGE:
        lines.of[a, p], lines.of[b, q] = lines.of[b, q], lines.of[a, p]
        return True
    end_a, end_b = lines.of[a, p:na].copy(), lines.of[b, q:nb].copy()
    lines.of[a, p : p + len(end_b)] = end_b
    lines.of[b, q : q + len(end_a)] = end_a
    lines.size[a], lines.size[b] = p + len(end_b), q + len(end_a)
    return True


@njit
def copy_line(target: Lines, source: Lines, c: int) -> None:
    """Overwrite one line."""
    target.of[c] = source.of[c]
    target.size[c] = source.size[c]


@njit(nogil=True)
def search(
    r: FleetRows,
    known: KnownColumns,
    instances: IntArray,
    slots: IntArray,
    cached: FloatArray,
    w: Weighing,
    uniforms: FloatArray,
    lines: Lines,
    trial: Lines,
    best: Lines,
    s: Scratch,
) -> tuple[float, float]:
    """Anneal from ``lines``, which all three hold; (value of the best, of the start)."""
    m, steps = len(instances), len(uniforms)
    values = np.empty(m)
    for c in range(m):
        i = instances[c]
        values[c] = line_value(r, known, i, c, slots, cached, lines, w, w.horizon_s, s)
    start = values.sum()
    current, most = start, start
    for step in range(steps):
        u = uniforms[step]
        kind = min(int(u[0] * 4), 3)
        a, b = int(u[1] * m), int(u[2] * m)
        if not change(trial, kind, u, a, b):
            copy_line(trial, lines, a)
            copy_line(trial, lines, b)
            continue
        va = line_value(r, known, instances[a], a, slots, cached, trial, w, w.horizon_s, s)
        vb = values[b]
        if a != b and kind != SWAP:
            vb = line_value(r, known, instances[b], b, slots, cached, trial, w, w.horizon_s, s)
        gained = va - values[a]
        if a != b:
            gained += vb - values[b]
        heat = FIRST_TEMPERATURE * COOLING ** (step / steps)
        if gained >= 0.0 or u[5] < math.exp(max(gained / heat, -700.0)):
            values[a] = va
            if a != b:
                values[b] = vb
            copy_line(lines, trial, a)
            copy_line(lines, trial, b)
            current += gained
            if current > most + 1e-12:
                most = current
                for c in range(m):
                    copy_line(best, lines, c)
        else:
            copy_line(trial, lines, a)
            copy_line(trial, lines, b)
    return most, start


@njit
def find_soon(
    r: FleetRows,
    known: KnownColumns,
    instances: IntArray,
    slots: IntArray,
    cached: FloatArray,
    lines: Lines,
    w: Weighing,
    ahead_s: float,
    s: Scratch,
    soon: BoolArray,
) -> None:
    """Mark in ``soon (m, n)`` whom each instance would begin within ``ahead_s``."""
    for c in range(len(instances)):
        i = instances[c]
        if lines.size[c] == 0:
            continue
        line_value(r, known, i, c, slots, cached, lines, w, ahead_s, s)
        k = r.counts[i, fr.ALL]
        for p in range(lines.size[c]):
            phase = s.work.phase[k + p]
            if phase == rs.PREFILLING or phase == rs.DECODING or phase == rs.DONE:
                soon[c, lines.of[c, p]] = True


def plan_lines(
    r: FleetRows,
    known: KnownColumns,
    instances: IntArray,
    slots: IntArray,
    cached: FloatArray,
    w: Weighing,
    ahead_s: float,
    uniforms: FloatArray,
    s: Scratch,
) -> JointPlan:
    """Lines for a cell: ``slots (n,)`` in the order they are to be placed, ``cached (n, m)``.

    ``uniforms (steps, UNIFORMS)``; rows and scratch must have room for all on any one instance.
    """
    m, n = len(instances), len(slots)

    def empty() -> Lines:
        return Lines(np.zeros((m, n), dtype=np.int64), np.zeros(m, dtype=np.int64))

    lines, trial, best = empty(), empty(), empty()
    gain = np.zeros(n)
    list_schedule(r, known, instances, slots, cached, w, lines, s, gain)
    for other in (trial, best):
        other.of[:], other.size[:] = lines.of, lines.size
    value = start = 0.0
    if len(uniforms) and m > 1 and n > 1:
        value, start = search(
            r, known, instances, slots, cached, w, uniforms, lines, trial, best, s
        )
    soon = np.zeros((m, n), dtype=np.bool_)
    find_soon(r, known, instances, slots, cached, best, w, ahead_s, s, soon)
    return JointPlan(best, soon, gain, value, start)
