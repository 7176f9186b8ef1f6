"""Several simulated engines: nothing is lost but by a death, and one alone is one alone."""

import numpy as np
import pytest
from fleet_cases import drawn, engine, places, play
from hypothesis import given, settings
from hypothesis import strategies as st

from lengthwise.scheduler.fleet.make_router import ROUTERS
from lengthwise.scheduler.policies.make import make_policy
from lengthwise.scheduler.profile import Speculation, load_profile
from lengthwise.scheduler.simulator.fleet_terms import FleetConditions, FleetPlace
from lengthwise.scheduler.simulator.run import simulate


@pytest.mark.parametrize("router", ROUTERS)
@pytest.mark.parametrize("policy", ["fcfs", "feasible-edf", "sa"])
def test_one_instance_is_one_engine_to_the_bit(router, policy):
    workload = drawn(150, 30.0, 1, prefixes=3)
    alone = simulate(workload, make_policy(policy), engine(cache=True))
    fleet, _ = play(
        workload, router, places(1, cache=True), policy=policy,
        policy_of=lambda i: make_policy(policy),
    )  # fmt: skip
    for name in ("admitted_s", "first_token_s", "finish_s", "output_tokens"):
        np.testing.assert_array_equal(getattr(fleet, name), getattr(alone, name), err_msg=name)
    assert fleet.steps.tolist() == [alone.steps]
    assert (fleet.sends == 1).all()


def test_without_a_policy_an_engine_serves_first_come_first_served():
    workload = drawn(200, 40.0, 2)
    alone = simulate(workload, make_policy("fcfs"), engine(kv=600))
    fleet, _ = play(workload, "gain", places(1, kv=600))
    np.testing.assert_array_equal(fleet.finish_s, alone.finish_s)
    assert fleet.preemptions == alone.preemptions > 0


@given(
    router=st.sampled_from(ROUTERS),
    seed=st.integers(0, 99),
    deaths=st.lists(st.floats(0.2, 4.0), max_size=2),
    joins_s=st.floats(0.0, 3.0),
    delay_s=st.sampled_from([0.0, 0.5, 10.0]),
    loss=st.sampled_from([0.0, 0.5, 1.0]),
    detect_s=st.sampled_from([0.0, 0.3]),
    hop_s=st.sampled_from([0.0, 0.02]),
)
@settings(max_examples=60)
def test_every_request_ends_once_or_is_lost_with_its_instance(
    router, seed, deaths, joins_s, delay_s, loss, detect_s, hop_s
):
    workload = drawn(120, 40.0, seed, prefixes=2)
    members = [FleetPlace(engine(cache=True)), FleetPlace(engine(speed=2.0), joins_s=joins_s)]
    members += [FleetPlace(engine(slots=2), dies_s=at_s) for at_s in deaths]
    conditions = FleetConditions(
        state_delay_s=delay_s, state_loss=loss, detect_s=detect_s, hop_s=hop_s
    )
    result, behind = play(workload, router, members, conditions=conditions, seed=seed)
    ended = np.isfinite(result.finish_s)
    np.testing.assert_array_equal(ended, ~result.lost)
    assert (result.output_tokens[ended] == workload.output_tokens[ended]).all()
    assert (result.sends >= 1).all()
    assert (result.sends <= 1 + len(deaths)).all()
    assert (result.first_token_s[ended] >= workload.arrival_s[ended]).all()
    order = sorted([0.0, joins_s, *[0.0 for _ in deaths]])
    assert len(order) == len(members)
    if not deaths:
        assert ended.all()
        assert (result.sends == 1).all()
    for row in np.flatnonzero(result.lost):
        assert result.first_token_s[row] <= max(deaths)  # its answer had begun
    assert behind.held == 0
    assert behind.status(result.end_s)["errors"] == 0
    assert all(i["outstanding"] == 0 for i in behind.status(result.end_s)["instances"])
    assert len(behind.knowledge.known) == len(behind.knowledge.ledger) == 0


