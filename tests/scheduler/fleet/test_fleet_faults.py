"""What befalls instances and what they say: nothing ends twice, only what had begun is lost."""

import numpy as np
import pytest
from fleet_cases import LEVELS, drawn, engine, places, request, router_named, state
from hypothesis import given, settings
from hypothesis import strategies as st

from lengthwise.scheduler.fleet.dispatcher import Dispatcher
from lengthwise.scheduler.fleet.knowledge import SILENT_AFTER_S
from lengthwise.scheduler.fleet.known_prefixes import PrefixMemory
from lengthwise.scheduler.fleet.make_router import ROUTERS
from lengthwise.scheduler.fleet.state_message import Published, PublishedRow
from lengthwise.scheduler.simulator.fleet_run import simulate_fleet
from lengthwise.scheduler.simulator.fleet_terms import FleetConditions, FleetPlace

STATEFUL = [name for name in ROUTERS if name in ("gain", "gain-late", "predicted-latency")]


def play_with(workload, names, members, *, conditions=None, seed=0, front_of=None):
    routers = [
        router_named(name, "fcfs", seed + r, workload.levels) for r, name in enumerate(names)
    ]
    result = simulate_fleet(
        workload, routers, members, lambda i: None, conditions=conditions,
        rng=np.random.default_rng(seed), front_of=front_of,
    )  # fmt: skip
    return result, routers


def check_nothing_lost(workload, result, routers):
    ended = np.isfinite(result.finish_s)
    np.testing.assert_array_equal(ended, ~result.lost)
    assert (result.output_tokens[ended] == workload.output_tokens[ended]).all()
    assert (result.first_token_s[ended] >= workload.arrival_s[ended]).all()
    for router in routers:
        assert router.held == 0
        assert router.errors == 0
        assert len(router.knowledge.known) == len(router.knowledge.ledger) == 0


@given(
    router=st.sampled_from(ROUTERS),
    seed=st.integers(0, 99),
    hangs_s=st.tuples(st.floats(0.1, 3.0), st.floats(0.0, 9.0)),
    dies_after_s=st.sampled_from([None, 1.0, 8.0]),
    slows_by=st.sampled_from([0.5, 3.0]),
    refit_s=st.sampled_from([0.0, 1.0, np.inf]),
    restarts_s=st.floats(0.1, 4.0),
    jitter_s=st.sampled_from([0.0, 0.7]),
    loss=st.sampled_from([0.0, 0.4]),
    detect_s=st.sampled_from([0.0, 0.3]),
    hop_s=st.sampled_from([0.0, 0.02]),
    fronts=st.integers(1, 3),
)
@settings(max_examples=80, deadline=None)
def test_every_request_ends_once_or_is_lost_with_what_had_begun_it(
    router, seed, hangs_s, dies_after_s, slows_by, refit_s, restarts_s, jitter_s, loss, detect_s,
    hop_s, fronts,
):  # fmt: skip
    workload = drawn(120, 40.0, seed, prefixes=2)
    from_s, for_s = hangs_s
    to_s = from_s + for_s
    dies_s = np.inf if dies_after_s is None else to_s + dies_after_s
    members = [
        FleetPlace(engine(cache=True), hangs_s=(from_s, to_s), dies_s=dies_s),
        FleetPlace(engine(speed=2.0), slows_s=1.0, slows_by=slows_by, refit_s=refit_s),
        FleetPlace(engine(slots=2), restarts_s=restarts_s),
    ]
    conditions = FleetConditions(
        state_jitter_s=jitter_s, state_loss=loss, detect_s=detect_s, hop_s=hop_s
    )
    result, routers = play_with(
        workload, [router] * fronts, members, conditions=conditions, seed=seed
    )
    check_nothing_lost(workload, result, routers)
    assert (result.sends >= 1).all()
    assert (result.sends <= 3).all()  # a death and a restart
    cuts_s = [at_s for at_s in (restarts_s, dies_s) if np.isfinite(at_s)]
    assert (result.first_token_s[result.lost] <= max(cuts_s)).all()  # its answer had begun
    if not (result.sends > 1).any() and dies_after_s is None:
        assert result.lost.sum() <= 2  # those that ran where it restarted


# -- one that hangs ---------------------------------------------------------------------------


def test_who_hangs_gets_no_more_after_a_while_and_serves_what_it_had_when_it_wakes():
    workload = drawn(600, 30.0, 1)
    hang = (4.0, 16.0)
    members = [FleetPlace(engine(), hangs_s=hang), FleetPlace(engine()), FleetPlace(engine())]
    for name in ("gain", "least-outstanding"):
        result, routers = play_with(workload, [name], members)
        check_nothing_lost(workload, result, routers)
        at_it = result.instance == 0
        silent = (result.sent_s > hang[0] + SILENT_AFTER_S + 0.5) & (result.sent_s < hang[1])
        assert silent.any()
        assert not (at_it & silent).any()
        assert (at_it & (result.sent_s > hang[1] + 1.0)).any()  # it is heard again
        stuck = at_it & (result.sent_s > hang[0] + 0.5) & (result.sent_s < hang[1])
        assert (result.first_token_s[stuck] >= hang[1]).all()


