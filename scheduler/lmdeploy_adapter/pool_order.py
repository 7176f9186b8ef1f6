"""Who gets the next of LMDeploy's request handles in virtual time: a policy's plan, made as things
change.

LMDeploy hands out as many handles as its engine has slots, first come first served, and whoever
has none does not reach the engine: this is where an order has an effect, for both of its engines.
Of a plan the order and the limit on how many run are carried out. Slots that are taken back and
prefill limits are the engine's own business, out of reach from here.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from lengthwise.data.arrays import IntArray
from lengthwise.data.max_wait import MAX_WAIT_S
from lengthwise.scheduler.lmdeploy_adapter.token_clock import TokenClock
from lengthwise.scheduler.plan.pacing import ArrivalRate, ReplanGate
from lengthwise.scheduler.policies.make import make_policy, within_parts
from lengthwise.scheduler.policies.policy import Learns, Policy
from lengthwise.scheduler.problem import Problem
from lengthwise.scheduler.profile import EngineProfile
from lengthwise.scheduler.simulator import engine as e
from lengthwise.scheduler.simulator.instance import Course
from lengthwise.scheduler.simulator.sim_workload import met_of

PLAN_SHARE = 0.1
PARTS = ("order", "limits")  # of a plan, what a pool can carry out


def pool_policy_of(
    name: str, *, budget_s: float | None = None, seed: int = 0, **params: Any
) -> Policy:
    """The policy by name, ``sa`` deciding only what the pool can carry out.

    Raises:
        ValueError: unknown, or asked to decide more.
    """
    return make_policy(name, budget_s=budget_s, seed=seed, **within_parts(name, params, PARTS))


class PoolOrder:
    """The requests without a handle and those with one, as rows of a course.

    Newcomers stand at the back until the next plan. The course says how far everybody is: whoever
    reads the answers tells (`read`), by which the profile's clock is corrected too. Plans are
    paced by the time the policy is expected to take, so that a run does not depend on how busy the
    machine is.
    """

    def __init__(
        self,
        course: Course,
        policy: Policy,
        profile: EngineProfile,
        *,
        max_wait_s: float = MAX_WAIT_S,
        plan_share: float = PLAN_SHARE,
    ) -> None:
        self.course, self.policy, self.profile = course, policy, profile
        self.max_wait_s = max_wait_s
        self.waiting: list[int] = []
        self.running: list[int] = []
        self.plan_s: list[float] = []
        self.queue_len: list[tuple[float, int]] = []
        self._slots = self._most = profile.capacity.max_num_seqs
        self._gate, self._rate = ReplanGate(plan_share), ArrivalRate()
        self.clock = TokenClock()
        self._deferred: list[tuple[float, int]] = []  # when who goes to the end, the next one last
        self._untold: list[int] = []

    def arrive(self, row: int, now_s: float) -> None:
        """The row wants a handle."""
        if not self.waiting:  # whom the limit was to protect no plan knows any more
            self._most = self._slots
        self.waiting.append(row)
        self._rate.add(now_s)
        self._gate.mark()

    def leave(self, row: int) -> None:
        """The row gives its handle back, or no longer wants one."""
        if row in self.running:
            self.running.remove(row)
            self._untold.append(row)
            self.clock.ended(row)
        else:
            self.waiting.remove(row)
        self._gate.mark()

    def read(self, row: int, tokens: int, now_s: float) -> None:
        """So many tokens of the row's answer came."""
        answered(self.course, row, tokens, now_s)
        self.clock.read(row, tokens, now_s)

    def admit(self, now_s: float, free: int) -> list[int]:
        """The rows that get one of the ``free`` handles each; plans first, if a plan is due."""
        if self.waiting and self._gate.due(now_s):
            self._plan(now_s)
        late: dict[int, None] = {}
        while self._deferred and self._deferred[-1][0] < now_s:
            late[self._deferred.pop()[1]] = None
        if late:
            here = set(self.waiting)
            self.waiting = [row for row in self.waiting if row not in late]
            self.waiting += [row for row in late if row in here]
        count = max(0, min(free, self._most - len(self.running)))
        admitted, self.waiting = self.waiting[:count], self.waiting[count:]
        self.running += admitted
        return admitted

    def _plan(self, now_s: float) -> None:
        course = self.course
        self._tell_outcomes()
        waiting, running = (np.array(rows, dtype=np.int64) for rows in (self.waiting, self.running))
        known = course.rows(running, None, False)
        decoding = known.generated_tokens > 0
        context = (known.prompt_tokens + known.generated_tokens)[decoding]
        model = self.profile.scaled_step_time
        self.clock.compare(model, len(context), float(context.sum()))
        problem = Problem(
            now_s=now_s,
            levels=course.workload.levels,
            waiting=course.rows(waiting, None, True),
            running=known,
            capacity=self.profile.capacity,
            step_time=self.clock.corrected(model),
            max_wait_s=self.max_wait_s,
            arrival_rate_rps=self._rate.rps(now_s),
        )
        plan = self.policy(problem)
        self.plan_s.append(plan.elapsed_s)
        self.queue_len.append((now_s, len(waiting)))
        self.waiting = waiting[plan.order].tolist()
        by_latest = plan.by_latest_start()
        late_s = plan.latest_start_s[by_latest].tolist() if len(by_latest) else []
        self._deferred = list(zip(late_s, waiting[by_latest].tolist(), strict=True))
        self._most = min(self._slots, plan.max_running or self._slots)
        self._gate.planned(now_s, self.policy.nominal_s)

    def _tell_outcomes(self) -> None:
        rows: IntArray = np.sort(np.array(self._untold, dtype=np.int64))
        self._untold.clear()
        if not len(rows) or not isinstance(self.policy, Learns):
            return
        course = self.course
        times, tokens = course.times[rows], course.state[rows, e.GENERATED]
        met = met_of(course.workload, rows, times[:, e.FIRST], times[:, e.FINISH], tokens)
        arrivals_s = course.workload.arrival_s[rows]
        for arrival_s, kept in zip(arrivals_s.tolist(), met.tolist(), strict=True):
            self.policy.finished(arrival_s, kept)


def answered(course: Course, row: int, tokens: int, now_s: float) -> None:
    """So many tokens of the row's answer were read; the first come with the prompt computed."""
    state, times = course.state, course.times
    if np.isnan(times[row, e.FIRST]):
        times[row, e.FIRST] = now_s
        state[row, e.LEFT] = 0
        state[row, e.COMPUTED] = state[row, e.PROMPT]
    state[row, e.GENERATED] += tokens
    state[row, e.COMPUTED] = state[row, e.PROMPT] + state[row, e.GENERATED] - 1
    if state[row, e.GENERATED] >= state[row, e.ANSWER]:
        times[row, e.FINISH] = now_s
