"""The router: every request is given an instance, and booked there in the same step.

What a choice rests on depends on how old the knowledge is of at least half of the candidates:

    fresh       the rule itself
    older       least predicted work, by the last states and the ledger
    none yet    least outstanding requests, by the ledger
    no ledger   power of two choices, while what was sent before this router began may still run
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from lengthwise.data.arrays import FloatArray, IntArray
from lengthwise.scheduler.fleet.fleet_request import FleetRequest, InstanceState
from lengthwise.scheduler.fleet.gain import BY_ARRIVAL, BY_DEADLINE, BY_SELECTION
from lengthwise.scheduler.fleet.knowledge import Knowledge
from lengthwise.scheduler.fleet.routing_rules import (
    BY_LEDGER,
    ROUTING_RULES,
    Choice,
    Turns,
    least_outstanding,
    least_work,
    power_of_two,
)
from lengthwise.scheduler.profile import EngineProfile

log = logging.getLogger(__name__)

Rung = Literal["score", "least-work", "least-outstanding", "power-of-two"]
STALE_AFTER_S = 5.0
NO_LEDGER_S = 1.0
EVER_S = -1e300
# how instances of a policy serve, as far as the score is concerned; else BY_SELECTION
ORDERS = {"fcfs": BY_ARRIVAL, "edf": BY_DEADLINE, "feasible-edf": BY_DEADLINE}


class NoInstanceError(RuntimeError):
    """There is no instance to send to."""


@dataclass(frozen=True, slots=True)
class Decision:
    """Where a request goes, by which rung, and what the score said: expected attained weight
    that the fleet gains, and the request's own chance."""

    key: int
    instance: int
    rung: Rung
    gain: float | None = None
    chance: float | None = None


class FleetRouter:
    """Chooses and books by a rule of ROUTING_RULES; one thread, all times arguments.

    ``policy`` is the one that the instances order their queues by, which the score reckons with.
    ``began_s`` is when this router started beside instances that may have had requests by then;
    None where all of them are known to be empty. Raises ValueError for an unknown rule.
    """

    def __init__(
        self,
        levels: FloatArray,
        rule: str = "gain",
        *,
        policy: str = "sa",
        rng: np.random.Generator | None = None,
        began_s: float | None = None,
    ) -> None:
        if rule not in ROUTING_RULES:
            raise ValueError(f"unknown router {rule!r}; known are {', '.join(ROUTING_RULES)}")
        self.rule = rule
        self.knowledge = Knowledge(levels, ORDERS.get(policy, BY_SELECTION))
        self.knowledge.remembers_sent = rule == "prefix"
        self._choose = ROUTING_RULES[rule]
        self._turns = Turns(np.random.default_rng(0) if rng is None else rng)
        self._began_s = began_s
        self.decisions: Counter[str] = Counter()
        self.errors = 0

    def add(self, name: str, profile: EngineProfile, now_s: float) -> int:
        """An instance joins; its number."""
        return self.knowledge.add(name, profile, now_s)

    def remove(self, instance: int) -> list[int]:
        """An instance is gone; the keys of what was sent there and has not ended."""
        return self.knowledge.remove(instance)

    def observe(
        self, instance: int, state: InstanceState, others: Sequence[FleetRequest] = ()
    ) -> list[int]:
        """An instance's state has come; the keys that its restart has lost."""
        return self.knowledge.observe(instance, state, others)

    def completed(self, key: int, now_s: float) -> None:
        """A request has ended, well or not."""
        self.knowledge.completed(key, now_s)

    @property
    def held(self) -> int:
        """Requests that are held back here: none, where each is sent as it comes."""
        return 0

    def held_keys(self) -> list[int]:
        """Those requests."""
        return []

    def offer(self, request: FleetRequest, now_s: float) -> list[Decision]:
        """A request has come; what is sent now. NoInstanceError where no instance is open."""
        return [self.route(request, now_s)]

    def release(self, now_s: float) -> list[Decision]:
        """What is held back and may go now."""
        return []

    def route(self, request: FleetRequest, now_s: float) -> Decision:
        """Choose an instance and book the request there; NoInstanceError where none is open."""
        among = self.knowledge.open(now_s)
        if not len(among):
            raise NoInstanceError("no instance is alive and open to requests")
        self.knowledge.meet(request)
        rung, choice = self.chosen(request, among, now_s)
        self.knowledge.send(request, choice.instance, now_s)
        return Decision(request.key, choice.instance, rung, choice.gain, choice.chance)

    def chosen(self, request: FleetRequest, among: IntArray, now_s: float) -> tuple[Rung, Choice]:
        """The choice for a request that was met, by the highest rung the knowledge allows."""
        rung = self.rung(among, now_s)
        rules = {
            "score": self._choose,
            "least-work": least_work,
            "least-outstanding": least_outstanding,
            "power-of-two": power_of_two,
        }
        try:
            choice = rules[rung](self.knowledge, request, among, now_s, self._turns)
        except Exception:  # advice: a request is served whatever the score does
            log.exception("the router's rule failed; the fewest outstanding requests decide")
            self.errors += 1
            rung = "least-outstanding"
            choice = least_outstanding(self.knowledge, request, among, now_s, self._turns)
        self.decisions[rung] += 1
        return rung, choice

    def rung(self, among: IntArray, now_s: float) -> Rung:
        """What a choice may rest on now."""
        if self.rule in BY_LEDGER or len(among) == 1:
            return "score"
        if self.knowledge.are_heard(among, now_s - STALE_AFTER_S):
            return "score"
        if self.knowledge.are_heard(among, EVER_S):
            return "least-work"
        if self._began_s is not None and now_s - self._began_s < NO_LEDGER_S:
            return "power-of-two"
        return "least-outstanding"

    def status(self, now_s: float) -> dict[str, Any]:
        """Instances and decisions as plain values."""
        k = self.knowledge
        backlogs_s, silent = k.backlogs_s(now_s), k.silent(now_s)
        return {
            "router": self.rule,
            "decisions": dict(self.decisions),
            "errors": self.errors,
            "lost_bookings": k.lost_bookings,
            "unknown_rows": k.unknown_rows,
            "instances": [
                {
                    "name": m.name,
                    "alive": m.alive,
                    "draining": m.alive and not bool(k.usable[i]),
                    "silent": bool(silent[i]),
                    "state_age_s": now_s - float(h) if np.isfinite(h := k.heard_s[i]) else None,
                    "outstanding": int(k.counts[i]),
                    "work_s": float(backlogs_s[i]),
                }
                for i, m in enumerate(k.members)
            ],
        }
