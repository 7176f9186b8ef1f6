"""The ``sa`` policy: a plan of five parts, found by annealing on an honest rollout.

1. Forecast: recent requests stand for the arrivals of the next seconds (``plan.forecast``).
2. Rows: what everybody needs, and how sure that is (``plan.rollout.rows``);
   ``planning_picture`` has both.
3. Starts: every rule's order, those between two rules, the selection's, the densest first, and
   the last plan's; each without limits and under the last plan's, with the overdue in front
   (``candidate_starts``).
4. Value: each start is played to the horizon (``plan.rollout.rollout``, ``plan.value``); the
   best leads.
5. Annealing over batch limit, prefill limit and prefill period, over the order where lengths are
   known, and where asked for over slots given up (``plan.search``); never worth less than the best
   start.
6. Out of sample: where lengths are uncertain, lengths drawn anew choose between what was found and
   what it began with (``plan.out_of_sample``).
7. Promise: what the plan says everybody's chances are, and would be without each of its parts,
   is kept; parts whose promises do not come true are withdrawn (``promises``,
   ``plan.feedback.trust``).
"""

from __future__ import annotations

import time
from dataclasses import fields
from functools import partial
from typing import Any

import numpy as np

from lengthwise.data.arrays import BoolArray, IntArray
from lengthwise.scheduler.plan import search as s
from lengthwise.scheduler.plan.feedback.pace import StepPace
from lengthwise.scheduler.plan.feedback.trust import Trust
from lengthwise.scheduler.plan.forecast import ArrivalForecast
from lengthwise.scheduler.plan.out_of_sample import all_known, mean_values
from lengthwise.scheduler.plan.prices import overload_lasts
from lengthwise.scheduler.plan.rollout.rows import Snapshot
from lengthwise.scheduler.plan.starts.last_order import LastOrder
from lengthwise.scheduler.plan.starts.wait_bound import are_past, let_in, unless_bound
from lengthwise.scheduler.policies.annealing_settings import Settings
from lengthwise.scheduler.policies.candidate_starts import (
    Leaders,
    Start,
    Valued,
    candidate_starts,
    leaders_of,
)
from lengthwise.scheduler.policies.planning_picture import (
    picture_of,
    rollout_horizon_s,
    slot_gap_s,
    with_arrivals,
    worth_planning,
)
from lengthwise.scheduler.policies.promises import lose_unmet, promise_chances, tokens_by
from lengthwise.scheduler.policies.rules import RULES
from lengthwise.scheduler.problem import Plan, Problem, warm_up_problem

ITERATIONS = 48
NOTHING = np.empty(0, dtype=np.int64)


