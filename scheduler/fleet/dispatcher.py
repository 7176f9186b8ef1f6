"""The router in an event loop: instances by name, states as they come, callers that may wait.

What an adapter needs beside this is a way to send a request to the instance that `choose` names,
and to pass on what instances publish.
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from lengthwise.scheduler.fleet.fleet_request import FleetRequest
from lengthwise.scheduler.fleet.fleet_router import Decision, FleetRouter
from lengthwise.scheduler.fleet.state_message import LagGauge, Published, PublishedRow
from lengthwise.scheduler.profile import EngineProfile

log = logging.getLogger(__name__)

RELEASE_PERIOD_S = 0.05  # between looks at what is held back


@dataclass(slots=True)
class _Instance:
    number: int
    lag: LagGauge
    epoch: int | None = None
    about: Mapping[str, Any] | None = None


class Dispatcher:
    """One router for one event loop; not thread-safe.

    ``profile`` is assumed of an instance until it or, before it, one of its peers says their own.
    """

    def __init__(
        self,
        router: FleetRouter,
        profile: EngineProfile,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.router = router
        self._profile = profile
        self._clock = clock
        self._instances: dict[str, _Instance] = {}
        self._names: dict[int, str] = {}
        self._waiting: dict[int, asyncio.Future[Decision]] = {}
        self._timer: asyncio.TimerHandle | None = None
        self.malformed = 0  # states that could not be read

    @property
    def names(self) -> Collection[str]:
        """The instances that are there."""
        return self._instances.keys()

    def keep(self, names: Iterable[str]) -> None:
        """These instances are there now: the others have left, new ones join."""
        present = list(names)
        for gone in self._instances.keys() - set(present):
            self.leave(gone)
        for name in present:
            if name not in self._instances:
                self.join(name)

    def join(self, name: str) -> None:
        """An instance is there; nothing is known of what it holds."""
        number = self.router.add(name, self._profile, self._clock())
        self._instances[name] = _Instance(number, LagGauge())
        self._names[number] = name

    def leave(self, name: str) -> None:
        """An instance is gone; who was sent there learns that from the sending itself."""
        instance = self._instances.pop(name, None)
        if instance is not None:
            del self._names[instance.number]
            self.router.remove(instance.number)
            self._settle()

    def heard(self, name: str, message: Mapping[str, Any], received_s: float | None = None) -> None:
        """What the instance published came at ``received_s`` (None: now). Never raises."""
        instance = self._instances.get(name)
        if instance is None:
            return
        try:
            published = Published.from_message(message)
            now_s = self._clock() if received_s is None else received_s
            if instance.epoch != published.epoch:
                instance.epoch, instance.lag = published.epoch, LagGauge()
            taken_s = now_s - instance.lag.lag_s(published.at_s, now_s)
            self.router.knowledge.change(instance.number, published.profile)
            if published.profile != self._profile:
                self._profile = published.profile
                self.router.knowledge.presume(self._profile)
            self.router.observe(
                instance.number, published.state(taken_s), published.others_at(taken_s)
            )
            instance.about = published.about
        except Exception as error:  # a request is routed with what was known before
            self.malformed += 1
            if self.malformed % 1000 == 1:
                log.warning("state of %s (%d): %r", name, self.malformed, error)
        self._settle()

    async def choose(self, request: FleetRequest) -> str:
        """The instance to send the request to, where it is booked until `ended`.

        Waits while the router holds it back. NoInstanceError where no instance is open.
        """
        decisions = self.router.offer(request, self._clock())
        own = next((d for d in decisions if d.key == request.key), None)
        self._tell(decisions)
        if own is None:
            waiting = asyncio.get_running_loop().create_future()
            self._waiting[request.key] = waiting
            self._look_again()
            try:
                own = await waiting
            except BaseException:
                self.ended(request.key)
                raise
            finally:
                self._waiting.pop(request.key, None)
        return self._names[own.instance]

    def follow(self, request: FleetRequest, name: str) -> None:
        """The request goes to this instance whatever the router would say; booked until `ended`."""
        instance = self._instances.get(name)
        if instance is not None:
            knowledge = self.router.knowledge
            knowledge.meet(request)
            knowledge.send(request, instance.number, self._clock())

    def ended(self, key: int) -> None:
        """The request has ended, well or not, or was not sent after all."""
        self.router.completed(key, self._clock())
        self._settle()

    def status(self) -> dict[str, Any]:
        """The router's status, its instances with what they say of themselves."""
        found = self.router.status(self._clock())
        said = {name: instance.about for name, instance in self._instances.items()}
        present = [
            one | {"about": said[one["name"]]}
            for one in found["instances"]
            if one["alive"] and one["name"] in said
        ]
        return found | {
            "instances": present,
            "held": self.router.held,
            "malformed_states": self.malformed,
        }

    def _settle(self) -> None:
        if self.router.held:
            self._tell(self.router.release(self._clock()))

    def _tell(self, decisions: Iterable[Decision]) -> None:
        for decision in decisions:
            waiting = self._waiting.get(decision.key)
            if waiting is not None and not waiting.done():
                waiting.set_result(decision)

    def _look_again(self) -> None:
        if self._timer is None:
            loop = asyncio.get_running_loop()
            self._timer = loop.call_later(RELEASE_PERIOD_S, self._look)

    def _look(self) -> None:
        self._timer = None
        self._settle()
        if self._waiting:
            self._look_again()


def warm_up(router: FleetRouter, profile: EngineProfile) -> None:
    """Compile what the router runs, on a router that nobody uses afterwards.

    That takes seconds once on a machine; a request must not be the one to wait for it.
    """
    k = router.knowledge
    length = np.full(len(k.known.levels), 50.0)
    for i in (router.add("a", profile, 0.0), router.add("b", profile, 0.0)):
        keys = range(10 * i, 10 * i + 4)
        for key in keys:
            other = FleetRequest(key, 0.0, 20.0, length, e2e_s=5.0)
            k.meet(other)
            k.send(other, i, 0.0)
        message = Published(
            1, 1, 0.0, profile, [PublishedRow(key, 1.0, 0.0, 0.0, 0.1) for key in keys], 2
        )
        router.observe(i, Published.from_message(message.to_message()).state(0.1))
    for key in range(100, 104):
        router.offer(FleetRequest(key, 0.2, 20.0, length, e2e_s=5.0), 0.2)
    router.release(0.4)
    for key in (0, 100, 101):
        router.completed(key, 0.5)
    router.status(0.5)


def figures(status: Mapping[str, Any]) -> Iterable[tuple[str, dict[str, float]]]:
    """Of each instance of a `Dispatcher.status` its name and what a gauge may show."""
    for one in status["instances"]:
        age_s = one["state_age_s"]
        yield (
            one["name"],
            {
                "outstanding": float(one["outstanding"]),
                "work_s": float(one["work_s"]),
                "state_age_s": math.inf if age_s is None else float(age_s),
            },
        )