def test_who_hangs_until_it_is_replaced_loses_what_it_had_begun_and_no_more():
    workload = drawn(300, 30.0, 2)
    members = [
        FleetPlace(engine(), hangs_s=(3.0, np.inf), dies_s=6.0),
        FleetPlace(engine(), joins_s=6.5),
        FleetPlace(engine()),
    ]
    result, routers = play_with(workload, ["gain"], members)
    check_nothing_lost(workload, result, routers)
    assert 0 < result.lost.sum() <= 4  # its slots
    assert (result.sends > 1).any()


# -- one that slows ---------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["gain", "predicted-latency"])
def test_who_slows_gets_less_once_it_says_so(name):
    workload = drawn(900, 30.0, 3)

    def share(refit_s):
        members = [FleetPlace(engine(), slows_s=5.0, refit_s=refit_s), *places(2)]
        result, routers = play_with(workload, [name], members)
        check_nothing_lost(workload, result, routers)
        later = workload.arrival_s > 7.0
        return (result.instance[later] == 0).mean(), result.met(workload).mean()

    equal = play_with(workload, [name], places(3))[0]
    before = (equal.instance[workload.arrival_s > 7.0] == 0).mean()
    told, met_told = share(refit_s=0.5)
    untold, met_untold = share(refit_s=np.inf)
    assert told < before - 0.1
    assert untold < before  # its states show what it has done
    assert met_told >= met_untold - 0.02


def test_a_slow_step_takes_that_much_longer():
    workload = drawn(40, 400.0, 4)
    slow, _ = play_with(workload, ["round-robin"], [FleetPlace(engine(), slows_s=0.0)])
    quick, _ = play_with(workload, ["round-robin"], places(1))
    third, _ = play_with(workload, ["round-robin"], places(1, speed=1 / 3))
    assert slow.end_s > 2.5 * quick.end_s
    np.testing.assert_allclose(slow.finish_s, third.finish_s, rtol=0.02)


# -- one that begins anew ---------------------------------------------------------------------


@pytest.mark.parametrize("jitter_s", [0.0, 0.9])
def test_a_restart_loses_what_had_begun_and_its_old_states_say_nothing(jitter_s):
    workload = drawn(400, 40.0, 5)
    members = [FleetPlace(engine(), restarts_s=4.0), *places(2)]
    conditions = FleetConditions(state_jitter_s=jitter_s, detect_s=0.1)
    result, routers = play_with(workload, ["gain"], members, conditions=conditions)
    check_nothing_lost(workload, result, routers)
    assert 0 < result.lost.sum() <= 4
    assert (result.sends[~result.lost] > 1).any()
    assert (result.instance[workload.arrival_s > 5.0] == 0).any()
    assert routers[0].knowledge.members[0].epoch == 1


def test_what_was_sent_after_a_new_lifes_first_state_was_taken_is_not_lost():
    router = router_named("gain")
    for i in range(2):
        router.add(f"i{i}", engine(), 0.0)
    router.observe(0, state(0.5, epoch=1, sequence=1))
    k = router.knowledge
    for key, sent_s in ((1, 0.6), (2, 1.2)):
        k.meet(request(key, sent_s))
        k.send(request(key, sent_s), 0, sent_s)
    assert router.observe(0, state(1.0, epoch=2, sequence=0)) == [1]
    assert k.counts[0] == 1
    assert k.ledger.where(2) == 0
    router.observe(0, state(1.4, running=[2], generated=1.0, epoch=2, sequence=1))
    assert (k.unknown_rows, k.counts[0]) == (0, 1)


# -- several fronts ---------------------------------------------------------------------------


def test_one_router_in_a_list_is_that_router():
    workload = drawn(150, 60.0, 6)
    one, _ = play_with(workload, ["gain"], places(3))
    alone = simulate_fleet(workload, router_named("gain"), places(3), lambda i: None)
    np.testing.assert_array_equal(one.finish_s, alone.finish_s)
    assert one.router == alone.router


@pytest.mark.parametrize("name", STATEFUL)
def test_two_fronts_know_of_each_others_requests_and_lose_little(name):
    workload = drawn(900, 45.0, 7)
    members = [FleetPlace(engine()), FleetPlace(engine(speed=0.5)), FleetPlace(engine())]
    one, _ = play_with(workload, [name], members)
    two, routers = play_with(workload, [name, name], members)
    check_nothing_lost(workload, two, routers)
    assert all(router.knowledge.unknown_rows == 0 for router in routers)
    if name != "gain-late":  # neither knows what the other holds back: it costs 10 points here
        assert two.met(workload).mean() > one.met(workload).mean() - 0.05


