"""Play a workload on several simulated engines behind the router that ships.

The router is told what a real one would be: states of the instances, every ``state_period_s`` and
``state_delay_s`` late if they come at all; the end of each request when it ends; the death of an
instance when it is found out. What an instance had not begun when it died or began anew is sent
again, what it had begun to answer is lost, as with the engine underneath. Several routers share
the requests as several fronts would: each hears of what the others sent by the states alone.
"""

from __future__ import annotations

import heapq
import time
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np

from lengthwise.data.arrays import IntArray
from lengthwise.data.max_wait import MAX_WAIT_S
from lengthwise.scheduler.fleet.fleet_request import FleetRequest, InstanceState
from lengthwise.scheduler.fleet.fleet_router import Decision, FleetRouter, NoInstanceError
from lengthwise.scheduler.fleet.routing_rules import BY_LEDGER
from lengthwise.scheduler.policies.policy import Policy
from lengthwise.scheduler.problem import NO_PREFIX
from lengthwise.scheduler.simulator import engine as e
from lengthwise.scheduler.simulator.fleet_instance import FleetInstance
from lengthwise.scheduler.simulator.fleet_states import request_of, state_of
from lengthwise.scheduler.simulator.fleet_terms import (
    FleetConditions,
    FleetPlace,
    FleetResult,
)
from lengthwise.scheduler.simulator.instance import Course
from lengthwise.scheduler.simulator.run import check_memory
from lengthwise.scheduler.simulator.sim_workload import SimWorkload

NOWHERE = -1


# kinds of events; at one time in this order
(JOIN, HANG, WAKE, SLOW, REFIT, RESTART, DIE, BROKEN, FOUND_DEAD, DELIVER, STATE, TICK) = range(12)


