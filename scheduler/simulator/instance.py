"""One simulated engine: its queue, plans and clock, advanced as far as it is asked to.

`run.simulate` is one of them that is given everything at once; a fleet is several that share a
`Course` and learn of each request when the router sends it. Being stopped in between changes
nothing: a plan falls due by the instance's own events alone.
"""

from __future__ import annotations

import time
from collections import deque
from dataclasses import replace
from typing import Literal

import numpy as np

from lengthwise.data.arrays import FloatArray, IntArray
from lengthwise.data.max_wait import MAX_WAIT_S
from lengthwise.scheduler.fleet.fleet_request import PlanLimits
from lengthwise.scheduler.guards.admission import Action, AdmissionControl
from lengthwise.scheduler.guards.fairness import TenantFairness
from lengthwise.scheduler.plan.pacing import ArrivalRate, ReplanGate
from lengthwise.scheduler.policies.policy import Learns, Policy
from lengthwise.scheduler.problem import NO_PREFIX, Problem, RequestArrays
from lengthwise.scheduler.profile import EngineProfile
from lengthwise.scheduler.simulator import engine as e
from lengthwise.scheduler.simulator.opening_estimates import OpeningEstimates
from lengthwise.scheduler.simulator.prefix_cache import (
    PrefixCacheState,
    cached_tokens,
    empty_cache,
    give_up,
)
from lengthwise.scheduler.simulator.sim_workload import SimWorkload, met_of

PlanCost = Literal["free", "measured"]
NOBODY = np.empty(0, dtype=np.int64)


class Course:
    """Where each request of a workload stands, a row each; instances change it in place.

    ``known`` is what policies are told of the requests, where that is not the workload itself;
    ``openings`` replace their lengths once answers have begun.
    """

    def __init__(
        self,
        workload: SimWorkload,
        known: SimWorkload | None = None,
        openings: OpeningEstimates | None = None,
    ) -> None:
        n = len(workload)
        self.workload = workload
        self.known = workload if known is None else known
        self.openings = openings
        if openings is not None and openings.quantiles.shape[1:] != workload.quantiles.shape:
            raise ValueError(
                f"openings must have quantiles {workload.quantiles.shape} at each time, "
                f"got {openings.quantiles.shape[1:]}"
            )
        self.state = np.zeros((n, 5), dtype=np.int64)
        self.state[:, e.LEFT] = self.state[:, e.PROMPT] = workload.prompt_tokens
        self.state[:, e.ANSWER] = workload.output_tokens
        self.times = np.full((n, 3), np.nan)
        self.queued_s = workload.arrival_s.copy()
        self.yielded = np.zeros(n, dtype=np.bool_)  # queues because a plan took its slot
        self.latest_start_s = np.full(n, np.inf)  # by the last plan

    def begin_again(self, rows: IntArray) -> None:
        """The rows' engine is gone, with all it had done for them."""
        self.state[rows, e.LEFT] = self.state[rows, e.PROMPT]
        self.state[rows, e.GENERATED] = self.state[rows, e.COMPUTED] = 0
        self.times[rows] = np.nan
        self.yielded[rows] = False
        self.latest_start_s[rows] = np.inf

    def rows(self, index: IntArray, cache: PrefixCacheState | None, waiting: bool) -> RequestArrays:
        """The given rows as a policy sees them."""
        known, state = self.known, self.state
        quantiles = known.quantiles[index]
        if self.openings is not None:
            quantiles = self.openings.known(quantiles, index, state[index, e.GENERATED])
        rows = RequestArrays(
            arrival_s=known.arrival_s[index],
            queued_s=self.queued_s[index],
            prompt_tokens=known.prompt_tokens[index].astype(np.float64),
            prefill_left_tokens=state[index, e.LEFT].astype(np.float64),
            generated_tokens=state[index, e.GENERATED].astype(np.float64),
            first_token_s=self.times[index, e.FIRST],
            ttft_s=known.ttft_s[index],
            tpot_s=known.tpot_s[index],
            e2e_s=known.e2e_s[index],
            weight=known.weight[index],
            class_id=known.class_id[index],
            quantiles=quantiles,
        )
        if cache is None:
            return rows
        cached = cache.shared[index].astype(np.float64)
        if waiting:
            cached = cached_tokens(cache, index, state[index, e.LEFT])
        return replace(
            rows,
            prefill_left_tokens=rows.prefill_left_tokens - (cached if waiting else 0.0),
            cached_tokens=cached,
            prefix_id=cache.prefix[index],
            prefix_tokens=cache.shareable[index].astype(np.float64),
        )


