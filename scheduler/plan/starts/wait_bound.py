"""The hard bound on waiting: who would otherwise wait too long goes first, oldest first.

Old requests need slots one after another, so each must be admitted early enough for the older
ones before it and the younger ones behind it to keep the bound as well:

    latest_i = min(arrival_i + kept·max_wait, latest_{i+1} - gap),   i from youngest to oldest

where `gap` is the time between two slots that come free. `kept` below 1 leaves a reserve: what a
plan pays in throughput makes the queue longer than arrival order's. Only requests past half of
the bound take part: in lasting overload no order keeps it for everyone, and what has just arrived
may still find the queue drained. Nor is ``latest`` looked ahead for once it is missed while an
overload lasts: who went first then would cost those who can be met, and the next would be as late.
Their turn then comes at the bound, less the reserve.

A plan's limit on the batch may not hold back who reaches the bound within the lead: see ``let_in``;
nor its limit on prompts, or their period, who is past it: see ``are_past``.
"""

from __future__ import annotations

import numpy as np

from lengthwise.data.arrays import BoolArray, FloatArray, IntArray
from lengthwise.scheduler.plan.jobs import Jobs
from lengthwise.scheduler.problem import Problem

_PAST = 1.05  # times the bound
_KEPT = 0.95  # of the bound; the rest is a reserve
_OLD = 0.5  # share of the bound from which a request takes part
_MARGIN = 1.5  # the gap is an estimate, and the next plan comes later
_LEAD = 4.0  # gaps between slots vary: so many ahead of the last moment


def bounded(problem: Problem, jobs: Jobs, order: IntArray) -> tuple[IntArray, int]:
    """A plan's order with the overdue first, and how many they are."""
    queued_s = problem.waiting.queued_s
    return overdue_first(order, queued_s, problem.now_s, problem.max_wait_s, jobs.release_gap_s)


def overdue_first(
    order: IntArray, arrival_s: FloatArray, now_s: float, max_wait_s: float, gap_s: float = 0.0
) -> tuple[IntArray, int]:
    """``order`` with the overdue moved to the front by age, and how many they are.

    A wait is counted from arrival to ``now_s``; arrivals in the future (a clock that stepped
    back) have waited 0.
    """
    overdue = find_overdue(arrival_s, now_s, max_wait_s, gap_s)
    return in_front(order, overdue, arrival_s), int(overdue.sum())


def in_front(order: IntArray, overdue: BoolArray, arrival_s: FloatArray) -> IntArray:
    """``order`` with the ``overdue (n,)`` moved to the front, oldest first."""
    rows = np.flatnonzero(overdue)
    oldest = rows[np.argsort(arrival_s[rows], kind="stable")]
    return np.concatenate([oldest, order[~overdue[order]]])


def is_old(arrival_s: FloatArray, now_s: float, max_wait_s: float) -> BoolArray:
    """Who has waited long enough to take part in the bound, ``(n,)``."""
    old: BoolArray = now_s - arrival_s > _OLD * max_wait_s
    return old


def find_overdue(
    arrival_s: FloatArray, now_s: float, max_wait_s: float, gap_s: float, lasts: bool = False
) -> BoolArray:
    """Who must be admitted now, ``(n,)``; ``lasts`` says that more comes than can be served."""
    overdue = np.zeros(len(arrival_s), dtype=np.bool_)
    old = np.flatnonzero(is_old(arrival_s, now_s, max_wait_s))
    if len(old) == 0:
        return overdue
    old = old[np.argsort(arrival_s[old], kind="stable")]
    gap_s *= _MARGIN
    place = np.arange(len(old)) * gap_s
    by_s = arrival_s[old] + _KEPT * max_wait_s
    behind = (by_s - place)[::-1]
    latest = np.minimum.accumulate(behind)[::-1] + place
    if lasts and now_s > latest[0]:
        latest = by_s
    overdue[old] = now_s + _LEAD * gap_s > latest
    return overdue


def unless_bound(latest_start_s: FloatArray, queued_s: FloatArray, max_wait_s: float) -> FloatArray:
    """Latest starts ``(n,)``, none (inf) of those whose turn comes before, by the bound."""
    return np.where(queued_s + max_wait_s <= latest_start_s, np.inf, latest_start_s)


def are_past(queued_s: FloatArray, now_s: float, max_wait_s: float) -> bool:
    """Whether somebody of ``queued_s (n,)`` waits past the bound, and by more than a plan or two.

    They are first in line, and have a slot as soon as one is free: what holds them is then how
    many prompt tokens may be computed. Earlier it would cost attainment wherever an overload lasts.
    """
    return bool((now_s - queued_s > _PAST * max_wait_s).any())


def let_in(
    most_running: float, running: int, queued_s: FloatArray, now_s: float, max_wait_s: float,
    gap_s: float,
) -> float:  # fmt: skip
    """The limit ``most_running``, or as many more as keep the bound for ``queued_s (n,)``.

    Who reaches it before so many slots have come free as the lead counts is let in now. A batch
    of ``running`` that shrinks to a limit frees no slot for anybody.
    """
    urgent = now_s - queued_s > _KEPT * max_wait_s - _LEAD * _MARGIN * gap_s
    count = int(urgent.sum())
    return max(most_running, float(running + count)) if count else most_running
