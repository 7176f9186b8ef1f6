"""What a real scheduler tells routers of its requests."""

from __future__ import annotations

import asyncio
import math
import time

import msgspec
import numpy as np
import pytest
from engineless import FakeEngine, make_request

from lengthwise.scheduler.fleet.dispatcher import Dispatcher
from lengthwise.scheduler.fleet.fleet_request import NO_LIMITS, FleetRequest, PlanLimits
from lengthwise.scheduler.fleet.make_router import make_router
from lengthwise.scheduler.fleet.state_message import Published
from lengthwise.scheduler.profile import load_profile
from lengthwise.scheduler.serving.wire.answer_length import DEFAULT_LEVELS
from lengthwise.scheduler.serving.wire.fleet_key import new_fleet_key


@pytest.fixture
def engine(tiny_dir):
    return FakeEngine(tiny_dir, max_num_seqs=2)


def published(engine):
    message = engine.scheduler.lengthwise_load()
    return Published.from_message(msgspec.msgpack.decode(msgspec.msgpack.encode(message)))


def test_who_runs_comes_first_then_who_waits_by_their_routers_names(engine):
    for number in range(4):
        request = make_request(f"r{number}", prompt_tokens=10, lw_fleet_key=100 + number)
        engine.add(request, output_tokens=50)
    for _ in range(5):
        engine.step()
    told = published(engine)
    assert [row.key for row in told.rows] == [100, 101, 102, 103]
    assert (told.running, told.recovering) == (2, 0)
    assert [row.generated_tokens for row in told.rows] == [5, 5, 0, 0]
    assert [row.prefill_left_tokens for row in told.rows] == [0, 0, 10, 10]
    assert told.rows[0].since_first_token_s >= 0
    assert told.rows[3].since_first_token_s is None
    assert told.others == []
    assert told.profile.capacity.max_num_seqs == 2
    assert told.about["policy"] == "sa"
    engine.scheduler.core.decisions.in_force.max_running = 1
    assert published(engine).limits == PlanLimits(1.0, math.inf, 1.0)
    engine.run()
    after = published(engine)
    assert after.rows == []
    assert (after.epoch, after.sequence) == (told.epoch, told.sequence + 2)
    assert after.limits == NO_LIMITS  # nobody waits any more


def test_who_came_past_a_router_or_by_several_is_described(engine):
    engine.add(make_request("direct", prompt_tokens=10, slo_e2e_ms=4000.0))
    engine.add(make_request("one", lw_fleet_key=new_fleet_key(1)))
    (other,) = published(engine).others
    assert other.key < 0
    assert other.prompt_tokens == 10
    assert other.e2e_s == 4.0
    assert len(other.quantiles) == len(DEFAULT_LEVELS)
    engine.add(make_request("two", lw_fleet_key=new_fleet_key(2)))
    told = published(engine)
    assert {other.key for other in told.others} == {row.key for row in told.rows}


def test_samples_of_one_request_do_not_share_its_name(engine):
    for number in range(3):
        engine.add(make_request(f"{number}_parent", lw_fleet_key=7))
    keys = [row.key for row in published(engine).rows]
    assert keys[0] == 7
    assert len(set(keys)) == 3
    assert max(keys[1:]) < 0


def test_a_router_follows_an_engine_from_sending_to_end(engine):
    """The state is what the router booked: nothing unknown, nothing lost, empty at the end."""

    async def play():
        levels = np.array(DEFAULT_LEVELS)
        router = make_router("gain", levels, policy="sa", rng=np.random.default_rng(0))
        fleet = Dispatcher(router, load_profile("tiny-cpu"))
        fleet.keep(["a", "b"])
        fleet.heard("b", engine.scheduler.lengthwise_load())
        keys = [new_fleet_key(3) for _ in range(6)]
        for number, key in enumerate(keys):
            fleet.follow(FleetRequest(key, time.monotonic(), 10.0, np.full(12, 20.0)), "b")
            request = make_request(f"r{number}", prompt_tokens=10, lw_fleet_key=key)
            engine.add(request, output_tokens=20)
        for _ in range(100):
            engine.step()
            fleet.heard("b", engine.scheduler.lengthwise_load())
        status = fleet.status()
        assert status["malformed_states"] == status["unknown_rows"] == 0
        assert status["lost_bookings"] == 0
        assert [one["outstanding"] for one in status["instances"]] == [0, 0]
        assert len(router.knowledge.known) == 0

    asyncio.run(play())
