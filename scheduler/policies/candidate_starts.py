"""Where the search of ``sa`` begins: orders under limits, as whole plans, and the best of them.

The last plan's order, the selection's, the densest first, those between two rules, three of these
with requests written off whose TPOT a full engine cannot keep, and every rule's; each under the
last plan's limits and without any, with the overdue in front (``plan.starts.wait_bound``).
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np

from lengthwise.data.arrays import FloatArray, IntArray
from lengthwise.scheduler.plan.jobs import prepare
from lengthwise.scheduler.plan.rollout.rows import Snapshot
from lengthwise.scheduler.plan.search import Parts, Picture, no_limits, value_of
from lengthwise.scheduler.plan.starts.last_order import LastOrder
from lengthwise.scheduler.plan.starts.starts import (
    balanced_order,
    density_order,
    selection_order,
    too_fast,
)
from lengthwise.scheduler.plan.starts.wait_bound import find_overdue, in_front
from lengthwise.scheduler.policies.rules import RULES
from lengthwise.scheduler.problem import Problem, RequestArrays

SLOT_PRICES = (1.0, 4.0, 16.0)
LAST = "last"
LEAST_VALUED = 2  # the likeliest order, under the last plan's limits and without any


@dataclass(frozen=True, slots=True)
class Start:
    """An order to begin with, under limits; ``kept`` positions at its front are the overdue."""

    name: str
    order: IntArray
    skip_late: bool
    limits: FloatArray
    kept: int
    limited: bool


@dataclass(frozen=True, slots=True)
class Valued:
    """A start as a plan, and what it is worth."""

    start: Start
    parts: Parts
    value: float

    def better(self, other: Valued | None) -> Valued:
        """The one of more value; where equal the one without limits, or the earlier one."""
        if other is None:
            return self
        better = (self.value, not self.start.limited) > (other.value, not other.start.limited)
        return self if better else other


class Leaders(NamedTuple):
    """The best start, the best not of the last plan, the best rule; how many were valued."""

    best: Valued
    fresh: Valued
    rule: Valued
    valued: int


def candidate_starts(
    problem: Problem,
    shot: Snapshot,
    queue: RequestArrays,
    gap_s: float,
    overloaded: bool,
    last: LastOrder,
    last_limits: tuple[float, float, float] | None,
    allowed: Collection[str] | None,
) -> Iterator[Start]:
    """The ``allowed`` orders (None: all) of ``queue``, the likeliest first, each under every limit.

    There may be no time to value all, and what costs most to miss is the last plan's limits.
    ``last_limits`` is None where limits may not be; ``gap_s`` is the time between two slots that
    come free, ``overloaded`` whether an overload lasts.
    """
    now_s, engine = problem.now_s, shot.engine
    none = no_limits(engine)
    under = [none]
    if last_limits is not None:
        most, prefill, period = last_limits
        limited = np.array([min(most, none[0]), min(prefill, none[1]), period])
        if (limited != none).any():
            under.insert(0, limited)
    overdue = find_overdue(queue.queued_s, now_s, problem.max_wait_s, gap_s, overloaded)
    orders = list(_orders(problem, shot, queue, last))
    shot.rows.latest_s[shot.waiting :][overdue] = np.inf  # their turn has come, late or not
    kept = int(overdue.sum())
    for name, order, skip_late in orders:
        if allowed is None or name in allowed:
            bounded = in_front(order, overdue, queue.queued_s) + shot.waiting
            for limits in under:
                yield Start(name, bounded, skip_late, limits, kept, limits is not none)


def _orders(
    problem: Problem, shot: Snapshot, queue: RequestArrays, last: LastOrder
) -> Iterator[tuple[str, IntArray, bool]]:
    """(name, order of the queue's rows, whether the late are skipped), the likeliest first."""
    asked = replace(problem, waiting=queue, recovering=None)
    jobs = prepare(asked)
    selection = selection_order(shot)
    if (again := last.among(queue.arrival_s, selection)) is not None:
        yield LAST, again, True
    yield "selection", selection, True
    yield "density", density_order(shot), True
    for slot_price in SLOT_PRICES:
        yield f"balanced {slot_price:g}", balanced_order(shot, slot_price), True
    fast = too_fast(shot)
    if fast.any() and not fast.all():
        yield "selection, the fast written off", selection_order(shot, fast), True
        yield "density, the fast written off", density_order(shot, fast), True
        yield "balanced 4, the fast written off", balanced_order(shot, 4.0, fast), True
    for name, rule in RULES.items():
        order = rule(asked, jobs)
        feasible = name.startswith("feasible")
        yield name, order, feasible
        if not feasible:
            yield f"{name}, late ones last", order, True


def leaders_of(starts: Iterator[Start], picture: Picture, late: Callable[[], bool]) -> Leaders:
    """The starts of most value. Once it is ``late``, those that are left are not valued."""
    nobody = np.zeros(picture.running, dtype=np.int64)
    best: Valued | None = None
    fresh: Valued | None = None
    rule: Valued | None = None
    valued = 0
    for start in starts:
        if valued >= LEAST_VALUED and late():
            break
        parts = Parts(start.order, nobody, start.limits)
        now = Valued(start, parts, value_of(picture, parts, start.skip_late))
        valued += 1
        best = now.better(best)
        if start.name != LAST:
            fresh = now.better(fresh)
        if start.name in RULES:
            rule = now.better(rule)
    assert best is not None
    return Leaders(best, fresh or best, rule or best, valued)
