"""What instances publish, over the wire and back; the router in an event loop."""

from __future__ import annotations

import asyncio
import json
import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lengthwise.scheduler.fleet import fleet_rows as fr
from lengthwise.scheduler.fleet.dispatcher import Dispatcher, figures, warm_up
from lengthwise.scheduler.fleet.fleet_request import NO_LIMITS, FleetRequest, PlanLimits
from lengthwise.scheduler.fleet.fleet_router import NoInstanceError
from lengthwise.scheduler.fleet.make_router import make_router
from lengthwise.scheduler.fleet.state_message import LagGauge, Published, PublishedRow
from lengthwise.scheduler.profile import load_profile
from lengthwise.scheduler.step_time import StepTimeModel

LEVELS = np.array([0.1, 0.5, 0.9])
PROFILE = load_profile("tiny-cpu")
OTHER = load_profile("shape-speculation")


def request(key, e2e_s=math.inf, now_s=0.0):
    return FleetRequest(key, now_s, 20.0, np.array([20.0, 50.0, 120.0]), e2e_s=e2e_s)


def published(
    sequence, rows=(), running=0, at_s=0.0, profile=PROFILE, epoch=1, others=(), limits=NO_LIMITS
):
    return Published(
        epoch, sequence, at_s, profile, rows, running, 0, others, limits=PlanLimits(*limits)
    )


def a_router(name="gain", clock=lambda: 0.0):
    router = make_router(name, LEVELS, policy="fcfs", rng=np.random.default_rng(0))
    return Dispatcher(router, PROFILE, clock)


def test_a_state_survives_the_wire_as_json():
    rows = [PublishedRow(3, 4.0, 0.0, 0.0, 1.5), PublishedRow(-9, 0.0, 20.0, 16.0)]
    there = published(
        7, rows, 1, at_s=100.0, profile=OTHER, others=[request(-9, e2e_s=4.0, now_s=2.5)],
        limits=(4.0, math.inf, 3.0),
    )  # fmt: skip
    back = Published.from_message(json.loads(json.dumps(there.to_message())))
    assert back.rows == rows
    assert (back.epoch, back.sequence, back.running) == (1, 7, 1)
    assert back.profile.capacity == OTHER.capacity
    assert back.profile.speculation == OTHER.speculation
    assert back.profile.step_time.numbers == OTHER.scaled_step_time.numbers
    state = back.state(taken_s=50.0)
    assert state.limits == (4.0, math.inf, 3.0)
    assert state.keys.tolist() == [3, -9]
    assert state.first_token_s[0] == 48.5
    assert math.isnan(state.first_token_s[1])
    (other,) = back.others_at(50.0)
    assert (other.arrival_s, other.e2e_s, other.ttft_s) == (47.5, 4.0, math.inf)


@pytest.mark.parametrize(
    "message", [{}, {"version": 0}, {"version": 2}, {"version": 2, "epoch": None}]
)
def test_what_is_no_state_is_said_to_be_none(message):
    with pytest.raises(ValueError, match="state"):
        Published.from_message(message)


@given(
    offset_s=st.floats(-1e6, 1e6),
    delays_s=st.lists(st.floats(0.0, 30.0), min_size=1, max_size=30),
)
def test_lag_is_found_whatever_the_clocks_say(offset_s, delays_s):
    """The quickest message counts as instant; no lag is negative or longer than its delay."""
    gauge = LagGauge(drift=0.0)
    least_s = math.inf
    for k, delay_s in enumerate(delays_s):
        sent_s = offset_s + k
        least_s = min(least_s, delay_s)
        lag_s = gauge.lag_s(sent_s, k + delay_s)
        assert lag_s == pytest.approx(delay_s - least_s, abs=1e-6)


def test_choose_books_and_ended_frees():
    async def play():
        fleet = a_router()
        fleet.keep(["a", "b"])
        chosen = [await fleet.choose(request(key)) for key in range(4)]
        assert sorted(chosen) == ["a", "a", "b", "b"]
        for key in range(4):
            fleet.ended(key)
        assert [one["outstanding"] for one in fleet.status()["instances"]] == [0, 0]
        fleet.ended(0)  # once more says nothing

    asyncio.run(play())


def test_a_busy_instance_is_left_alone_once_it_is_heard():
    async def play():
        fleet = a_router()
        fleet.keep(["a", "b"])
        busy = [PublishedRow(-k, 1.0, 0.0, 0.0, 0.1) for k in range(1, 60)]
        others = [request(-k) for k in range(1, 60)]
        fleet.heard("a", published(1, busy, 32, others=others).to_message())
        fleet.heard("b", published(1).to_message())
        assert [await fleet.choose(request(key, e2e_s=20.0)) for key in range(3)] == ["b"] * 3
        assert fleet.status()["decisions"] == {"score": 3}

    asyncio.run(play())


