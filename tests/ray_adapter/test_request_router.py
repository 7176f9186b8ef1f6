"""Serve's request router with replicas that are none: states late or lost, replicas that go."""

from __future__ import annotations

import asyncio
import time
from types import SimpleNamespace

import numpy as np
import pytest

pytest.importorskip("ray.serve", reason="needs lengthwise[fleet]", exc_type=ImportError)

from ray.serve._private.common import DeploymentHandleSource, DeploymentID, ReplicaID
from ray.serve.request_router import RequestRouter

from lengthwise.scheduler.fleet.fleet_request import FleetRequest
from lengthwise.scheduler.fleet.state_message import Published, PublishedRow
from lengthwise.scheduler.profile import load_profile
from lengthwise.scheduler.ray_adapter.forwarded import Forwarded
from lengthwise.scheduler.ray_adapter.request_router import LengthwiseRouter
from lengthwise.scheduler.ray_adapter.router_list import routers
from lengthwise.scheduler.serving.settings import ServerSettings
from lengthwise.scheduler.serving.wire.answer_length import DEFAULT_LEVELS

APPLICATION = DeploymentID("instances", "lengthwise")
PROFILE = load_profile("tiny-cpu")
LENGTHS = np.full(len(DEFAULT_LEVELS), 50.0)


def made(router="gain"):
    made = LengthwiseRouter(APPLICATION, DeploymentHandleSource.REPLICA)
    made.initialize_state(settings=ServerSettings(router=router).model_dump(mode="json"))
    return made


def replica(name, message=None):
    """A replica as Serve shows it to routers."""
    stats = {} if message is None else {"lengthwise": message}
    return SimpleNamespace(
        replica_id=ReplicaID(name, APPLICATION), routing_stats=stats, get_queue_len=None
    )


def state(sequence, busy=0, epoch=1):
    rows = [PublishedRow(-k - 1, 1.0, 0.0, 0.0, 0.1) for k in range(busy)]
    others = [FleetRequest(-k - 1, 0.0, 20.0, LENGTHS, e2e_s=60.0) for k in range(busy)]
    running = min(busy, 32)
    return Published(
        epoch, sequence, time.monotonic(), PROFILE, rows, running, 0, others
    ).to_message()


class Request:
    """A pending request of Serve's."""

    def __init__(self, key, e2e_s=30.0):
        fleet = FleetRequest(key, time.monotonic(), 20.0, LENGTHS, e2e_s=e2e_s)
        self.args = [Forwarded("POST", "/v1/completions", b"", [], b"{}", fleet=fleet)]
        self.metadata = SimpleNamespace(internal_request_id=f"id-{key}")
        self.routing_context = SimpleNamespace(should_backoff=False)


async def choose(router, replicas, pending):
    ranks = await router.choose_replicas(replicas, pending)
    assert all(len(rank) == 1 for rank in ranks)
    return [rank[0].replica_id.unique_id for rank in ranks]


def known(router, monkeypatch, *replicas):
    """The router with these replicas; Serve's own bookkeeping of them left out."""
    monkeypatch.setattr(RequestRouter, "update_replicas", lambda self, replicas: None)
    router.update_replicas(list(replicas))
    return list(replicas)


def outstanding(router):
    return {one["name"]: one["outstanding"] for one in router._desk.status()["instances"]}


def test_the_chosen_comes_first_and_the_others_behind_it(monkeypatch):
    async def play():
        router = made()
        there = known(router, monkeypatch, replica("a", state(1, busy=50)), replica("b", state(1)))
        pending = Request(1)
        assert await choose(router, there, pending) == ["b", "a"]
        assert pending.routing_context.should_backoff
        assert outstanding(router) == {"a": 50, "b": 1}
        router.on_request_completed(there[0].replica_id, "id-1")  # another's end says nothing
        assert outstanding(router)["b"] == 1
        router.on_request_completed(there[1].replica_id, "id-1")
        assert outstanding(router)["b"] == 0
        assert (await router.status())["decisions"] == {"score": 1}
        assert router in routers()

    asyncio.run(play())