class _Fleet:
    """The fleet while it runs."""

    def __init__(
        self,
        workload: SimWorkload,
        routers: Sequence[FleetRouter],
        front_of: IntArray,
        places: Sequence[FleetPlace],
        policy_of: Callable[[int], Policy | None],
        conditions: FleetConditions,
        rng: np.random.Generator,
        max_wait_s: float,
    ) -> None:
        n = len(workload)
        self.workload, self.conditions, self.rng = workload, conditions, rng
        self.routers, self.front_of = routers, front_of
        self.places = sorted(places, key=lambda place: place.joins_s)
        self.course = Course(workload)
        self.policy_of, self.max_wait_s = policy_of, max_wait_s
        self.instances = [self.engine(i) for i in range(len(places))]
        self.past: list[tuple[int, FleetInstance]] = []  # lives that a restart ended
        self.epochs = np.zeros(len(places), dtype=np.int64)
        self.stated = np.zeros(len(places), dtype=np.int64)  # states taken in this life
        self.due_s = np.full(len(places), np.inf)  # before that nobody ends there
        self.dead = np.zeros(len(places), dtype=np.bool_)
        self.instance, self.sent_s = np.full(n, NOWHERE, dtype=np.int64), np.full(n, np.nan)
        self.sends, self.lost = np.zeros(n, dtype=np.int64), np.zeros(n, dtype=np.bool_)
        self.decide_s: list[float] = []
        self.ends: list[tuple[float, int]] = []  # of requests, not told to the router yet
        self.unsent: dict[int, list[int]] = {}  # at a dead instance, until that is found out
        self.broken_off: dict[int, list[int]] = {}  # begun when it restarted, likewise
        self.sequence = 0
        self.events: list[tuple[float, int, int, int, InstanceState | None]] = []
        ids = workload.prefix_id
        self.prefixes = np.unique(np.append([], [] if ids is None else ids[ids != NO_PREFIX]))
        self.needs_states = any(router.rule not in BY_LEDGER for router in routers)
        ends_s = [[place.dies_s, place.restarts_s] for place in self.places]
        self.deaths = int(np.isfinite(ends_s).sum())
        self.ticking = False

    def engine(self, i: int) -> FleetInstance:
        """Instance ``i`` as it is when it starts."""
        place = self.places[i]
        return FleetInstance(
            self.course,
            self.policy_of(i),
            place.profile,
            max_wait_s=self.max_wait_s,
            believed=place.believed,
        )

    @property
    def held(self) -> int:
        """Requests that are held back by any router."""
        return sum(router.held for router in self.routers)

    def router_of(self, row: int) -> FleetRouter:
        """Who sends the request."""
        return self.routers[self.front_of[row]]

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
            for at_s, kind in (
                (place.dies_s, DIE),
                (place.hangs_s[0], HANG),
                (place.hangs_s[1], WAKE),
                (place.slows_s, SLOW),
                (place.slows_s + place.refit_s, REFIT),
                (place.restarts_s, RESTART),
            ):
                if np.isfinite(at_s):
                    self.push(at_s, kind, i)
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
        if self.held or self.unsent:
            return True
        if len(self.routers) > 1:  # each learns of the others' ends by states
            return any(len(router.knowledge.ledger) for router in self.routers)
        return self.deaths > 0 and any(instance.busy for instance in self.instances)

    def handle(self, now_s: float, kind: int, i: int, state: InstanceState | None) -> None:
        if kind == JOIN:
            self.join(i, now_s)
        elif kind == DELIVER:
            assert state is not None
            for front, router in enumerate(self.routers):
                router.observe(i, state, self.others(front, state))
            self.look_again(now_s)
        elif kind == STATE:
            if not self.dead[i]:
                self.publish(i, now_s)
                self.push(now_s + self.conditions.state_period_s, STATE, i)
        elif kind == TICK:
            self.catch_up(now_s)
            self.look_again(now_s)
            self.ticking = False
            self.keep_ticking(now_s)
        elif kind == FOUND_DEAD:
            self.catch_up(now_s)
            self.found_dead(i, now_s)
        elif kind == BROKEN:
            self.catch_up(now_s)
            self.send_again(i, now_s)
        elif not self.dead[i]:
            self.catch_up(now_s)
            self.happens(kind, i, now_s)

    def happens(self, kind: int, i: int, now_s: float) -> None:
        """What befalls an instance that lives."""
        if kind == DIE:
            self.die(i, now_s)
        elif kind == RESTART:
            self.restart(i, now_s)
        elif kind == REFIT:
            place, instance = self.places[i], self.instances[i]
            instance.assumed = instance.profile
            if place.believed is not None:
                step_time = place.believed.step_time.slowed(place.slows_by)
                instance.assumed = replace(place.believed, step_time=step_time)
            for router in self.routers:
                router.knowledge.change(i, instance.assumed)
        else:
            self.advance(i, now_s)
            if kind == HANG:
                self.instances[i].hang()
            elif kind == WAKE:
                self.instances[i].wake(now_s)
            else:
                self.instances[i].slow(self.places[i].slows_by)
            self.due_s[i] = self.instances[i].next_end_s()

    def others(self, front: int, state: InstanceState) -> list[FleetRequest]:
        """What an instance describes to a front: requests that it does not know."""
        if len(self.routers) == 1:
            return []
        known = self.routers[front].knowledge.known
        return [
            request_of(self.workload, row)
            for row in state.keys.tolist()
            if self.front_of[row] != front and row not in known
        ]

    def join(self, i: int, now_s: float) -> None:
        place = self.places[i]
        for router in self.routers:
            number = router.add(f"instance-{i}", place.believed or place.profile, now_s)
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
            self.router_of(row).completed(row, finish_s)

    def advance(self, i: int, now_s: float) -> None:
        instance = self.instances[i]
        for row in instance.advance(now_s).tolist():
            heapq.heappush(self.ends, (float(self.course.times[row, e.FINISH]), row))
        self.due_s[i] = instance.next_end_s()

    def publish(self, i: int, now_s: float) -> None:
        c, instance = self.conditions, self.instances[i]
        if instance.hung:
            return
        if instance.now_s < now_s:
            self.advance(i, now_s)
        dark = c.dark_s[0] <= now_s < c.dark_s[1]
        if dark or (c.state_loss > 0.0 and self.rng.random() < c.state_loss):
            return
        taken_s = max(now_s, instance.now_s)
        delay_s = c.state_delay_s
        if c.state_jitter_s > 0.0:
            delay_s += c.state_jitter_s * self.rng.random()
        self.stated[i] += 1
        life = int(self.epochs[i]), int(self.stated[i])
        state = state_of(self.course, instance, self.prefixes, taken_s, life)
        self.push(taken_s + delay_s, DELIVER, i, state)

    def offer(self, row: int, now_s: float) -> None:
        """The request reaches the router."""
        request = request_of(self.workload, row)
        began = time.perf_counter()
        try:
            decisions = self.router_of(row).offer(request, now_s)
        except NoInstanceError:
            self.lost[row] = True
            return
        self.decide_s.append(time.perf_counter() - began)
        self.send(decisions, now_s)
        self.keep_ticking(now_s)

    def keep_ticking(self, now_s: float) -> None:
        if self.held and not self.ticking:
            self.ticking = True
            self.push(now_s + self.conditions.tick_s, TICK, NOWHERE)

    def look_again(self, now_s: float) -> None:
        """What the router holds back may go now."""
        for router in self.routers:
            if router.held:
                self.send(router.release(now_s), now_s)

    def send(self, decisions: Sequence[Decision], now_s: float) -> None:
        for decision in decisions:
            i, row = decision.instance, decision.key
            self.instance[row], self.sent_s[row] = i, now_s
            self.sends[row] += 1
            if self.dead[i]:
                self.unsent.setdefault(i, []).append(row)
            else:
                self.instances[i].offer(row, now_s + self.conditions.hop_s)
                self.due_s[i] = min(self.due_s[i], self.instances[i].soonest_end_s(row, now_s))

    def cut_short(self, i: int, now_s: float) -> tuple[IntArray, IntArray]:
        """The instance loses what it has: the rows begun, which are lost, and the others."""
        self.deaths -= 1
        self.advance(i, now_s)
        self.due_s[i] = np.inf
        times = self.course.times
        cut = {row for at_s, row in self.ends if at_s > now_s and self.instance[row] == i}
        self.ends = [end for end in self.ends if end[1] not in cut]
        heapq.heapify(self.ends)
        rows = np.concatenate([self.instances[i].kill(), np.array(sorted(cut), dtype=np.int64)])
        times[rows] = np.where(times[rows] > now_s, np.nan, times[rows])  # a step cut short
        begun = ~np.isnan(times[rows, e.FIRST])
        self.lost[rows[begun]] = True
        again = np.sort(rows[~begun])
        self.course.begin_again(again)
        return np.sort(rows[begun]), again

    def die(self, i: int, now_s: float) -> None:
        """Whoever has begun to answer there is lost; the others wait until it is found out."""
        _, again = self.cut_short(i, now_s)
        self.dead[i] = True
        self.unsent.setdefault(i, []).extend(again.tolist())
        self.push(now_s + self.conditions.detect_s, FOUND_DEAD, i)

    def found_dead(self, i: int, now_s: float) -> None:
        for router in self.routers:
            router.remove(i)
        self.broken_off.pop(i, None)
        for row in sorted(self.unsent.pop(i, [])):
            self.offer(row, now_s)
        for router in self.routers:
            if not len(router.knowledge.open(now_s)):  # nobody is there to hold them for
                for row in router.held_keys():
                    router.completed(row, now_s)
                    self.lost[row] = True

    def restart(self, i: int, now_s: float) -> None:
        """As a death, but a new life begins at once, and the router is told by states alone."""
        begun, again = self.cut_short(i, now_s)
        self.past.append((i, self.instances[i]))
        self.instances[i] = self.engine(i)
        self.instances[i].clock[e.NOW] = now_s
        self.epochs[i] += 1
        self.stated[i] = 0
        self.broken_off[i], self.unsent[i] = begun.tolist(), again.tolist()
        self.push(now_s + self.conditions.detect_s, BROKEN, i)

    def send_again(self, i: int, now_s: float) -> None:
        """The connections to an instance's earlier life have broken."""
        if i not in self.broken_off:
            return  # it died since
        again = sorted(self.unsent.pop(i))
        for row in [*self.broken_off.pop(i), *again]:
            self.router_of(row).completed(row, now_s)
        for row in again:
            self.offer(row, now_s)


