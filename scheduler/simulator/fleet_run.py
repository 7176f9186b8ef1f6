"""Play a workload on several simulated engines behind the router that ships.

The router is told what a real one would be: states of the instances, every ``state_period_s`` and
``state_delay_s`` late if they come at all; the end of each request when it ends; the death of an
instance when it is found out. What an instance had not begun when it died is sent again, what it
had begun to answer is lost, as with the engine underneath.
"""

from __future__ import annotations

import heapq
import time
from collections.abc import Callable, Sequence

import numpy as np

from lengthwise.scheduler.fleet.fleet_request import FleetRequest, InstanceState
from lengthwise.scheduler.fleet.fleet_router import Decision, FleetRouter, NoInstanceError
from lengthwise.scheduler.fleet.routing_rules import BY_LEDGER
from lengthwise.scheduler.policies.policy import Policy
from lengthwise.scheduler.problem import NO_PREFIX
from lengthwise.scheduler.simulator import engine as e
from lengthwise.scheduler.simulator.fleet_terms import (
    FleetConditions,
    FleetPlace,
    FleetResult,
)
from lengthwise.scheduler.simulator.instance import Course, SimInstance
from lengthwise.scheduler.simulator.prefix_cache import cached_tokens
from lengthwise.scheduler.simulator.run import check_memory
from lengthwise.scheduler.simulator.sim_workload import SimWorkload

NOWHERE = -1


# kinds of events; at one time in this order
JOIN, DIE, FOUND_DEAD, DELIVER, STATE, TICK = range(6)


