"""What a request gains on an instance and costs those there: two rollouts, with it and without.

    gain = value of the instance's plan with the newcomer - value without

The value is the planner's (`plan.value`): the expected attained weight of everybody there, those
who run included, less a small price of latency. The order is a cheap one of the kind the instance
serves in, under the limits of the plan in force there. Compiled for all candidates at once, since
handing the arrays over costs as much as a rollout.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from lengthwise.data.arrays import FloatArray, IntArray, njit
from lengthwise.scheduler.fleet import fleet_rows as fr
from lengthwise.scheduler.fleet.fleet_rows import FleetRows, engine_at, rows_at, work_of, write_row
from lengthwise.scheduler.fleet.known_requests import PROMPT, KnownColumns
from lengthwise.scheduler.plan.rollout.rollout import rollout
from lengthwise.scheduler.plan.rollout.rollout_state import Work, work_for
from lengthwise.scheduler.plan.search import MAX_PREFILL, MAX_RUNNING, PREFILL_PERIOD
from lengthwise.scheduler.plan.starts.selection import select
from lengthwise.scheduler.plan.value import Objective, worth

BY_ARRIVAL, BY_SELECTION, BY_DEADLINE = 0, 1, 2
TPOT_SPREAD, LATENCY_PRICE = 0.15, 0.02
# of a met request: gains that differ by less are equal. The planner serves better than the order
# that stands in for its plan, by more than most gains differ.
NEAR, NEAR_OF_PLANS = 0.02, 0.1
VALID_S = 0.1  # of an instance's value where nothing has changed there: horizons are of seconds
# what is found of a candidate
GAIN, CHANCE, FIRST_S, FINISH_S, WORK_S = range(5)


class Weighing(NamedTuple):
    """How outcomes are valued: now, how far ahead, the instances' order, and the mean request."""

    now_s: float
    horizon_s: float
    order: int
    mean_prompt: float
    mean_need: float
    spread: float


class Scratch(NamedTuple):
    """Of rollouts of at most as many rows: work space, orders, and chances."""

    work: Work
    order: IntArray
    given_up: IntArray
    chance: FloatArray


def scratch_for(rows: int) -> Scratch:
    """Space for instances of so many rows."""
    whole = np.zeros(rows, dtype=np.int64)
    return Scratch(work_for(rows), whole.copy(), whole.copy(), np.zeros(rows))


@njit
def queue_order(r: FleetRows, i: int, k: int, kind: int, now_s: float, order: IntArray) -> int:
    """The order that the instance's ``k`` rows wait in, those who run left out; how many they are.

    BY_DEADLINE: who can still be met, by deadline, then the rest. BY_SELECTION is
    `plan.starts.starts.selection_order`: whom the engine's time suffices for, by latest start;
    then who can still be met; then the shortest.
    """
    first = r.counts[i, fr.RUNNING] + r.counts[i, fr.RECOVERING]
    n = k - first
    if kind == BY_ARRIVAL or n < 2:
        for p in range(n):
            order[p] = first + p
        return n
    latest_s, work_s, value = np.empty(n), np.empty(n), np.empty(n)
    for p in range(n):
        latest_s[p] = r.columns.latest_s[i, first + p]
        work_s[p] = work_of(r, i, first + p)
        value[p] = r.columns.weight[i, first + p] if latest_s[p] >= now_s else 0.0
    if kind == BY_DEADLINE:
        due_s = np.empty(n)
        for p in range(n):
            due_s[p] = min(r.columns.ttft_by_s[i, first + p], r.columns.e2e_by_s[i, first + p])
        by_due = np.argsort(due_s, kind="mergesort")
        at = 0
        for wanted in range(2):
            for p in range(n):
                if (latest_s[by_due[p]] >= now_s) == (wanted == 0):
                    order[at] = first + by_due[p]
                    at += 1
        return n
    by_latest = np.argsort(latest_s, kind="mergesort")
    taken, _ = select(latest_s, work_s, value, by_latest, now_s, 1.0)
    at = 0
    for wanted in range(2):
        for p in range(n):
            row = by_latest[p]
            if value[row] > 0.0 and (taken[row] > 0.0) == (wanted == 0):
                order[at] = first + row
                at += 1
    by_work = np.argsort(work_s, kind="mergesort")
    for p in range(n):
        if value[by_work[p]] <= 0.0:
            order[at] = first + by_work[p]
            at += 1
    return n


@njit
def objective_at(r: FleetRows, i: int, w: Weighing) -> Objective:
    """How outcomes on the instance are weighed."""
    figures = r.figures[i]
    mean_work_s = (
        r.engines[i, fr.PREFILL_TOKEN_S] * w.mean_prompt + figures[fr.ANSWER_TOKEN_S] * w.mean_need
    )
    return Objective(
        w.spread,
        TPOT_SPREAD,
        LATENCY_PRICE,
        0.0,
        max(figures[fr.TOKEN_S] * w.mean_need, 1e-9),
        max(mean_work_s, 1e-9),
        figures[fr.ANSWER_TOKEN_S],
    )