def simulate_fleet(
    workload: SimWorkload,
    router: FleetRouter | Sequence[FleetRouter],
    places: Sequence[FleetPlace],
    policy_of: Callable[[int], Policy | None],
    *,
    conditions: FleetConditions | None = None,
    rng: np.random.Generator | None = None,
    max_wait_s: float = MAX_WAIT_S,
    front_of: IntArray | None = None,
) -> FleetResult:
    """Serve the whole workload behind ``router``, which nobody has used before.

    ``policy_of`` gives the policy of the instance of each number, by the time of joining; None
    serves in the order of arrival without planning. ``rng`` draws which states are lost and how
    late they are. Of several routers ``front_of (n,)`` gives each request's, by default in turn.
    Deterministic when the policies are, whatever this machine does beside.
    """
    if not places:
        raise ValueError("a fleet needs at least one instance")
    for place in places:
        check_memory(workload, place.profile)
    routers = [router] if isinstance(router, FleetRouter) else list(router)
    fronts = np.arange(len(workload)) % len(routers) if front_of is None else np.asarray(front_of)
    if not ((fronts >= 0) & (fronts < len(routers))).all():
        raise ValueError(f"front_of must name one of {len(routers)} routers")
    fleet = _Fleet(
        workload,
        routers,
        fronts,
        places,
        policy_of,
        conditions or FleetConditions(),
        np.random.default_rng(0) if rng is None else rng,
        max_wait_s,
    )
    fleet.play()
    lives = [*fleet.past, *enumerate(fleet.instances)]
    end_s = max(float(instance.clock[e.NOW]) for _, instance in lives)
    steps = np.zeros(len(places), dtype=np.int64)
    for i, instance in lives:
        steps[i] += int(instance.clock[e.STEPS])
    statuses = [one.status(end_s) for one in routers]
    times = fleet.course.times
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
        plan_s=[s for _, instance in lives for s in instance.plan_s],
        steps=steps,
        preemptions=int(sum(instance.clock[e.PREEMPTIONS] for _, instance in lives)),
        end_s=end_s,
        router=statuses[0] if len(routers) == 1 else {"fronts": statuses},
    )