class _Fleet:
    """The fleet while it runs."""

    def __init__(
        self,
        workload: SimWorkload,
        router: FleetRouter,
        places: Sequence[FleetPlace],
        policy_of: Callable[[int], Policy | None],
        conditions: FleetConditions,
        rng: np.random.Generator,
        max_wait_s: float,
    ) -> None:
        n = len(workload)
        self.workload, self.router, self.conditions, self.rng = workload, router, conditions, rng
        self.places = sorted(places, key=lambda place: place.joins_s)
        self.course = Course(workload)
        self.instances = [
            SimInstance(
                self.course,
                policy_of(i),
                place.profile,
                max_wait_s=max_wait_s,
                believed=place.believed,
            )
            for i, place in enumerate(self.places)
        ]
        self.due_s = np.full(len(places), np.inf)  # before that nobody ends there
        self.dead = np.zeros(len(places), dtype=np.bool_)
        self.instance, self.sent_s = np.full(n, NOWHERE, dtype=np.int64), np.full(n, np.nan)
        self.sends, self.lost = np.zeros(n, dtype=np.int64), np.zeros(n, dtype=np.bool_)
        self.decide_s: list[float] = []
        self.ends: list[tuple[float, int]] = []  # of requests, not told to the router yet
        self.unsent: dict[int, list[int]] = {}  # at a dead instance, until that is found out
        self.sequence = 0
        self.events: list[tuple[float, int, int, int, InstanceState | None]] = []
        ids = workload.prefix_id
        self.prefixes = np.unique(np.append([], [] if ids is None else ids[ids != NO_PREFIX]))
        self.needs_states = router.rule not in BY_LEDGER
        self.deaths = sum(np.isfinite(place.dies_s) for place in self.places)
        self.ticking = False

    def push(self, at_s: float, kind: int, i: int, state: InstanceState | None = None) -> None:
        self.sequence += 1
        heapq.heappush(self.events, (at_s, kind, self.sequence, i, state))

    def play(self) -> None:
        """Everything, to the last request's end."""
        arrivals_s = self.workload.arrival_s.tolist()
        n, arrived = len(arrivals_s), 0
        for i, place in enumerate(self.places):
            if place.joins_s <= 0.0:
                self.join(i, 0.0)
            else:
                self.push(place.joins_s, JOIN, i)
            if np.isfinite(place.dies_s):
                self.push(place.dies_s, DIE, i)
        while arrived < n or self.events:
            next_s = self.events[0][0] if self.events else np.inf
            if arrived < n and arrivals_s[arrived] < next_s:
                now_s = arrivals_s[arrived]
                self.catch_up(now_s)
                self.offer(arrived, now_s)
                arrived += 1
                continue
            now_s, kind, _, i, state = heapq.heappop(self.events)
            if kind == STATE and arrived == n and not self.may_route():
                continue
            self.handle(now_s, kind, i, state)
        for i in np.flatnonzero(~self.dead).tolist():
            self.advance(i, np.inf)
        self.catch_up(np.inf)

    def may_route(self) -> bool:
        """Whether anybody may be sent anywhere after the last arrival."""
        if self.router.held or self.unsent:
            return True
        return self.deaths > 0 and any(instance.busy for instance in self.instances)

    def handle(self, now_s: float, kind: int, i: int, state: InstanceState | None) -> None:
        if kind == JOIN:
            self.join(i, now_s)
        elif kind == DIE:
            self.catch_up(now_s)
            self.die(i, now_s)
        elif kind == FOUND_DEAD:
            self.catch_up(now_s)
            self.found_dead(i, now_s)
        elif kind == DELIVER:
            assert state is not None
            self.router.observe(i, state)
            self.look_again(now_s)
        elif kind == STATE:
            if not self.dead[i]:
                self.publish(i, now_s)
                self.push(now_s + self.conditions.state_period_s, STATE, i)
        else:
            self.catch_up(now_s)
            self.look_again(now_s)
            self.ticking = False
            self.keep_ticking(now_s)

    def join(self, i: int, now_s: float) -> None:
        place = self.places[i]
        number = self.router.add(f"instance-{i}", place.believed or place.profile, now_s)
        assert number == i
        self.instances[i].clock[e.NOW] = now_s
        if self.needs_states:
            period_s = self.conditions.state_period_s
            self.push(now_s + period_s * (i + 1) / len(self.places), STATE, i)
        self.look_again(now_s)

    def catch_up(self, now_s: float) -> None:
        """Every instance is where it would be, and the router knows who has ended by now."""
        for i in np.flatnonzero(self.due_s < now_s).tolist():
            self.advance(i, now_s)
        while self.ends and self.ends[0][0] <= now_s:
            finish_s, row = heapq.heappop(self.ends)
            self.router.completed(row, finish_s)

    def advance(self, i: int, now_s: float) -> None:
        instance = self.instances[i]
        for row in instance.advance(now_s).tolist():
            heapq.heappush(self.ends, (float(self.course.times[row, e.FINISH]), row))
        self.due_s[i] = instance.next_end_s()

    def publish(self, i: int, now_s: float) -> None:
        c, instance = self.conditions, self.instances[i]
        if instance.now_s < now_s:
            self.advance(i, now_s)
        dark = c.dark_s[0] <= now_s < c.dark_s[1]
        if dark or (c.state_loss > 0.0 and self.rng.random() < c.state_loss):
            return
        taken_s = max(now_s, instance.now_s)
        self.push(taken_s + c.state_delay_s, DELIVER, i, self.state_of(instance, taken_s))

    def state_of(self, instance: SimInstance, taken_s: float) -> InstanceState:
        """What the instance says of itself."""
        course, cache = self.course, instance.cache
        running = instance.running[: instance.running_count]
        recovering, waiting = instance.split_queue()
        keys = np.concatenate([running, recovering, waiting])
        left = course.state[keys, e.LEFT].astype(np.float64)
        cached = np.zeros(len(keys))
        prefixes: dict[int, float] = {}
        if cache is not None:
            queued = keys[len(running) :]
            cached[: len(running)] = cache.shared[running]
            cached[len(running) :] = cached_tokens(cache, queued, course.state[queued, e.LEFT])
            left[len(running) :] -= cached[len(running) :]
            there = cache.resident[: len(cache.users)]
            prefixes = {int(self.prefixes[g]): float(there[g]) for g in np.flatnonzero(there)}
        self.sequence += 1
        return InstanceState(
            taken_s=taken_s,
            keys=keys,
            running=len(running),
            recovering=len(recovering),
            generated_tokens=course.state[keys, e.GENERATED].astype(np.float64),
            prefill_left_tokens=left,
            cached_tokens=cached,
            first_token_s=course.times[keys, e.FIRST],
            cached_prefixes=prefixes,
            sequence=self.sequence,
        )

    def request_of(self, row: int) -> FleetRequest:
        w = self.workload
        shared = w.prefix_id is not None and w.prefix_tokens is not None
        return FleetRequest(
            row,
            float(w.arrival_s[row]),
            float(w.prompt_tokens[row]),
            w.quantiles[row],
            float(w.ttft_s[row]),
            float(w.tpot_s[row]),
            float(w.e2e_s[row]),
            float(w.weight[row]),
            int(w.prefix_id[row]) if shared and w.prefix_id is not None else NO_PREFIX,
            float(w.prefix_tokens[row]) if shared and w.prefix_tokens is not None else 0.0,
        )

    def offer(self, row: int, now_s: float) -> None:
        """The request reaches the router."""
        request = self.request_of(row)
        began = time.perf_counter()
        try:
            decisions = self.router.offer(request, now_s)
        except NoInstanceError:
            self.lost[row] = True
            return
        self.decide_s.append(time.perf_counter() - began)
        self.send(decisions, now_s)
        self.keep_ticking(now_s)

    def keep_ticking(self, now_s: float) -> None:
        if self.router.held and not self.ticking:
            self.ticking = True
            self.push(now_s + self.conditions.tick_s, TICK, NOWHERE)

    def look_again(self, now_s: float) -> None:
        """What the router holds back may go now."""
        if self.router.held:
            self.send(self.router.release(now_s), now_s)

    def send(self, decisions: Sequence[Decision], now_s: float) -> None:
        for decision in decisions:
            i, row = decision.instance, decision.key
            self.instance[row], self.sent_s[row] = i, now_s
            self.sends[row] += 1
            if self.dead[i]:
                self.unsent[i].append(row)
            else:
                self.instances[i].offer(row, now_s + self.conditions.hop_s)
                self.due_s[i] = min(self.due_s[i], self.instances[i].soonest_end_s(row, now_s))

    def die(self, i: int, now_s: float) -> None:
        """Whoever has begun to answer there is lost; the others wait until it is found out."""
        self.deaths -= 1
        self.advance(i, now_s)
        self.due_s[i] = np.inf
        times = self.course.times
        cut = [row for at_s, row in self.ends if at_s > now_s and self.instance[row] == i]
        self.ends = [end for end in self.ends if end[1] not in set(cut)]
        heapq.heapify(self.ends)
        rows = np.concatenate([self.instances[i].kill(), np.array(cut, dtype=np.int64)])
        times[rows] = np.where(times[rows] > now_s, np.nan, times[rows])  # a step cut short
        begun = ~np.isnan(times[rows, e.FIRST])
        self.lost[rows[begun]] = True
        again = np.sort(rows[~begun])
        self.course.begin_again(again)
        self.dead[i] = True
        self.unsent[i] = again.tolist()
        self.push(now_s + self.conditions.detect_s, FOUND_DEAD, i)

    def found_dead(self, i: int, now_s: float) -> None:
        self.router.remove(i)
        for row in sorted(self.unsent.pop(i)):
            self.offer(row, now_s)
        if not len(self.router.knowledge.open(now_s)):  # nobody is there to hold them for
            for row in self.router.held_keys():
                self.router.completed(row, now_s)
                self.lost[row] = True