def test_an_instance_says_itself_what_it_is():
    fleet = a_router()
    fleet.keep(["a"])
    fleet.heard("a", published(1, profile=OTHER).to_message())
    slots = fleet.router.knowledge.rows.engines[0, fr.SLOTS]
    assert slots == OTHER.capacity.max_num_seqs != PROFILE.capacity.max_num_seqs


def test_one_that_says_nothing_is_taken_for_a_peer_of_who_did():
    """A guess that is quicker than what the peer says of itself would draw all requests."""
    slower = replace(
        PROFILE, step_time=StepTimeModel(*(5.0 * x for x in PROFILE.scaled_step_time.numbers))
    )

    async def play():
        now_s = [0.0]
        fleet = a_router(clock=lambda: now_s[0])
        fleet.keep(["a", "b"])
        chosen = [await fleet.choose(request(0))]
        fleet.heard(
            chosen[0], published(1, [PublishedRow(0, 0.0, 20.0)], profile=slower).to_message()
        )
        now_s[0] = 0.01
        chosen += [await fleet.choose(request(key)) for key in range(1, 8)]
        assert sorted(chosen) == ["a"] * 4 + ["b"] * 4
        known = fleet.router.knowledge
        assert np.array_equal(known.rows.engines[0], known.rows.engines[1])
        work_s = known.backlogs_s(now_s[0])
        assert work_s[0] == pytest.approx(work_s[1])
        fleet.join("c")
        assert np.array_equal(known.rows.engines[0], known.rows.engines[2])
        (other,) = {"a", "b"} - {chosen[0]}
        fleet.heard(other, published(1, profile=OTHER).to_message())  # its own word counts
        assert not np.array_equal(known.rows.engines[0], known.rows.engines[1])

    asyncio.run(play())


def test_a_malformed_state_is_counted_and_costs_nothing():
    async def play():
        fleet = a_router()
        fleet.keep(["a"])
        fleet.heard("a", {"version": 2})
        fleet.heard("nobody", published(1).to_message())
        assert fleet.malformed == 1
        assert await fleet.choose(request(1)) == "a"

    asyncio.run(play())


def test_whoever_left_gets_nothing_and_may_come_back():
    async def play():
        fleet = a_router()
        fleet.keep(["a", "b"])
        fleet.keep(["b"])
        assert {await fleet.choose(request(key)) for key in range(3)} == {"b"}
        fleet.keep([])
        with pytest.raises(NoInstanceError):
            await fleet.choose(request(9))
        fleet.keep(["a"])
        assert await fleet.choose(request(10)) == "a"
        assert [one["name"] for one in fleet.status()["instances"]] == ["a"]

    asyncio.run(play())


def test_follow_books_where_it_is_told():
    async def play():
        fleet = a_router()
        fleet.keep(["a", "b"])
        for key in range(3):
            fleet.follow(request(key), "b")
        assert dict(figures(fleet.status()))["b"]["outstanding"] == 3
        assert await fleet.choose(request(9)) == "a"

    asyncio.run(play())


def test_who_is_held_waits_and_whoever_leaves_meanwhile_is_forgotten():
    async def play():
        time_s = [0.0]
        fleet = a_router("gain-late", lambda: time_s[0])
        fleet.keep(["a", "b"])
        others = [request(-k) for k in range(1, 200)]
        full = [PublishedRow(-k, 1.0, 0.0, 0.0, 0.1) for k in range(1, 200)]
        for name in ("a", "b"):
            fleet.heard(name, published(1, full, 32, others=others).to_message())
        held = [asyncio.ensure_future(fleet.choose(request(k, e2e_s=500.0))) for k in range(3)]
        await asyncio.sleep(0.01)
        assert fleet.router.held == 3
        assert not any(task.done() for task in held)
        held[0].cancel()
        await asyncio.sleep(0)
        assert fleet.router.held == 2
        for name in ("a", "b"):
            fleet.heard(name, published(2).to_message())
        time_s[0] = 0.2
        assert set(await asyncio.gather(*held[1:])) <= {"a", "b"}
        assert fleet.router.held == 0

    asyncio.run(play())


@pytest.mark.parametrize("name", ["gain", "gain-late", "power-of-two", "predicted-latency"])
def test_warming_up_runs_the_rule_and_leaves_no_error(name):
    router = a_router(name).router
    warm_up(router, PROFILE)
    assert router.errors == 0
    assert sum(router.decisions.values()) + router.held == 4
