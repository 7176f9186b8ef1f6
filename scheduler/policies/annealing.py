"""The ``sa`` policy: a plan of four parts, found by annealing on an honest rollout.

1. Forecast: recent requests stand for the arrivals of the next seconds (``plan.forecast``).
2. Rows: what everybody needs, and how sure that is (``plan.rows``).
3. Starts: every rule's order, those between two rules, the selection's, the densest first, and
   the last plan's; each without limits and under the last plan's, with the overdue in front
   (``plan.wait_bound``).
4. Value: each start is played to the horizon (``plan.rollout``, ``plan.value``); the best leads.
5. Annealing over batch limit and prefill limit, over the order where lengths are known, and
   where asked for over slots given up (``plan.search``); never worth less than the best start.
6. Out of sample: where lengths are uncertain, lengths drawn anew choose between what was found and
   what it began with (``plan.out_of_sample``).
7. Promise: what the plan says everybody's chances are, and would be without each of its parts,
   is kept; parts whose promises do not come true are withdrawn (``plan.trust``).
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass, fields, replace
from typing import Any, NamedTuple

import numpy as np

from lengthwise.data.arrays import BoolArray, FloatArray, IntArray
from lengthwise.scheduler.plan import search as s
from lengthwise.scheduler.plan.forecast import ArrivalForecast
from lengthwise.scheduler.plan.jobs import prepare
from lengthwise.scheduler.plan.last_order import LastOrder
from lengthwise.scheduler.plan.out_of_sample import all_known, mean_values
from lengthwise.scheduler.plan.pace import AHEAD_S, StepPace
from lengthwise.scheduler.plan.prices import work_price
from lengthwise.scheduler.plan.rollout_state import END_S, END_STEPS, work_for
from lengthwise.scheduler.plan.rows import Snapshot, snapshot
from lengthwise.scheduler.plan.starts import balanced_order, density_order, selection_order
from lengthwise.scheduler.plan.trust import Trust
from lengthwise.scheduler.plan.value import Objective
from lengthwise.scheduler.plan.wait_bound import find_overdue, in_front, is_old, let_in
from lengthwise.scheduler.policies.rules import RULES, feasible_edf
from lengthwise.scheduler.problem import Plan, Problem, RequestArrays, warm_up_problem

ITERATIONS = 48
NOTHING = np.empty(0, dtype=np.int64)
SLOT_PRICES = (1.0, 4.0, 16.0)
LAST = "last"


@dataclass(frozen=True, slots=True)
class Settings:
    """Knobs of the planner; docs/scheduler.md says what each is worth."""

    horizon: float = 1.0  # of the rollout, in mean objectives (TTFT or e2e) of recent requests
    shortest_horizon_s: float = 8.0
    longest_horizon_s: float = 40.0
    most_waiting: int = 768  # rows that are planned; the rest follow by feasible-edf
    most_expected: int = 384
    start_quantile: float = 0.7  # length level the latest start is computed at
    spread: float = 0.05  # of a predicted time, as a share of how far ahead it is
    tpot_spread: float = 0.03
    latency_price: float = 0.02  # of a request's mean time, in attained requests
    tokens_price: float = 1.0  # of a request's mean work, in attained requests
    backlog_price: float = 5.0  # raises tokens_price when a horizon's worth of work waits
    bound_price: float = 12.0  # and when as much waits as the maximum wait has room for
    head: int = 48  # positions the search rearranges
    reach: int = 128  # positions it draws rows from
    losing: float = 0.02  # chance up to which a running request may lose its slot
    parts: tuple[str, ...] = ("order", "limits", "prefill")  # and "slots": what may be changed
    uncertain_order: bool = False  # whether to search orders where lengths are uncertain, too
    trust: bool = True

    def __post_init__(self) -> None:
        if unknown := set(self.parts) - {"order", "slots", "limits", "prefill"}:
            raise ValueError(f"unknown parts {sorted(unknown)}")
        if not 0 < self.shortest_horizon_s <= self.longest_horizon_s or self.horizon <= 0:
            raise ValueError(
                "need horizon > 0 and 0 < shortest_horizon_s <= longest_horizon_s, got "
                f"{self.horizon}, {self.shortest_horizon_s}, {self.longest_horizon_s}"
            )
        if min(self.most_waiting, self.head, self.reach) < 2 or self.most_expected < 0:
            raise ValueError(
                "need most_waiting, head and reach of at least 2 and most_expected >= 0, got "
                f"{self.most_waiting}, {self.head}, {self.reach}, {self.most_expected}"
            )


@dataclass(frozen=True, slots=True)
class _Start:
    """An order to begin with, under limits; ``kept`` positions at its front are the overdue."""

    name: str
    order: IntArray
    skip_late: bool
    limits: FloatArray
    kept: int


@dataclass(frozen=True, slots=True)
class _Valued:
    """A start as a plan, and what it is worth."""

    start: _Start
    parts: s.Parts
    value: float

    def better(self, other: _Valued | None) -> _Valued:
        """The one of more value, the earlier one where equal."""
        return self if other is None or self.value > other.value else other


class _Leaders(NamedTuple):
    """The best start, the best not of the last plan, the best rule; how many were valued."""

    best: _Valued
    fresh: _Valued
    rule: _Valued
    valued: int


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
        self._limits: tuple[float, float] = (np.inf, np.inf)
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
        began = time.perf_counter()
        self.pace.observe(problem)
        if not len(problem.waiting):
            return Plan(NOTHING)
        self._now_s = problem.now_s
        self._settle(problem)
        planned, rest = self._planned(problem)
        self.forecast.observe(planned)
        horizon_s = self._horizon_s(planned)
        shot, queue = self._snapshot(planned, horizon_s)
        picture = self._picture(planned, shot, horizon_s)
        gap_s = _gap_s(planned, shot)
        starts = self._starts(planned, shot, queue, gap_s)
        leaders = self._leaders(starts, picture, began)
        found, value, steps = self._annealed(planned, shot, picture, leaders.best, began)
        best, start, value, start_value = self._chosen(picture, leaders, found, value)
        best.limits[s.MAX_RUNNING] = let_in(
            best.limits[s.MAX_RUNNING], shot.waiting, planned.waiting.queued_s, problem.now_s,
            problem.max_wait_s, gap_s,
        )  # fmt: skip
        self._remember(planned, shot, picture, leaders.rule.start, start, best)
        waiting = best.order[best.order < shot.expected]
        if start.skip_late:
            late = shot.rows.latest_s[waiting] < shot.now_s
            waiting = np.concatenate([waiting[~late], waiting[late]])
        waiting -= shot.waiting
        engine, (most, prefill) = shot.engine, best.limits
        return Plan(
            order=np.concatenate([rest[0][waiting], rest[1]]),
            cost=-value,
            start_cost=-start_value,
            evaluations=leaders.valued + steps,
            elapsed_s=time.perf_counter() - began,
            preempt=np.flatnonzero(best.given_up),
            max_running=int(most) if most < engine.slots else None,
            max_prefill_tokens=int(prefill) if prefill < engine.batched_tokens else None,
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

    def _settle(self, problem: Problem) -> None:
        """Promises to those who are past their deadlines are broken, whenever they may end."""
        for rows in (problem.waiting, problem.running):
            waited_s = problem.now_s - rows.arrival_s
            unmet = (np.isnan(rows.first_token_s) & (waited_s > rows.ttft_s)) | (
                waited_s > rows.e2e_s
            )
            self.trust.lose(rows.arrival_s[unmet])

    def warm_up(self) -> None:
        """Compile everything on a throw-away twin, so that nothing is remembered of it."""
        twin = AnnealingPolicy(self.settings, iterations=8)
        twin(warm_up_problem())
        twin(warm_up_problem())

    def _planned(self, problem: Problem) -> tuple[Problem, tuple[IntArray, IntArray]]:
        """The problem of the rows worth planning, and (those rows, the others in their order)."""
        n, most = len(problem.waiting), self.settings.most_waiting
        if n <= most:
            return problem, (np.arange(n, dtype=np.int64), NOTHING)
        order = feasible_edf(problem, prepare(problem))
        chosen = np.sort(order[:most])
        return replace(problem, waiting=problem.waiting.take(chosen)), (chosen, order[most:])

    def _snapshot(self, problem: Problem, horizon_s: float) -> tuple[Snapshot, RequestArrays]:
        """Steps 1 and 2: everybody's rows, and those that queue or are expected to."""
        coming = self.forecast.expected(problem, horizon_s, self.settings.most_expected)
        queue = problem.waiting.concatenated(coming)
        before = [] if problem.recovering is None else [problem.recovering]
        everybody = problem.running.concatenated(*before, queue)
        waiting = len(everybody) - len(queue)
        shot = snapshot(
            problem,
            everybody,
            waiting,
            waiting + len(problem.waiting),
            self.settings.start_quantile,
            self.pace.factor,
        )
        return shot, queue

    def _horizon_s(self, problem: Problem) -> float:
        mean_s = self.forecast.mean_objective_s(problem)
        s = self.settings
        return float(np.clip(s.horizon * mean_s, s.shortest_horizon_s, s.longest_horizon_s))

    def _picture(self, problem: Problem, shot: Snapshot, horizon_s: float) -> s.Picture:
        knobs = self.settings
        mean_tokens = max(1.0, float(shot.rows.need[shot.waiting :].mean()))
        objective = Objective(
            knobs.spread,
            knobs.tpot_spread,
            knobs.latency_price,
            work_price(
                shot,
                self.forecast.usual_rps(problem),
                horizon_s,
                problem.max_wait_s,
                knobs.tokens_price,
                knobs.backlog_price,
                knobs.bound_price,
            ),
            mean_tokens * shot.token_s,
            max(float(shot.work_s[shot.waiting :].mean()), 1e-9),
            shot.answer_token_s,
        )
        until_s = problem.now_s + horizon_s
        return s.Picture(
            shot.engine, shot.rows, shot.running, shot.waiting - shot.running, shot.expected,
            problem.now_s, until_s, objective, work_for(len(shot)), np.zeros(len(shot)),
        )  # fmt: skip

    def _starts(
        self, problem: Problem, shot: Snapshot, queue: RequestArrays, gap_s: float
    ) -> Iterator[_Start]:
        """Step 3: the orders that are allowed, the likeliest first, each under every limit."""
        now_s, engine = problem.now_s, shot.engine
        none = np.array([engine.slots, engine.batched_tokens])
        last = np.minimum(none, self._limits)
        under = [none]
        if self._may("limits", now_s) and (last < none).any():
            under.append(last)
        fallbacks = None if self._may("order", now_s) else self._fallbacks(now_s)
        overdue = find_overdue(queue.queued_s, now_s, problem.max_wait_s, gap_s)
        orders = list(self._orders(problem, shot, queue))
        shot.rows.latest_s[shot.waiting :][overdue] = np.inf  # their turn has come, late or not
        for name, order, skip_late in orders:
            if fallbacks is None or name in fallbacks:
                bounded = in_front(order, overdue, queue.queued_s) + shot.waiting
                for limits in under:
                    yield _Start(name, bounded, skip_late, limits, int(overdue.sum()))

    def _orders(
        self, problem: Problem, shot: Snapshot, queue: RequestArrays
    ) -> Iterator[tuple[str, IntArray, bool]]:
        """(name, order of the queue's rows, whether the late are skipped), the likeliest first."""
        asked = replace(problem, waiting=queue, recovering=None)
        jobs = prepare(asked)
        selection = selection_order(shot)
        if (last := self._last.among(queue.arrival_s, selection)) is not None:
            yield LAST, last, True
        yield "selection", selection, True
        yield "density", density_order(shot), True
        for slot_price in SLOT_PRICES:
            yield f"balanced {slot_price:g}", balanced_order(shot, slot_price), True
        for name, rule in RULES.items():
            order = rule(asked, jobs)
            feasible = name.startswith("feasible")
            yield name, order, feasible
            if not feasible:
                yield f"{name}, late ones last", order, True

    def _leaders(self, starts: Iterator[_Start], picture: s.Picture, began: float) -> _Leaders:
        """Step 4: the starts of most value. Out of time, those that are left are not valued."""
        nobody = np.zeros(picture.running, dtype=np.int64)
        best: _Valued | None = None
        fresh: _Valued | None = None
        rule: _Valued | None = None
        valued = 0
        for start in starts:
            if best is not None and self._late(began, 0.5):
                break
            parts = s.Parts(start.order, nobody, start.limits)
            now = _Valued(start, parts, s.value_of(picture, parts, start.skip_late))
            valued += 1
            best = now.better(best)
            if start.name != LAST:
                fresh = now.better(fresh)
            if start.name in RULES:
                rule = now.better(rule)
        assert best is not None
        return _Leaders(best, fresh or best, rule or best, valued)

    def _annealed(
        self,
        problem: Problem,
        shot: Snapshot,
        picture: s.Picture,
        leader: _Valued,
        began: float,
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
        while len(kinds) and done < self.iterations and not self._late(began):
            steps = min(chunk, self.iterations - done)
            share = done / self.iterations, (done + steps) / self.iterations
            s.anneal(
                picture, current, trial, best, values, start.skip_late, start.kept, head, reach,
                kinds, losing, s.temperatures(*share, steps), self.rng.random((steps, s.UNIFORMS)),
            )  # fmt: skip
            done += steps
        return best, float(values[1]), done

    def _chosen(
        self, picture: s.Picture, leaders: _Leaders, found: s.Parts, value: float
    ) -> tuple[s.Parts, _Start, float, float]:
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
        if may_yield:
            kinds.append(s.SLOT)
        return np.array(kinds, dtype=np.int64)

    def _may(self, part: str, now_s: float) -> bool:
        return not self.settings.trust or self.trust.allows(part, now_s)

    def _fallbacks(self, now_s: float) -> tuple[str, ...]:
        """The starts that are left when the searched order may not be."""
        return ("fcfs",) if self.trust.lost(now_s) else tuple(RULES)

    def _late(self, began: float, share: float = 1.0) -> bool:
        return self.budget_s is not None and (time.perf_counter() - began > share * self.budget_s)

    def _remember(
        self,
        problem: Problem,
        shot: Snapshot,
        picture: s.Picture,
        rule: _Start,
        start: _Start,
        best: s.Parts,
    ) -> None:
        """Step 7, and what the next plan starts from; the rule would serve without an order."""
        engine, now_s = shot.engine, problem.now_s
        self._limits = (float(best.limits[0]), float(best.limits[1]))
        self._last.remember(shot.rows.arrival_s[best.order])
        if self.settings.trust:
            real = np.r_[: shot.running, shot.waiting : shot.expected]
            real = real[shot.rows.weight[real] > 0]
            none = np.array([engine.slots, engine.batched_tokens])
            variants = {"order": (best._replace(order=rule.order), rule.skip_late)}
            if (best.limits < none).any():
                variants["limits"] = best._replace(limits=none), start.skip_late
            if best.given_up.any():
                nobody = np.zeros_like(best.given_up)
                variants["slots"] = best._replace(given_up=nobody), start.skip_late
            without = {}
            for part, (parts, skip_late) in variants.items():
                s.value_of(picture, parts, skip_late)
                without[part] = picture.chance[real]
            s.value_of(picture, best, start.skip_late)
            self.trust.promise(now_s, shot.rows.arrival_s[real], picture.chance[real], without)
        soon = picture._replace(until_s=now_s + AHEAD_S)
        s.value_of(soon, best, start.skip_late)
        end = picture.work.end
        if end[END_STEPS] > 0:
            step_s = (end[END_S] - now_s) / end[END_STEPS]
            self.pace.expect(problem, step_s / engine.tokens_per_step)


def _gap_s(problem: Problem, shot: Snapshot) -> float:
    """Time between two slots that come free.

    Those put off are seldom the short ones: while any are, their own lengths say it.
    """
    need = shot.rows.need[shot.waiting : shot.expected]
    old = is_old(problem.waiting.queued_s, problem.now_s, problem.max_wait_s)
    return shot.token_s * float((need[old] if old.any() else need).mean()) / shot.batch


def _may_yield(problem: Problem) -> BoolArray:
    """Running rows that may lose their slots: never twice, nor who waited to the bound for it."""
    running = problem.running
    once = running.queued_s <= running.arrival_s
    return once & (problem.now_s - running.arrival_s <= problem.max_wait_s)