@njit
def value_at(
    r: FleetRows, i: int, k: int, order: IntArray, until_s: float, skip_late: bool, o: Objective,
    s: Scratch,
) -> float:  # fmt: skip
    """Value of the instance's ``k`` rows served in ``order``; ``s`` then holds the outcome."""
    engine, rows = engine_at(r, i), rows_at(r, i, k)
    running, recovering = r.counts[i, fr.RUNNING], r.counts[i, fr.RECOVERING]
    begin_s = r.figures[i, fr.BEGIN_S]
    given_up, limits = s.given_up[:running], r.limits[i]
    rollout(
        engine, rows, running, recovering, r.counts[i, fr.STATED], order, given_up,
        min(engine.slots, limits[MAX_RUNNING]), min(engine.batched_tokens, limits[MAX_PREFILL]),
        limits[PREFILL_PERIOD], np.inf, skip_late, begin_s, until_s, s.work,
    )  # fmt: skip
    return worth(
        engine, rows, running, recovering, order, given_up, begin_s, until_s, o, s.work, s.chance
    )


@njit
def value_without(r: FleetRows, i: int, w: Weighing, s: Scratch) -> float:
    """Value of the instance's plan as it is: found anew where it has changed or is old."""
    v = r.valued[i]
    if not 0.0 <= w.now_s - v[fr.VALUED_S] <= VALID_S:  # never valued, too
        v[fr.VALUED_S] = w.now_s
        v[fr.UNTIL_S] = max(w.now_s, r.figures[i, fr.BEGIN_S]) + w.horizon_s
        v[fr.MEAN_PROMPT], v[fr.MEAN_NEED] = w.mean_prompt, w.mean_need
        v[fr.VALUE] = value_of(r, i, r.counts[i, fr.ALL], w, s)
    return float(v[fr.VALUE])


@njit
def value_of(r: FleetRows, i: int, k: int, w: Weighing, s: Scratch) -> float:
    """Value of the instance's ``k`` rows in the order it serves in, seen as it was valued."""
    v = r.valued[i]
    seen = Weighing(
        v[fr.VALUED_S], w.horizon_s, w.order, v[fr.MEAN_PROMPT], v[fr.MEAN_NEED], w.spread
    )
    n = queue_order(r, i, k, w.order, seen.now_s, s.order)
    o = objective_at(r, i, seen)
    return value_at(r, i, k, s.order[:n], v[fr.UNTIL_S], w.order != BY_ARRIVAL, o, s)


@njit(nogil=True)
def gains(
    r: FleetRows,
    known: KnownColumns,
    candidates: IntArray,
    slot: int,
    cached: FloatArray,
    w: Weighing,
    s: Scratch,
    enough: float,
    found: FloatArray,
) -> int:
    """``found (c, 5)``: gain, own chance, first token, finish and work of request ``slot`` on each.

    ``cached (c,)`` tokens it would find there. It is then the row after the last of each. The
    others are not asked where the first gives ``enough``; how many were.
    """
    prompt = known.figures[slot, PROMPT]
    for c in range(len(candidates)):
        i = candidates[c]
        k = r.counts[i, fr.ALL]
        without = value_without(r, i, w, s)
        write_row(
            r, known, i, k, slot, w.now_s, 0.0, prompt - cached[c], cached[c], np.nan, -1.0
        )  # fmt: skip
        value = value_of(r, i, k + 1, w, s)
        r.valued[i, fr.WITH], r.valued[i, fr.WITH_SLOT] = value, slot
        first_s = s.work.first_s[k]
        found[c, GAIN] = value - without
        found[c, CHANCE] = s.chance[k]
        found[c, FIRST_S] = np.inf if np.isnan(first_s) else first_s
        found[c, FINISH_S] = s.work.finish_s[k]
        found[c, WORK_S] = work_of(r, i, k)
        if c == 0 and found[c, GAIN] >= enough:
            return 1
    return len(candidates)


@njit
def book_row(
    r: FleetRows, known: KnownColumns, i: int, slot: int, now_s: float, cached: float
) -> float:
    """Request ``slot`` is on its way to instance ``i``; its work there in seconds."""
    k = r.counts[i, fr.ALL]
    prompt = known.figures[slot, PROMPT]
    write_row(r, known, i, k, slot, now_s, 0.0, prompt - cached, cached, np.nan, -1.0)
    r.counts[i, fr.ALL] = k + 1
    if r.valued[i, fr.WITH_SLOT] == slot:
        r.valued[i, fr.VALUE], r.valued[i, fr.WITH_SLOT] = r.valued[i, fr.WITH], np.nan
    else:
        r.valued[i] = np.nan
    work_s = work_of(r, i, k)
    r.figures[i, fr.BOOKED_WORK_S] += work_s
    r.figures[i, fr.KV_USED] += r.columns.target[i, k] - r.columns.shared[i, k]
    return float(work_s)


@njit
def backlogs_s(r: FleetRows, now_s: float, out: FloatArray) -> None:
    """Seconds of work left on each instance ``(m,)``, reckoned forward from its last state."""
    for i in range(len(out)):
        f = r.figures[i]
        passed_s = max(0.0, now_s - f[fr.BEGIN_S]) if f[fr.BEGIN_S] > -np.inf else 0.0
        seen_s = max(0.0, f[fr.SEEN_WORK_S])
        done_s = passed_s * max(f[fr.PACE], 0.0)
        # what was sent since is begun when the rest leaves room
        over_s = max(0.0, done_s - seen_s)
        out[i] = max(0.0, seen_s - done_s) + max(0.0, f[fr.BOOKED_WORK_S] - over_s)