def test_the_first_requests_come_before_the_first_states(monkeypatch):
    async def play():
        router = made()
        there = known(router, monkeypatch, replica("a"), replica("b"))
        firsts = [(await choose(router, there, Request(key)))[0] for key in range(4)]
        assert sorted(firsts) == ["a", "a", "b", "b"]
        assert set(router._desk.status()["decisions"]) <= {"power-of-two", "least-outstanding"}

    asyncio.run(play())


def test_a_request_that_is_turned_down_is_booked_once(monkeypatch):
    async def play():
        router = made()
        there = known(router, monkeypatch, replica("a", state(1)), replica("b", state(1)))
        pending = Request(1)
        first = await choose(router, there, pending)
        await choose(router, there, pending)
        assert sum(outstanding(router).values()) == 1
        other = next(r for r in there if r.replica_id.unique_id == first[1])
        router.on_request_routed(pending, other.replica_id, None)  # Serve took the second
        assert outstanding(router)[first[1]] == 1
        router.on_request_completed(other.replica_id, "id-1")
        assert sum(outstanding(router).values()) == 0

    asyncio.run(play())


def test_a_dead_replica_gets_nothing_more(monkeypatch):
    async def play():
        router = made()
        there = known(router, monkeypatch, replica("a", state(1)), replica("b", state(1)))
        monkeypatch.setattr(RequestRouter, "on_replica_actor_died", lambda self, replica_id: None)
        router.on_replica_actor_died(there[0].replica_id)
        assert {(await choose(router, there, Request(k)))[0] for k in range(3)} == {"b"}
        router.update_replicas(there)  # Serve still lists it
        assert {(await choose(router, there, Request(k)))[0] for k in range(3, 6)} == {"b"}
        router.update_replicas(there[1:])
        assert not router._dead

    asyncio.run(play())


def test_states_that_are_late_lost_or_of_an_earlier_life_cost_accuracy_only(monkeypatch):
    async def play():
        router = made()
        there = known(router, monkeypatch, replica("a", state(5)), replica("b", state(5, busy=50)))
        known(router, monkeypatch, replica("a", state(4, busy=50)), replica("b", state(4)))
        assert (await choose(router, there, Request(1)))[0] == "a"  # older ones say nothing
        known(router, monkeypatch, replica("a", state(1, busy=50, epoch=2)), replica("b"))
        router.update_replicas([replica("a"), replica("b", {"version": 99})])
        assert router._desk.status()["malformed_states"] == 1
        k = router._desk.dispatcher.router.knowledge
        k.heard_s -= 60.0  # a minute without states
        ranks = [(await choose(router, there, Request(key)))[0] for key in range(2, 12)]
        assert set(ranks) <= {"a", "b"}
        assert router._desk.status()["decisions"]["least-work"] == 10

    asyncio.run(play())


def test_what_is_no_generation_goes_to_the_idlest_and_is_not_booked(monkeypatch):
    async def play():
        router = made()
        there = known(router, monkeypatch, replica("a"), replica("b"))
        first = (await choose(router, there, Request(1)))[0]
        pending = SimpleNamespace(
            args=[Forwarded("GET", "/v1/models", b"", [], b"")],
            routing_context=SimpleNamespace(should_backoff=False),
        )
        assert (await choose(router, there, pending))[-1] == first
        assert sum(outstanding(router).values()) == 1

    asyncio.run(play())


def test_a_router_that_holds_back_waits_outside_of_serves_few_choices(monkeypatch):
    async def play():
        router = made("gain-late")
        there = known(
            router, monkeypatch, replica("a", state(1, busy=150)), replica("b", state(1, busy=150))
        )
        router._replicas = {one.replica_id: one for one in there}
        router._replicas_list = there
        waiting = asyncio.ensure_future(router._choose_replica_for_request(Request(1, 500.0)))
        await asyncio.sleep(0.02)
        assert not waiting.done()
        assert router._desk.status()["held"] == 1
        router.update_replicas([replica("a", state(2, busy=150)), replica("b", state(2))])
        assert (await asyncio.wait_for(waiting, 5)).replica_id.unique_id == "b"

    asyncio.run(play())