class SimInstance:
    """An engine of the profile's kind under a policy; None serves in the order of arrival.

    See `run.simulate` for the options. ``running`` and ``queue`` hold rows of the course, their
    first ``*_count`` entries valid.
    """

    def __init__(
        self,
        course: Course,
        policy: Policy | None,
        profile: EngineProfile,
        *,
        max_wait_s: float = MAX_WAIT_S,
        plan_cost: PlanCost = "free",
        plan_share: float = 0.1,
        fairness: TenantFairness | None = None,
        admission: AdmissionControl | None = None,
        admission_policy: Policy | None = None,
        believed: EngineProfile | None = None,
    ) -> None:
        self.course, self.policy, self.profile = course, policy, profile
        self.max_wait_s, self.plan_cost = max_wait_s, plan_cost
        self.fairness, self.admission, self.admission_policy = fairness, admission, admission_policy
        self.assumed = believed or profile
        n, capacity = len(course.workload), profile.capacity
        self._budget = budget = capacity.max_num_batched_tokens
        self._limits = np.array([capacity.max_num_seqs, capacity.kv_tokens, budget, budget, 1])
        self._coefficients = np.array(profile.scaled_step_time.numbers)
        self.running = np.empty(capacity.max_num_seqs + 1, dtype=np.int64)
        self.queue = np.empty(capacity.max_num_seqs + 64, dtype=np.int64)
        self.running_count = self.queue_count = 0
        self.clock = np.zeros(8)
        self.clock[e.RESTED] = np.inf
        self.cache = _cache(course.workload, profile)
        self.speculation = None
        if profile.speculation is not None:
            self.speculation = e.SpeculationState(
                float(profile.speculation.accepted_tokens),
                1 + profile.speculation.draft_tokens,
                owed=np.zeros(n),
                gained=np.zeros(n, dtype=np.int64),
            )
        self.gate, self.rate = ReplanGate(plan_share), ArrivalRate()
        self.plan_s: list[float] = []
        self.queue_len: list[tuple[float, int]] = []
        self.actions: list[Action] = []
        self.yields = 0
        self._inbox: deque[tuple[float, int]] = deque()
        self._untold: list[int] = []  # ended, and the policy does not know yet
        self._underway = False  # between two of its own events
        self._replan_s = np.inf

    @property
    def now_s(self) -> float:
        """The end of the last step."""
        return float(self.clock[e.NOW])

    @property
    def plan_limits(self) -> PlanLimits:
        """Those of the plan in force."""
        most, _, _, prefill, period = self._limits.tolist()
        return PlanLimits(most, prefill, period)

    @property
    def busy(self) -> bool:
        """Whether anybody is there or on the way."""
        return bool(self.running_count or self.queue_count or self._inbox)

    def offer(self, row: int, at_s: float) -> None:
        """The row reaches this instance at ``at_s``; not before any offered earlier."""
        self._inbox.append((at_s, row))

    def advance(self, until_s: float) -> IntArray:
        """Serve until the first end of a step at or after ``until_s``; the rows that ended."""
        clock, gate, inbox, course = self.clock, self.gate, self._inbox, self.course
        ended = []
        while clock[e.NOW] < until_s and self.busy:
            if self._underway and inbox and inbox[0][0] <= clock[e.NOW]:
                self._close()
            if not self._underway:
                if not self.running_count and not self.queue_count:
                    if inbox[0][0] >= until_s:
                        break
                    clock[e.NOW] = max(clock[e.NOW], inbox[0][0])
                self._open()
            next_s = inbox[0][0] if inbox else np.inf
            before = self.running_count + self.queue_count
            there = NOBODY
            if before:
                there = np.concatenate(
                    [self.running[: self.running_count], self.queue[: self.queue_count]]
                )
            stop_s = np.inf if self.policy is None else gate.not_before_s
            self.running_count, self.queue_count = e.run_until(
                min(next_s, self._replan_s, until_s),
                stop_s,
                self._coefficients,
                self._limits,
                course.state,
                course.times,
                self.running,
                self.running_count,
                self.queue,
                self.queue_count,
                clock,
                course.latest_start_s,
                self.cache,
                self.speculation,
            )
            now_s, over = clock[e.NOW], False
            if self.running_count + self.queue_count < before:
                finish_s = course.times[there, e.FINISH]
                done = ~np.isnan(finish_s)
                ended.append(there[done])
                if self.policy is not None:
                    self._untold += ended[-1].tolist()
                over = bool(now_s >= stop_s and (finish_s[done] == now_s).any())
            left = self.running_count + self.queue_count
            if over or not left or now_s >= next_s or now_s >= self._replan_s:
                self._close()
            else:
                self._underway = True
        return np.concatenate(ended) if ended else NOBODY

    def next_end_s(self) -> float:
        """A time before which nobody ends here; inf with nobody here."""
        parts = [self.running[: self.running_count], self.queue[: self.queue_count]]
        rows = np.concatenate([*parts, np.array([row for _, row in self._inbox], dtype=np.int64)])
        if not len(rows):
            return np.inf
        tokens = self.course.state[rows, e.ANSWER] - self.course.state[rows, e.GENERATED]
        return self.now_s + self._least_s(int(tokens.min()))

    def soonest_end_s(self, row: int, at_s: float) -> float:
        """A time before which the row does not end, offered at ``at_s``."""
        return at_s + self._least_s(int(self.course.state[row, e.ANSWER]))

    def _least_s(self, tokens: int) -> float:
        """Seconds that so many tokens take at the least."""
        a_step = 1.0 if self.speculation is None else np.ceil(self.speculation.accepted)
        return float(self._coefficients[0] * np.ceil(tokens / a_step))

    def split_queue(self) -> tuple[IntArray, IntArray]:
        """Whom the engine preempted, before any plan as it holds work done; and the others."""
        index = self.queue[: self.queue_count]
        course = self.course
        recovers = (course.state[index, e.GENERATED] > 0) & ~course.yielded[index]
        return index[recovers], index[~recovers]

    def kill(self) -> IntArray:
        """The engine is gone; the rows that were there or on the way, for nobody now."""
        inside = [self.running[: self.running_count], self.queue[: self.queue_count]]
        rows = np.concatenate([*inside, np.array([row for _, row in self._inbox], dtype=np.int64)])
        self.running_count = self.queue_count = 0
        self._inbox.clear()
        self._underway = False
        return rows

    def _open(self) -> None:
        """Take in who has arrived and plan if one is due: what stands before a run of steps."""
        now_s, budget = self.now_s, self._budget
        if not self.queue_count:  # whom they were to protect no plan knows any more
            self._limits[0], self._limits[3] = self.profile.capacity.max_num_seqs, budget
            self._limits[4] = 1
        while self._inbox and self._inbox[0][0] <= now_s:
            at_s, row = self._inbox.popleft()
            self._take_in(at_s, row)
            self.gate.mark()
        if self.policy is None:
            self._replan_s = np.inf
            return
        if self.queue_count > 0 and self.gate.due(now_s):
            self._plan(self.policy, now_s)
        self._replan_s = self.gate.next_s() if self.queue_count > 0 else np.inf

    def _close(self) -> None:
        self.course.yielded[self.running[: self.running_count]] = False
        self.gate.mark()
        self._underway = False

    def _take_in(self, at_s: float, row: int) -> None:
        most = self.queue_count + len(self.running) + 1
        if most > len(self.queue):
            grown = np.empty(2 * most, dtype=np.int64)
            grown[: self.queue_count] = self.queue[: self.queue_count]
            self.queue = grown
        self.queue[self.queue_count] = row
        self.queue_count += 1
        self.rate.add(at_s)
        if self.admission is None or (judge := self.admission_policy) is None:
            return
        known = self.course.known
        verdict = self.admission.decide(
            self._picture(self.now_s, *self.split_queue()),
            lambda problem: judge(problem).order,
            int(known.class_id[row]),
        )
        self.actions.append(verdict.action)
        if verdict.action == "shed":
            self.queue_count -= 1
        elif verdict.action == "downgrade":
            for limits_s in (known.ttft_s, known.tpot_s, known.e2e_s):
                limits_s[row] = np.inf

    def _picture(self, now_s: float, recovering: IntArray, waiting: IntArray) -> Problem:
        course, cache, speculation = self.course, self.cache, self.speculation
        return Problem(
            now_s=now_s,
            levels=course.workload.levels,
            waiting=course.rows(waiting, cache, True),
            running=course.rows(self.running[: self.running_count], cache, False),
            capacity=self.assumed.capacity,
            step_time=self.assumed.scaled_step_time,
            max_wait_s=self.max_wait_s,
            arrival_rate_rps=self.rate.rps(now_s),
            recovering=course.rows(recovering, cache, True),
            tokens_per_step=speculation.accepted if speculation else 1.0,
            decode_budget_tokens=speculation.budget_tokens if speculation else 1,
            rested_steps=float(self.clock[e.RESTED]),
        )

    def _plan(self, policy: Policy, now_s: float) -> None:
        course, limits, gate = self.course, self._limits, self.gate
        state, workload = course.state, course.workload
        recovering, plannable = self.split_queue()
        self._tell_outcomes(policy)
        problem = self._picture(now_s, recovering, plannable)
        running = self.running[: self.running_count]
        began = time.perf_counter()
        if self.fairness is not None and workload.tenant_id is not None:
            tenants = workload.tenant_id
            plan = self.fairness.plan(policy, problem, tenants[plannable], tenants[running])
        else:
            plan = policy(problem)
        elapsed_s = time.perf_counter() - began
        self.plan_s.append(elapsed_s)
        self.queue_len.append((now_s, self.queue_count))
        slots, budget = self.profile.capacity.max_num_seqs, self._budget
        limits[0] = min(slots, plan.max_running or slots)
        limits[3] = budget if plan.max_prefill_tokens is None else plan.max_prefill_tokens
        limits[4] = plan.prefill_period or 1
        victims = running[plan.preempt]
        kept = np.delete(running, plan.preempt)
        self.running_count, self.queue_count = len(kept), self.queue_count + len(victims)
        self.running[: self.running_count] = kept
        # their KV memory goes: what they have is computed again when they resume, but for
        # what a prefix cache still holds by then
        if self.cache is not None:
            give_up(self.cache, victims, state[victims, e.COMPUTED])
        state[victims, e.LEFT] = state[victims, e.PROMPT] + state[victims, e.GENERATED]
        state[victims, e.COMPUTED] = 0
        course.queued_s[victims], course.yielded[victims] = now_s, True
        self.yields += len(victims)
        course.latest_start_s[plannable] = np.inf
        if len(plan.latest_start_s):
            course.latest_start_s[plannable] = plan.latest_start_s
        self.queue[: self.queue_count] = np.concatenate(
            [recovering, plannable[plan.order], victims]
        )
        if self.plan_cost == "measured":
            self.clock[e.NOW] += elapsed_s
            gate.planned(now_s, elapsed_s)
        else:
            gate.planned(now_s, policy.nominal_s)

    def _tell_outcomes(self, policy: Policy) -> None:
        course, rows = self.course, np.sort(np.array(self._untold, dtype=np.int64))
        self._untold.clear()
        if not len(rows) or not isinstance(policy, Learns):
            return
        times, tokens = course.times[rows], course.state[rows, e.GENERATED]
        met = met_of(course.workload, rows, times[:, e.FIRST], times[:, e.FINISH], tokens)
        arrivals_s: FloatArray = course.workload.arrival_s[rows]
        for arrival_s, kept in zip(arrivals_s.tolist(), met.tolist(), strict=True):
            policy.finished(arrival_s, kept)


def _cache(workload: SimWorkload, profile: EngineProfile) -> PrefixCacheState | None:
    """The profile's prefix cache, empty; None where it has none."""
    if profile.prefix_cache is None:
        return None
    ids, tokens = workload.prefix_id, workload.prefix_tokens
    if ids is None or tokens is None:
        ids, tokens = np.full(len(workload), NO_PREFIX), np.zeros(len(workload), dtype=np.int64)
    return empty_cache(profile.prefix_cache.block_tokens, profile.capacity.kv_tokens, ids, tokens)