def simulate_fleet(
    workload: SimWorkload,
    router: FleetRouter,
    places: Sequence[FleetPlace],
    policy_of: Callable[[int], Policy | None],
    *,
    conditions: FleetConditions | None = None,
    rng: np.random.Generator | None = None,
    max_wait_s: float = 120.0,
) -> FleetResult:
    """Serve the whole workload behind ``router``, which nobody has used before.

    ``policy_of`` gives the policy of the instance of each number, by the time of joining; None
    serves in the order of arrival without planning. ``rng`` draws which states are lost.
    Deterministic when the policies are, whatever this machine does beside.
    """
    if not places:
        raise ValueError("a fleet needs at least one instance")
    for place in places:
        check_memory(workload, place.profile)
    fleet = _Fleet(
        workload,
        router,
        places,
        policy_of,
        conditions or FleetConditions(),
        np.random.default_rng(0) if rng is None else rng,
        max_wait_s,
    )
    fleet.play()
    times, clocks = fleet.course.times, [instance.clock for instance in fleet.instances]
    end_s = max(float(clock[e.NOW]) for clock in clocks)
    return FleetResult(
        admitted_s=times[:, e.ADMITTED],
        first_token_s=times[:, e.FIRST],
        finish_s=times[:, e.FINISH],
        output_tokens=fleet.course.state[:, e.GENERATED],
        instance=fleet.instance,
        sent_s=fleet.sent_s,
        sends=fleet.sends,
        lost=fleet.lost,
        decide_s=fleet.decide_s,
        plan_s=[s for instance in fleet.instances for s in instance.plan_s],
        steps=np.array([int(clock[e.STEPS]) for clock in clocks]),
        preemptions=int(sum(clock[e.PREEMPTIONS] for clock in clocks)),
        end_s=end_s,
        router=router.status(end_s),
    )