class AnnealingPolicy:
    """Simulated annealing on the rollout of a whole plan; see the module's head."""

    name = "sa"

    def __init__(
        self,
        settings: Settings | None = None,
        budget_s: float | None = None,
        seed: int = 0,
        iterations: int = ITERATIONS,
    ) -> None:
        if iterations < 0:
            raise ValueError(f"iterations must not be negative, got {iterations}")
        self.settings = settings or Settings()
        self.budget_s = budget_s
        self.nominal_s = 0.02 if budget_s is None else budget_s
        self.iterations = iterations
        self.rng = np.random.default_rng(seed)
        self.forecast = ArrivalForecast()
        self.pace = StepPace()
        self.trust = Trust()
        self._now_s = 0.0
        self._limits: tuple[float, float, float] = (np.inf, np.inf, 1.0)
        self._last = LastOrder()

    @classmethod
    def with_params(
        cls, budget_s: float | None, seed: int, iterations: int = ITERATIONS, **params: Any
    ) -> AnnealingPolicy:
        """From loose parameters; TypeError for one that does not exist."""
        if unknown := set(params) - {f.name for f in fields(Settings)}:
            raise TypeError(f"unknown parameters {sorted(unknown)}")
        return cls(Settings(**params), budget_s, seed, iterations)

    def __call__(self, problem: Problem) -> Plan:
        """The plan that is expected to be worth most."""
        began_s, own_began_s, knobs = time.perf_counter(), time.thread_time(), self.settings
        self.pace.observe(problem)
        if not len(problem.waiting):
            return Plan(NOTHING)
        self._now_s = now_s = problem.now_s
        lose_unmet(self.trust, problem)
        planned, rest = worth_planning(problem, knobs.most_waiting)
        self.forecast.observe(planned)
        horizon_s = rollout_horizon_s(planned, self.forecast, knobs)
        shot, queue = with_arrivals(planned, self.forecast, horizon_s, knobs, self.pace.factor)
        picture = picture_of(planned, shot, horizon_s, self.forecast.usual_rps(planned), knobs)
        gap_s = slot_gap_s(planned, shot)
        overloaded = overload_lasts(shot, planned.arrival_rate_rps)
        limits = self._limits if self._may("limits", now_s) else None
        starts = candidate_starts(
            planned, shot, queue, gap_s, overloaded, self._last, limits, self._allowed(now_s)
        )
        leaders = leaders_of(starts, picture, lambda: self._late(own_began_s, 0.5))
        found, value, steps = self._annealed(planned, shot, picture, leaders.best, own_began_s)
        best, start, value, start_value = self._chosen(picture, leaders, found, value)
        best.limits[s.MAX_RUNNING] = let_in(
            best.limits[s.MAX_RUNNING], shot.waiting, planned.waiting.queued_s, problem.now_s,
            problem.max_wait_s, gap_s,
        )  # fmt: skip
        if are_past(planned.waiting.queued_s, problem.now_s, problem.max_wait_s):
            best.limits[s.MAX_PREFILL], best.limits[s.PREFILL_PERIOD] = np.inf, 1.0
        self._remember(planned, shot, picture, leaders.rule.start, start, best)
        waiting = best.order[best.order < shot.expected]
        latest_start_s = np.full(len(problem.waiting), np.inf)
        if start.skip_late:
            late = shot.rows.latest_s[waiting] < shot.now_s
            waiting = np.concatenate([waiting[~late], waiting[late]])
            last_s = shot.last_chance_s()[shot.waiting : shot.expected]
            last_s[last_s < shot.now_s] = np.inf
            latest_start_s[rest[0]] = unless_bound(
                last_s, planned.waiting.queued_s, problem.max_wait_s
            )
        waiting -= shot.waiting
        engine, (most, prefill, period) = shot.engine, best.limits
        return Plan(
            order=np.concatenate([rest[0][waiting], rest[1]]),
            cost=-value,
            start_cost=-start_value,
            evaluations=leaders.valued + steps,
            elapsed_s=time.perf_counter() - began_s,
            preempt=np.flatnonzero(best.given_up),
            max_running=int(most) if most < engine.slots else None,
            max_prefill_tokens=int(prefill) if prefill < engine.batched_tokens else None,
            prefill_period=int(period) if period > 1.0 else None,
            latest_start_s=latest_start_s,
        )

    def finished(self, arrival_s: float, met: bool) -> None:
        """A request that was planned has ended, with all its objectives met or not."""
        self.trust.finished(arrival_s, met)

    def status(self) -> dict[str, Any]:
        """What the plans promised and what came, and what was learned from it."""
        return {
            "trust": self.trust.status(self._now_s),
            "shortfall": self.trust.shortfall(),
            "step_pace": self.pace.factor,
        }

    def warm_up(self) -> None:
        """Compile everything on a throw-away twin, so that nothing is remembered of it."""
        twin = AnnealingPolicy(self.settings, iterations=8)
        twin(warm_up_problem())
        twin(warm_up_problem())

    def _annealed(
        self,
        problem: Problem,
        shot: Snapshot,
        picture: s.Picture,
        leader: Valued,
        own_began_s: float,
    ) -> tuple[s.Parts, float, int]:
        """Step 5: the best plan found, its value, and the steps taken."""
        start, current = leader.start, s.copied(leader.parts)
        losing = NOTHING
        if "slots" in self.settings.parts and self._may("slots", shot.now_s):
            s.value_of(picture, current, start.skip_late)  # the start's own chances say who loses
            losing = np.flatnonzero(
                (picture.chance[: shot.running] <= self.settings.losing) & _may_yield(problem)
            )
        kinds = self._kinds(picture, shot.now_s, len(losing) > 0)
        best, trial = s.copied(current), s.copied(current)
        values = np.array([leader.value, leader.value])
        queued = len(start.order) - start.kept
        head, reach = min(self.settings.head, queued), min(self.settings.reach, queued)
        done, chunk = 0, self.iterations if self.budget_s is None else 8
        while len(kinds) and done < self.iterations and not self._late(own_began_s):
            steps = min(chunk, self.iterations - done)
            share = done / self.iterations, (done + steps) / self.iterations
            s.anneal(
                picture, current, trial, best, values, start.skip_late, start.kept, head, reach,
                kinds, losing, s.temperatures(*share, steps), self.rng.random((steps, s.UNIFORMS)),
            )  # fmt: skip
            done += steps
        return best, float(values[1]), done

    def _chosen(
        self, picture: s.Picture, leaders: Leaders, found: s.Parts, value: float
    ) -> tuple[s.Parts, Start, float, float]:
        """Step 6: the plan, the start its order is of, its value, and that of the best start."""
        best, fresh = leaders.best, leaders.fresh
        if all_known(picture):
            return found, best.start, value, best.value
        plans = [(found, best.start), (s.copied(best.parts), best.start)]
        if fresh is not best:
            limited = fresh.parts._replace(given_up=found.given_up, limits=found.limits)
            plans += [(s.copied(limited), fresh.start), (s.copied(fresh.parts), fresh.start)]
        values = mean_values(picture, [(p, start.skip_late) for p, start in plans], self.rng)
        chosen = int(np.argmax(values))
        return *plans[chosen], values[chosen], values[1]

    def _kinds(self, picture: s.Picture, now_s: float, may_yield: bool) -> IntArray:
        parts = self.settings.parts
        kinds: list[int] = []
        # what rearranging gains by lengths that are guesses is mostly lost when they are known
        tells = self.settings.uncertain_order or all_known(picture)
        if "order" in parts and tells and self._may("order", now_s):
            kinds += [s.SWAP, s.INSERT, s.BLOCK]
        if "limits" in parts and self._may("limits", now_s):
            kinds.append(s.BATCH)
        if "prefill" in parts and self._may("limits", now_s):
            kinds.append(s.PREFILL)
        if "period" in parts and self._may("limits", now_s):
            kinds.append(s.PERIOD)
        if may_yield:
            kinds.append(s.SLOT)
        return np.array(kinds, dtype=np.int64)

    def _may(self, part: str, now_s: float) -> bool:
        return not self.settings.trust or self.trust.allows(part, now_s)

    def _allowed(self, now_s: float) -> tuple[str, ...] | None:
        """The starts that are left when the searched order may not be; None while it may."""
        return None if self._may("order", now_s) else tuple(RULES)

    def _late(self, own_began_s: float, share: float = 1.0) -> bool:
        """Whether the share of the budget is spent, in processor time of this thread."""
        own_s = time.thread_time() - own_began_s
        return self.budget_s is not None and own_s > share * self.budget_s

    def _remember(
        self,
        problem: Problem,
        shot: Snapshot,
        picture: s.Picture,
        rule: Start,
        start: Start,
        best: s.Parts,
    ) -> None:
        """Step 7, and what the next plan starts from."""
        self._limits = (float(best.limits[0]), float(best.limits[1]), float(best.limits[2]))
        self._last.remember(shot.rows.arrival_s[best.order])
        if self.settings.trust:
            promise_chances(self.trust, shot, picture, best, start, rule)
        self.pace.expect(problem, partial(tokens_by, picture, best, start))


def _may_yield(problem: Problem) -> BoolArray:
    """Running rows that may lose their slots: never twice, nor who waited to the bound for it."""
    running = problem.running
    once = running.queued_s <= running.arrival_s
    return once & (problem.now_s - running.arrival_s <= problem.max_wait_s)