@pytest.mark.parametrize("router", ROUTERS)
def test_the_same_again_is_the_same(router):
    workload = drawn(150, 60.0, 3)
    conditions = FleetConditions(state_loss=0.3, state_delay_s=0.1)
    members = [FleetPlace(engine()), FleetPlace(engine(speed=0.5)), FleetPlace(engine(), dies_s=2)]
    one, _ = play(workload, router, members, conditions=conditions)
    two, _ = play(workload, router, members, conditions=conditions)
    np.testing.assert_array_equal(one.finish_s, two.finish_s)
    np.testing.assert_array_equal(one.instance, two.instance)


def test_a_death_costs_only_those_whose_answers_had_begun():
    workload = drawn(120, 40.0, 4)
    members = [FleetPlace(engine(), dies_s=1.5), FleetPlace(engine())]
    result, _ = play(workload, "round-robin", members)
    assert 0 < result.lost.sum() <= 4  # as many as ran
    assert (result.sends > 1).any()
    later = workload.arrival_s > 1.5
    assert (result.instance[later] == 1).all()
    assert not result.met(workload)[result.lost].any()


@pytest.mark.parametrize("router", ["gain", "gain-late"])
def test_with_nobody_left_what_comes_is_lost(router):
    workload = drawn(80, 80.0, 5)
    result, _ = play(workload, router, [FleetPlace(engine(slots=2), dies_s=0.5) for _ in range(2)])
    assert result.lost[workload.arrival_s > 0.5].all()
    assert np.isnan(result.finish_s[result.lost]).all()


def test_who_joins_takes_its_share():
    workload = drawn(300, 60.0, 6)
    members = [FleetPlace(engine()), FleetPlace(engine(), joins_s=2.0)]
    result, _ = play(workload, "gain", members)
    assert (result.instance[workload.arrival_s < 2.0] == 0).all()
    assert (result.instance[workload.arrival_s > 2.0] == 1).mean() > 0.4


def test_without_states_the_router_goes_by_its_ledger():
    workload = drawn(200, 60.0, 7)
    dark = FleetConditions(state_loss=1.0)
    result, behind = play(workload, "gain", places(3), conditions=dark)
    assert set(behind.decisions) == {"least-outstanding"}
    counted, _ = play(workload, "least-outstanding", places(3), conditions=dark)
    np.testing.assert_array_equal(result.instance, counted.instance)


def test_in_the_dark_the_work_goes_on_and_the_rungs_are_told():
    workload = drawn(600, 60.0, 8)
    dark = FleetConditions(dark_s=(1.0, 9.0))
    result, behind = play(workload, "gain", places(3), conditions=dark)
    assert np.isfinite(result.finish_s).all()
    assert set(behind.decisions) == {"least-outstanding", "score", "least-work"}


def test_the_slow_get_what_the_slow_can_do():
    """Two engines, one of a quarter of the speed: the count of requests knows nothing of that."""
    workload = drawn(600, 20.0, 9)
    members = [FleetPlace(engine(speed=1.5)), FleetPlace(engine(speed=0.4))]

    def met(router):
        result, _ = play(
            workload, router, members, policy="feasible-edf",
            policy_of=lambda i: make_policy("feasible-edf"),
        )  # fmt: skip
        return result.met(workload).mean()

    ours = met("gain")
    assert ours > met("round-robin") + 0.15
    assert ours > met("least-outstanding") + 0.05
    assert met("gain-late-list") > met("least-outstanding") + 0.05


@pytest.mark.parametrize("router", ["gain", "gain-late"])
def test_prefixes_and_drafts_are_played_too(router):
    profile = engine(cache=True)
    drafts = load_profile("shape-speculation")
    assert isinstance(drafts.speculation, Speculation)
    workload = drawn(100, 40.0, 10, prefixes=2)
    result, _ = play(workload, router, [FleetPlace(profile), FleetPlace(drafts)])
    assert np.isfinite(result.finish_s).all()


def test_settings_that_make_no_sense_are_refused():
    workload = drawn(10, 10.0, 0)
    with pytest.raises(ValueError, match="joins at 0 s or later and dies after"):
        FleetPlace(engine(), joins_s=3.0, dies_s=2.0)
    for wrong in ({"state_period_s": 0.0}, {"hop_s": -1.0}, {"state_loss": 2.0}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            FleetConditions(**wrong)
    with pytest.raises(ValueError, match="at least one instance"):
        play(workload, "gain", [])
    with pytest.raises(ValueError, match="KV cache"):
        play(workload, "gain", places(2, kv=100))
