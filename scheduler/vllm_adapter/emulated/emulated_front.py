"""The router before a fleet of emulated engines: it is told what a real one would be, and when.

Ends of requests come when they happen, and an engine's state, the message that our scheduler
publishes, after the first turn that ends once it is due. Stock schedulers publish nothing; rules
that count what was sent need no state.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import numpy as np

from lengthwise.data.arrays import FloatArray
from lengthwise.scheduler.fleet.beginnings import SeenBeginnings
from lengthwise.scheduler.fleet.fleet_request import FleetRequest
from lengthwise.scheduler.fleet.fleet_router import Decision, FleetRouter
from lengthwise.scheduler.fleet.routing_rules import BY_LEDGER
from lengthwise.scheduler.fleet.state_message import Published
from lengthwise.scheduler.profile import EngineProfile

FLEET_KEY = "lw_fleet_key"
STATE_PERIOD_S = 0.2
TICK_S = 0.05  # how often what is held back is looked at again


@dataclass(frozen=True, slots=True)
class EngineRequest:
    """A request to a fleet. ``name`` is its id and its key in the replay table."""

    name: str
    arrival_s: float
    prompt_token_ids: list[int]
    max_tokens: int
    xargs: Mapping[str, Any] = field(default_factory=dict)
    prefix: str | None = None
    prefix_tokens: int = 0


class Publishes(Protocol):
    """An engine as far as the front sees it."""

    at_s: float

    @property
    def busy(self) -> bool:
        """Whether it has anything to do."""
        ...

    def load(self) -> dict[str, Any] | None:
        """What its scheduler publishes; None of one that publishes nothing."""
        ...


class Front:
    """Sends each request on by ``router``, whose instances are the engines, in their order.

    ``levels (q,)`` are those of the ``pred_quantiles`` that requests come with.
    """

    def __init__(
        self,
        router: FleetRouter,
        engines: Sequence[Publishes],
        profiles: Sequence[EngineProfile],
        levels: FloatArray,
        state_period_s: float = STATE_PERIOD_S,
    ) -> None:
        self.router = router
        self._engines = engines
        self._levels = levels
        self._period_s = state_period_s
        self._publish = router.rule not in BY_LEDGER and len(engines) > 1
        self._due_s = [state_period_s * (i + 1) / len(engines) for i in range(len(engines))]
        self._news: list[tuple[float, int, int, dict[str, Any] | None]] = []
        self._told = 0
        self._tick_s = math.inf
        self._requests: dict[int, EngineRequest] = {}
        self._keys: dict[str, int] = {}
        self._seen = SeenBeginnings()
        for i, profile in enumerate(profiles):
            router.add(f"engine-{i}", profile, 0.0)

    def next_s(self) -> float:
        """When the router does something by itself; inf while nothing is held back."""
        return self._tick_s if self.router.held else math.inf

    def offer(self, request: EngineRequest, now_s: float) -> list[tuple[EngineRequest, int]]:
        """A request has come: what is sent to which engine now."""
        self._hear(now_s)
        key = len(self._keys)
        self._keys[request.name] = key
        if self._publish:
            request = replace(request, xargs={**request.xargs, FLEET_KEY: key})
        self._requests[key] = request
        return self._sent(self.router.offer(self._known(request, key), now_s), now_s)

    def look(self, now_s: float) -> list[tuple[EngineRequest, int]]:
        """What was held back and is sent now."""
        self._hear(now_s)
        return self._sent(self.router.release(now_s), now_s)

    def ended(self, name: str, at_s: float) -> None:
        """A request has ended; the router hears of it then."""
        self._tell(at_s, self._keys[name], None)

    def turned(self, index: int) -> None:
        """An engine has ended a turn, and the clock is at its time."""
        engine = self._engines[index]
        if self._publish and engine.at_s >= self._due_s[index]:
            self._take(index, engine.at_s)

    def status(self, now_s: float) -> dict[str, Any]:
        """The router's status, all that happened before included."""
        self._hear(now_s)
        return self.router.status(now_s)

    def _tell(self, at_s: float, number: int, message: dict[str, Any] | None) -> None:
        self._told += 1
        heapq.heappush(self._news, (at_s, self._told, number, message))

    def _take(self, index: int, now_s: float) -> None:
        message = self._engines[index].load()
        self._due_s[index] += self._period_s * (1 + (now_s - self._due_s[index]) // self._period_s)
        if message is not None:
            self._tell(now_s, index, message)

    def _hear(self, now_s: float) -> None:
        """All that has happened by now; an engine at rest is asked now."""
        for index, engine in enumerate(self._engines if self._publish else ()):
            if not engine.busy and engine.at_s <= now_s and self._due_s[index] <= now_s:
                self._take(index, now_s)
        while self._news and self._news[0][0] <= now_s:
            at_s, _, number, message = heapq.heappop(self._news)
            if message is None:
                self.router.completed(number, at_s)
            else:
                published = Published.from_message(message)
                self.router.knowledge.change(number, published.profile)
                self.router.observe(number, published.state(at_s), published.others_at(at_s))

    def _sent(self, decisions: Sequence[Decision], now_s: float) -> list[tuple[EngineRequest, int]]:
        if not self._tick_s > now_s or math.isinf(self._tick_s):
            self._tick_s = now_s + TICK_S
        return [(self._requests.pop(one.key), one.instance) for one in decisions]

    def _known(self, request: EngineRequest, key: int) -> FleetRequest:
        """The request as the front of a server would describe it."""
        said = request.xargs
        quantiles = said.get("pred_quantiles") or np.ones(len(self._levels))
        ttft_s, tpot_s, e2e_s = (
            said.get(f"slo_{name}_ms", math.inf) / 1e3 for name in ("ttft", "tpot", "e2e")
        )
        return FleetRequest(
            key,
            request.arrival_s,
            float(len(request.prompt_token_ids)),
            np.asarray(quantiles, dtype=np.float64),
            ttft_s,
            tpot_s,
            e2e_s,
            1.0,
            *self._seen.note(request.prompt_token_ids),
        )
