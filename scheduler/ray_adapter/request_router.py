"""The request router that Ray Serve runs beside every handle to the instances.

Serve calls it on an event loop of its own; the front, in the same process, finds it by
`router_list`. Its choice is sent as the only replica of the first rank: within a rank Serve would
look for the shortest queue itself.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Mapping, Sequence
from typing import Any

from ray.serve.request_router import PendingRequest, ReplicaID, RequestRouter, RunningReplica

from lengthwise.scheduler.fleet.fleet_request import FleetRequest
from lengthwise.scheduler.fleet.make_router import LATE
from lengthwise.scheduler.ray_adapter.forwarded import Forwarded
from lengthwise.scheduler.ray_adapter.router_list import register
from lengthwise.scheduler.serving.api.api_metrics import api_metrics
from lengthwise.scheduler.serving.settings import make_settings
from lengthwise.scheduler.vllm_adapter.api.instances.fleet_desk import FleetDesk

logger = logging.getLogger("ray.serve")

STATS_KEY = "lengthwise"  # of what a replica publishes
_SHOW_PERIOD_S = 1.0
_MOST_SENT = 50_000


class LengthwiseRouter(RequestRouter):
    """Chooses by `scheduler/fleet`; a request that is no `Forwarded` goes to the idlest."""

    def initialize_state(self, **kwargs: Any) -> None:
        """``settings`` are those of the server, as plain values."""
        settings = make_settings(kwargs["settings"])
        self._desk = FleetDesk(settings, api_metrics())
        self._holds = settings.router in LATE
        self._sent: dict[str, tuple[int, str]] = {}  # by Serve's id: our key, the instance
        self._loop: asyncio.AbstractEventLoop | None = None
        self._heard: dict[str, tuple[Any, Any]] = {}
        self._dead: set[str] = set()
        self._shown_s = 0.0
        register(self)

    # -- what Serve tells ---------------------------------------------------------------------

    def update_replicas(self, replicas: list[RunningReplica]) -> None:
        """Replicas have come, gone, or published."""
        super().update_replicas(replicas)
        dispatcher = self._desk.dispatcher
        names = {replica.replica_id.unique_id for replica in replicas}
        self._dead &= names  # Serve lists a dead one until it has looked at its health
        dispatcher.keep(names - self._dead)
        for replica in replicas:
            message = (replica.routing_stats or {}).get(STATS_KEY)
            if not isinstance(message, Mapping):
                continue  # the first requests come before the first stats
            name = replica.replica_id.unique_id
            mark = message.get("epoch"), message.get("sequence")
            if self._heard.get(name) != mark:  # Serve repeats all when one has changed
                self._heard[name] = mark
                dispatcher.heard(name, message)
        self._heard = {n: mark for n, mark in self._heard.items() if n in dispatcher.names}
        if time.monotonic() - self._shown_s > _SHOW_PERIOD_S:
            self._shown_s = time.monotonic()
            self._desk.show()

    def on_replica_actor_died(self, replica_id: ReplicaID) -> None:
        """Nothing more is sent there."""
        super().on_replica_actor_died(replica_id)
        self._dead.add(replica_id.unique_id)
        self._desk.dispatcher.leave(replica_id.unique_id)

    def on_request_routed(
        self, pending_request: PendingRequest, replica_id: ReplicaID, result: Any
    ) -> None:
        """A replica has taken the request in; it need not be the one that was chosen."""
        internal_id = pending_request.metadata.internal_request_id
        key, name = self._sent.get(internal_id, (None, ""))
        request = fleet_request(pending_request)
        if key is not None and request is not None and name != replica_id.unique_id:
            self._desk.dispatcher.ended(key)
            self._desk.dispatcher.follow(request, replica_id.unique_id)
            self._sent[internal_id] = key, replica_id.unique_id

    def on_request_completed(self, replica_id: ReplicaID, internal_request_id: str) -> None:
        """The request has ended there, well or not."""
        key, name = self._sent.get(internal_request_id, (None, ""))
        if key is not None and name == replica_id.unique_id:
            del self._sent[internal_request_id]
            self._desk.dispatcher.ended(key)

    # -- what Serve asks ----------------------------------------------------------------------

    async def choose_replicas(
        self,
        candidate_replicas: list[RunningReplica],
        pending_request: PendingRequest | None = None,
    ) -> list[list[RunningReplica]]:
        """The chosen instance, then the others by their outstanding requests."""
        self._loop = asyncio.get_running_loop()
        chosen = None
        if pending_request is not None:
            # without it Serve asks again at once when the first answer is turned down
            pending_request.routing_context.should_backoff = True
            chosen = await self._choose(pending_request)
        counts = self._outstanding()

        def rank(replica: RunningReplica) -> tuple[bool, bool, int]:
            name = replica.replica_id.unique_id
            return name != chosen, name in self._dead, counts.get(name, 0)

        return [[replica] for replica in sorted(candidate_replicas, key=rank)]

    async def _choose_replica_for_request(
        self, pending_request: PendingRequest, *, is_retry: bool = False
    ) -> RunningReplica:
        """As Serve does it, but for a router that holds requests back.

        Serve runs few choices at once, so those that wait must not wait there.
        """
        self._loop = asyncio.get_running_loop()
        if self._holds and self._replicas and fleet_request(pending_request) is not None:
            chosen = await self._choose(pending_request)
            for replica in self._replicas_list:
                if replica.replica_id.unique_id == chosen:
                    return replica
        return await super()._choose_replica_for_request(pending_request, is_retry=is_retry)

    async def _choose(self, pending_request: PendingRequest) -> str | None:
        request = fleet_request(pending_request)
        if request is None:
            return None
        internal_id = pending_request.metadata.internal_request_id
        before = self._sent.pop(internal_id, None)
        if before is not None:  # it was turned down, or sent there in vain
            self._desk.dispatcher.ended(before[0])
        if len(self._sent) >= _MOST_SENT:  # some were given up before they were sent
            ledger = self._desk.dispatcher.router.knowledge.ledger
            self._sent = {
                i: sent for i, sent in self._sent.items() if ledger.where(sent[0]) is not None
            }
        chosen = await self._desk.choose(request)
        if chosen is not None:
            self._sent[internal_id] = request.key, chosen
        return chosen

    def _outstanding(self) -> dict[str, int]:
        return {one["name"]: one["outstanding"] for one in self._desk.status()["instances"]}

    # -- what the front asks ------------------------------------------------------------------

    async def status(self) -> dict[str, Any]:
        """The router's status, from any event loop of this process."""
        if self._loop is None or self._loop is asyncio.get_running_loop():
            return self._desk.status()

        async def there() -> dict[str, Any]:
            return self._desk.status()

        return await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(there(), self._loop))


def fleet_request(pending_request: PendingRequest) -> FleetRequest | None:
    """What the core is told of a request; None of one that is none of the front's generations."""
    args: Sequence[Any] = pending_request.args
    first = args[0] if args else None
    return first.fleet if isinstance(first, Forwarded) else None