def test_a_front_that_takes_over_sees_what_the_one_before_has_sent():
    workload = drawn(600, 45.0, 8)
    after = workload.arrival_s > 6.0
    one, _ = play_with(workload, ["gain"], places(3))
    two, routers = play_with(workload, ["gain", "gain"], places(3), front_of=after.astype(int))
    check_nothing_lost(workload, two, routers)
    assert two.met(workload).mean() > one.met(workload).mean() - 0.05
    np.testing.assert_array_equal(two.instance[~after], one.instance[~after])


def test_a_front_number_without_a_router_is_refused():
    with pytest.raises(ValueError, match="front_of must name one of 1 routers"):
        play_with(drawn(4, 9.0, 0), ["gain"], places(1), front_of=np.array([0, 1, 0, 0]))


# -- clocks and the order of states -----------------------------------------------------------


@given(
    clocks_s=st.tuples(*[st.sampled_from([0.0, 3600.0, -3600.0, 86400.0])] * 2),
    repeated=st.booleans(),
    seed=st.integers(0, 20),
)
@settings(max_examples=30, deadline=None)
def test_clocks_an_hour_apart_change_no_choice(clocks_s, repeated, seed):
    """Two instances with clocks of their own; now and then an older message comes again."""

    def chosen(offsets_s, repeats):
        rng, tokens = np.random.default_rng(seed), np.random.default_rng(seed)
        now_s = [0.0]
        fleet = Dispatcher(router_named("gain"), engine(), lambda: now_s[0])
        fleet.keep(["a", "b"])
        has = {"a": [], "b": []}
        said = []
        choices = []
        for key in range(40):
            now_s[0] = 0.125 * key
            for name, offset_s in zip(("a", "b"), offsets_s, strict=True):
                rows = [PublishedRow(one, 2.0, 0.0, 0.0, 0.125) for one in has[name]]
                message = Published(
                    1, key + 1, now_s[0] + offset_s, engine(), rows, len(rows)
                ).to_message()
                said.append((name, message))
                fleet.heard(name, message)
                if repeats:
                    fleet.heard(*said[int(rng.integers(len(said)))])
            router = fleet.router
            asked = request(key, now_s[0], tokens=float(tokens.integers(5, 60)), e2e_s=2.0)
            (decision,) = router.offer(asked, now_s[0])
            name = "ab"[decision.instance]
            has[name] = [*has[name][-5:], key]
            for gone in set(range(key)) - set(has["a"]) - set(has["b"]):
                fleet.ended(gone)
            choices.append(decision.instance)
        assert fleet.malformed == 0
        return choices

    assert chosen(clocks_s, repeated) == chosen((0.0, 0.0), False)


# -- prefixes of instances that do not say ----------------------------------------------------


@given(st.lists(st.tuples(st.integers(0, 9), st.floats(1.0, 60.0)), max_size=60))
def test_prefixes_are_remembered_within_the_room_and_the_last_longest(noted):
    memory = PrefixMemory()
    for prefix, tokens in noted:
        memory.note([(prefix, tokens)], room=100.0)
        assert memory.tokens([(prefix, 0.0)]) >= tokens
        assert sum(memory.tokens([(p, 0.0)]) for p in range(10)) <= 100.0 or len(memory) == 1
    assert memory.tokens([(99, 0.0)]) == 0.0


def test_a_beginning_that_an_instance_has_computed_is_known_without_its_saying_so():
    router = router_named("least-work")
    for i in range(2):
        router.add(f"i{i}", engine(cache=True), 0.0)
    first = request(0, 0.0, prompt=200.0, prefix=7, prefix_tokens=128.0)
    k = router.knowledge
    k.meet(first)
    k.send(first, 1, 0.0)
    assert k.cached_tokens(1, first) == 0.0  # on its way
    router.observe(1, state(0.5, running=[0], generated=1.0, sequence=1))
    assert k.cached_tokens(1, first) == 128.0
    assert k.cached_tokens(0, first) == 0.0
    router.completed(0, 1.0)
    assert k.cached_tokens(1, first) == 128.0
    router.observe(1, state(1.5, epoch=1))  # a new life has nothing
    assert k.cached_tokens(1, first) == 0.0
    router.observe(1, state(2.0, epoch=1, sequence=1, cached_prefixes={7: 64.0}))
    assert k.cached_tokens(1, first) == 64.0  # what it says counts


def test_what_befalls_an_instance_must_make_sense():
    for wrong, said in (
        ({"hangs_s": (3.0, 2.0)}, "hangs_s must begin"),
        ({"hangs_s": (3.0, np.inf)}, "hangs_s must begin"),
        ({"slows_by": 0.0}, "slows_by must be above 0"),
        ({"refit_s": -1.0}, "refit_s not negative"),
        ({"restarts_s": 1.0, "joins_s": 2.0}, "restarts_s must not be before"),
    ):
        with pytest.raises(ValueError, match=said):
            FleetPlace(engine(), **wrong)
    with pytest.raises(ValueError, match="state_jitter_s"):
        FleetConditions(state_jitter_s=-1.0)
    assert len(LEVELS) == 3
