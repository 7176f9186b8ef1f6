"""The router's core: ledger, rows, score, and what it rests on as knowledge ages."""

import math

import numpy as np
import pytest
from fleet_cases import LEVELS, engine, request, router_named, state
from hypothesis import given, settings
from hypothesis import strategies as st

from lengthwise.data.lengths import STRATA
from lengthwise.scheduler.fleet import fleet_rows as fr
from lengthwise.scheduler.fleet.fleet_request import (
    NO_LIMITS,
    FleetRequest,
    InstanceState,
    PlanLimits,
)
from lengthwise.scheduler.fleet.fleet_router import FleetRouter, NoInstanceError
from lengthwise.scheduler.fleet.gain import (
    BY_ARRIVAL,
    BY_DEADLINE,
    BY_SELECTION,
    GAIN,
    queue_order,
)
from lengthwise.scheduler.fleet.knowledge import Knowledge
from lengthwise.scheduler.fleet.known_requests import KnownRequests
from lengthwise.scheduler.fleet.ledger import LOST_AFTER_S, Ledger
from lengthwise.scheduler.fleet.make_router import ROUTERS, make_router
from lengthwise.scheduler.fleet.routing_rules import (
    MOST_SCORED,
    SAMPLED,
    most_gain,
    own_work_s,
)
from lengthwise.scheduler.plan.rollout.rows import snapshot
from lengthwise.scheduler.plan.starts.starts import selection_order
from lengthwise.scheduler.problem import Problem, RequestArrays

# -- the ledger -------------------------------------------------------------------------------

step = st.tuples(
    st.sampled_from(["book", "end", "settle", "drop"]),
    st.integers(0, 7),
    st.integers(0, 2),
    st.sets(st.integers(0, 7)),
)


@given(st.lists(step, max_size=40))
def test_a_request_is_booked_once_and_counts_are_those_of_the_booked(steps):
    ledger, model = Ledger(), {}
    for at, (what, key, instance, listed) in enumerate(steps):
        if what == "book":
            if key in model:
                with pytest.raises(ValueError, match="booked already"):
                    ledger.book(key, instance, float(at))
            else:
                ledger.book(key, instance, float(at))
                model[key] = instance
        elif what == "end":
            assert ledger.end(key) == model.pop(key, None)
        elif what == "drop":
            assert set(ledger.drop(instance)) == {k for k, i in model.items() if i == instance}
            model = {k: i for k, i in model.items() if i != instance}
        else:
            settled = ledger.settle(instance, listed, float(at))
            own = {k for k, i in model.items() if i == instance}
            assert set(settled.lost) <= set(settled.gone) <= own - listed
            assert set(settled.unseen) == own - listed - set(settled.gone)
            for gone in settled.gone:
                del model[gone]
        assert len(ledger) == len(model)
        for i in range(3):
            assert set(ledger.keys(i)) == {k for k, own in model.items() if own == i}
            assert ledger.outstanding(i) == len(ledger.keys(i)) >= 0


def test_who_was_seen_and_is_there_no_more_has_ended_and_who_never_was_is_lost_in_time():
    ledger = Ledger()
    ledger.book(1, 0, 0.0)
    ledger.book(2, 0, 0.0)
    assert ledger.settle(0, {1}, 0.5).unseen == [2]
    settled = ledger.settle(0, set(), 1.0)
    assert (settled.gone, settled.lost, settled.unseen) == ([1], [], [2])
    settled = ledger.settle(0, set(), LOST_AFTER_S + 0.1)
    assert (settled.gone, settled.lost) == ([2], [2])


def test_what_was_sent_after_a_state_was_taken_is_on_its_way():
    ledger = Ledger()
    ledger.book(1, 0, 20.0)
    assert ledger.settle(0, set(), 10.0).unseen == [1]


# -- requests and rows ------------------------------------------------------------------------


@given(st.lists(st.tuples(st.booleans(), st.integers(0, 400)), max_size=60))
@settings(max_examples=30)
def test_slots_are_used_again_and_never_by_two(steps):
    known = KnownRequests(LEVELS)
    alive = {}
    for add, key in steps:
        if add and key not in alive:
            alive[key] = known.add(request(key, tokens=1.0 + key))
        elif not add:
            known.forget(key)
            alive.pop(key, None)
        assert len(known) == len(alive) == len(set(alive.values()))
        for other, slot in alive.items():
            assert known.slot(other) == slot
            assert known.columns.quantiles[slot, 1] == pytest.approx(1.0 + other)
    assert known.slots([999]).tolist() == [-1]


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"arrival_s": math.nan}, "must be finite"),
        ({"ttft_s": math.nan}, "must be numbers"),
        ({"tokens": math.inf}, "quantiles must be finite"),
    ],
)
def test_what_is_not_a_number_is_refused(wrong, said):
    with pytest.raises(ValueError, match=said):
        request(1, **wrong)


def of_problem(now_s=5.0, running=3, waiting=6):
    """The same requests for the planner and as an instance's state."""
    rng = np.random.default_rng(1)
    n = running + waiting
    columns = {
        "prompt_tokens": rng.integers(5, 100, n).astype(float),
        "ttft_s": np.where(np.arange(n) % 2, 3.0, np.inf),
        "e2e_s": np.where(np.arange(n) % 3, np.inf, 9.0),
    }
    quantiles = np.sort(rng.uniform(5, 90, (n, 3)), axis=1)
    arrival_s = rng.uniform(0, now_s, n)
    begun = np.arange(n) < running
    rows = RequestArrays.build(
        quantiles, arrival_s, generated_tokens=np.where(begun, 7.0, 0.0),
        prefill_left_tokens=np.where(begun, 0.0, columns["prompt_tokens"]),
        first_token_s=np.where(begun, now_s - 0.1, np.nan), **columns,
    )  # fmt: skip
    profile = engine()
    k = Knowledge(LEVELS, BY_SELECTION)
    k.add("a", profile, 0.0)
    others = [
        FleetRequest(
            i, arrival_s[i], columns["prompt_tokens"][i], quantiles[i], columns["ttft_s"][i],
            np.inf, columns["e2e_s"][i],
        )
        for i in range(n)
    ]  # fmt: skip
    said = InstanceState(
        now_s, np.arange(n), running, 0, rows.generated_tokens, rows.prefill_left_tokens,
        np.zeros(n), rows.first_token_s,
    )  # fmt: skip
    k.observe(0, said, others)
    problem = Problem(
        now_s, LEVELS, rows.take(range(running, n)), rows.take(range(running)), profile.capacity,
        profile.scaled_step_time, 120.0,
    )  # fmt: skip
    return k, snapshot(problem, rows, running, n, fr.START_QUANTILE), n


def test_rows_are_those_of_the_planner():
    k, shot, n = of_problem()
    ours = fr.rows_at(k.rows, 0, n)
    for name in ("left", "target", "shared", "need", "generated", "first_s", "ttft_by_s", "tpot_s",
                 "e2e_by_s", "weight", "saved"):  # fmt: skip
        np.testing.assert_allclose(getattr(ours, name), getattr(shot.rows, name), err_msg=name)
    assert ours.strata.shape == (n, len(STRATA))
    np.testing.assert_allclose(ours.strata, shot.rows.strata)


def test_the_order_by_selection_takes_whom_the_planner_takes_first():
    k, shot, n = of_problem()
    order = np.zeros(n, dtype=np.int64)
    count = queue_order(k.rows, 0, n, BY_SELECTION, 5.0, order)
    theirs = selection_order(shot) + 3
    assert sorted(order[:count]) == sorted(theirs)
    for kind in (BY_ARRIVAL, BY_DEADLINE):
        assert sorted(order[: queue_order(k.rows, 0, n, kind, 5.0, order)]) == list(range(3, n))


def test_the_score_goes_by_the_limits_of_the_plan_in_force():
    def gain(limits):
        router = router_named("gain", "sa")
        router.add("a", engine(slots=4), 0.0)
        k = router.knowledge
        for key in range(2):
            other = request(key, tokens=300.0, e2e_s=9.0)
            k.meet(other)
            k.send(other, 0, 0.0)
        said = state(1.0, running=[0, 1], generated=5.0, sequence=1, limits=limits)
        router.observe(0, said)
        newcomer = request(2, 1.0, ttft_s=0.5)
        k.meet(newcomer)
        return k.gains(newcomer, np.array([0]), 1.0)[0, GAIN]

    assert gain(NO_LIMITS) > 0.9
    assert gain(PlanLimits(3.0)) > 0.9
    assert gain(PlanLimits(2.0)) < 0.1  # it waits for a slot
    assert gain(PlanLimits(prefill_tokens=0.0)) < gain(NO_LIMITS)  # two blocks, two steps
    for wrong in ((0.0, 9.0, 1.0), (1.0, -1.0, 1.0), (1.0, 0.0, np.nan), (1.0, 0.0, np.inf)):
        with pytest.raises(ValueError, match="limits must be of at least"):
            state(1.0, limits=PlanLimits(*wrong))


def test_a_row_that_ends_takes_its_work_along_and_the_others_stay():
    k, _, n = of_problem()
    before = fr.rows_at(k.rows, 0, n).need.copy()
    work_s = float(k.backlogs_s(5.0)[0])
    k.completed(4, 5.0)
    assert k.rows.counts[0].tolist() == [3, 0, n - 1, n - 1]
    np.testing.assert_array_equal(fr.rows_at(k.rows, 0, n - 1).need, np.delete(before, 4))
    k.completed(0, 5.0)
    assert k.rows.counts[0].tolist() == [2, 0, n - 2, n - 2]
    assert 0.0 < float(k.backlogs_s(5.0)[0]) < work_s


# -- the score --------------------------------------------------------------------------------


def fleet(rule="gain", n=2, policy="fcfs", now_s=0.0, **kwargs):
    router = router_named(rule, policy)
    for i in range(n):
        router.add(f"i{i}", engine(**kwargs), now_s)
    return router


def test_gain_prefers_the_instance_that_is_free():
    router = fleet()
    others = [request(i, tokens=400.0) for i in range(8)]
    router.observe(0, state(1.0, running=range(4), waiting=range(4, 8), generated=3.0), others)
    router.observe(1, state(1.0))
    decision = router.route(request(100, 1.0, ttft_s=0.5), 1.0)
    assert (decision.instance, decision.rung) == (1, "score")
    assert decision.gain == pytest.approx(1.0, abs=0.1)
    assert decision.chance == pytest.approx(1.0, abs=0.1)


def test_harm_to_those_there_is_in_the_gain():
    """A long request before a tight one in a line by arrival: the tight one's chance goes."""
    k = Knowledge(LEVELS, BY_ARRIVAL)
    k.add("busy", engine(slots=1), 0.0)
    k.add("idle", engine(slots=1), 0.0)
    tight = [request(i, tokens=10.0, e2e_s=1.0) for i in range(3)]
    k.observe(0, state(0.1, waiting=range(3), sequence=1), tight)
    newcomer = request(9, 0.1, tokens=300.0)  # best effort, and more than all of them
    k.meet(newcomer)
    among = np.array([0, 1])
    by_arrival = k.gains(newcomer, among, 0.1)[:, GAIN]
    assert by_arrival[0] == pytest.approx(by_arrival[1], abs=0.1)  # it stands behind them
    k.observe(0, state(0.1, running=(), waiting=(), sequence=2))
    k.observe(0, state(0.2, running=range(3), sequence=3, generated=2.0), tight)
    harm = k.gains(newcomer, among, 0.2)[:, GAIN]
    assert harm[0] <= harm[1]


def test_choosing_and_booking_are_one_step():
    """Many at once on the same picture spread: each sees those before it."""
    router = fleet(n=4)
    for i in range(4):
        router.observe(i, state(1.0))
    chosen = [router.route(request(key, 1.0, ttft_s=1.0), 1.0).instance for key in range(16)]
    assert np.bincount(chosen, minlength=4).tolist() == [4, 4, 4, 4]


@pytest.mark.parametrize("rule", [name for name in ROUTERS if not name.startswith("gain-late")])
def test_every_rule_chooses_one_of_the_open(rule):
    router = fleet(rule, n=3, cache=True)
    router.observe(0, state(0.9, draining=True))
    router.observe(1, state(0.9, cached_prefixes={7: 32.0}))
    router.observe(2, state(0.9))
    for key in range(12):
        asked = request(key, 1.0, ttft_s=1.0, tpot_s=0.1, prefix=7, prefix_tokens=16.0)
        assert router.route(asked, 1.0).instance in (1, 2)
    with pytest.raises(ValueError, match="known already"):
        router.route(request(3, 1.0), 1.0)


def test_what_is_cached_is_no_work():
    router = fleet("least-work", n=2, cache=True)
    router.observe(0, state(1.0))
    router.observe(1, state(1.0, cached_prefixes={7: 128.0}))
    asked = request(0, 1.0, prompt=200.0, prefix=7, prefix_tokens=128.0, tokens=2.0)
    assert router.route(asked, 1.0).instance == 1
    other = request(1, 1.0, prompt=200.0, tokens=2.0)
    assert router.route(other, 1.0).instance == 0  # what is there now waits for somebody's 72
    work_s = router.knowledge.backlogs_s(1.0)
    assert 0.0 < work_s[1] < work_s[0]
    assert router.knowledge.cached_tokens(1, asked) == 128.0
    assert router.knowledge.cached_tokens(0, asked) == 0.0


def test_vllms_balancing_counts_who_waits_more_where_memory_is_short():
    router = fleet("vllm", n=2, slots=4, kv=256)
    others = [request(k, tokens=200.0, prompt=56.0) for k in range(7)]
    router.observe(0, state(1.0, running=range(2), waiting=range(2, 4), generated=60.0), others[:4])
    router.observe(1, state(1.0, running=range(4, 7), generated=1.0), others[4:])
    # 4 requests of which 2 wait, at 230 of 256 tokens; 3 that run
    assert router.route(request(10, 1.0), 1.0).instance == 1
    # 4 and 4, but one waits while memory is short
    assert router.route(request(11, 1.0), 1.0).instance == 1


# -- what it rests on -------------------------------------------------------------------------


def test_the_rung_follows_the_age_of_the_knowledge():
    router = FleetRouter(LEVELS, rng=np.random.default_rng(0), began_s=0.0)
    for i in range(2):
        router.add(f"i{i}", engine(), 0.0)
    both = np.array([0, 1])
    assert router.rung(both, 0.5) == "power-of-two"  # nothing heard, and it has only begun
    assert router.rung(both, 1.5) == "least-outstanding"
    router.observe(0, state(1.0))
    router.observe(1, state(1.0))
    assert router.rung(both, 1.5) == "score"
    assert router.rung(both, 6.5) == "least-work"
    for key, now_s in enumerate((1.5, 6.5)):
        router.route(request(key, now_s), now_s)
        router.completed(key, now_s + 0.1)
    assert router.status(7.0)["decisions"] == {"score": 1, "least-work": 1}


def test_old_states_and_states_of_an_earlier_life_say_nothing():
    router = fleet()
    one = request(1)
    router.observe(0, state(1.0, running=[1], generated=5.0, sequence=2, epoch=1), [one])
    assert router.observe(0, state(2.0, sequence=1, epoch=1)) == []
    assert router.observe(0, state(2.0, sequence=9, epoch=0)) == []
    assert router.knowledge.counts[0] == 1
    assert router.observe(0, state(2.0, sequence=0, epoch=2)) == [1]  # it has restarted
    assert router.knowledge.counts[0] == 0
    assert 1 not in router.knowledge.known


def test_rows_that_nobody_described_are_counted_and_left_out():
    router = fleet()
    router.observe(0, state(1.0, running=[5, 6], generated=1.0))
    assert router.status(1.0)["unknown_rows"] == 2
    assert router.route(request(1, 1.0), 1.0).instance in (0, 1)


def test_an_instance_that_is_silent_under_load_gets_nothing_until_it_speaks():
    router = fleet("least-outstanding")
    router.knowledge.meet(request(0))
    router.knowledge.send(request(0), 0, 0.0)
    router.observe(1, state(5.5))
    assert {router.route(request(k, 6.0), 6.0).instance for k in (1, 2, 3)} == {1}
    router.observe(0, state(6.0))
    assert router.route(request(4, 6.1), 6.1).instance == 0


def test_an_idle_instance_is_not_silent():
    router = fleet("least-outstanding")
    assert sorted(router.route(request(k, 60.0), 60.0).instance for k in range(4)) == [0, 0, 1, 1]


def test_a_dead_instance_gives_back_what_it_had():
    router = fleet("round-robin")
    sent = {key: router.route(request(key), 0.0).instance for key in range(6)}
    assert router.remove(0) == [key for key, i in sent.items() if i == 0]
    again = [router.route(request(key), 0.1).instance for key, i in sent.items() if i == 0]
    assert set(again) == {1}
    router.remove(1)
    with pytest.raises(NoInstanceError):
        router.route(request(99), 0.2)
    assert 99 not in router.knowledge.known
    assert router.observe(0, state(0.3)) == []  # its last words


def test_a_rule_that_fails_costs_no_request(monkeypatch, caplog):
    router = fleet("gain")
    router.observe(0, state(1.0))
    router.observe(1, state(1.0))

    def broken(*args):
        raise ZeroDivisionError

    monkeypatch.setattr(router, "_choose", broken)
    assert router.route(request(1, 1.0), 1.0).rung == "least-outstanding"
    assert router.status(1.0)["errors"] == 1
    assert "fewest outstanding" in caplog.text


def test_unknown_routers_are_named():
    with pytest.raises(ValueError, match="unknown router 'best'; known are round-robin"):
        make_router("best", LEVELS, policy="sa", rng=np.random.default_rng(0))


# -- the idlest is asked first ----------------------------------------------------------------


@given(
    m=st.integers(2, 12),
    seed=st.integers(0, 1000),
    busy=st.integers(0, 8),
    policy=st.sampled_from(["fcfs", "feasible-edf", "sa"]),
    weight=st.sampled_from([0.5, 1.0, 3.0]),
)
@settings(max_examples=60, deadline=None)
def test_not_asking_the_others_changes_no_choice(m, seed, busy, policy, weight):
    """But where one of them gives more than the request is worth, by helping somebody else."""
    rng = np.random.default_rng(seed)
    router = router_named("gain", policy)
    key = 1000
    for i in range(m):
        router.add(f"i{i}", engine(speed=float(rng.choice([0.5, 1.0])), cache=True), 0.0)
        there = [
            request(key + p, tokens=float(rng.integers(5, 60)), e2e_s=rng.uniform(0.5, 5.0))
            for p in range(int(rng.integers(0, busy + 1)))
        ]
        key += len(there)
        keys, runs = [one.key for one in there], min(len(there), 4)
        said = state(1.0, running=keys[:runs], waiting=keys[runs:], generated=2.0)
        router.observe(i, said, there)
    k = router.knowledge
    for number in range(8):
        now_s = 1.0 + 0.01 * number
        asked = request(
            number, now_s, tokens=float(rng.integers(2, 60)), e2e_s=rng.uniform(0.3, 6.0),
            weight=weight, prefix=int(rng.integers(-1, 2)), prefix_tokens=16.0,
        )  # fmt: skip
        k.meet(asked)
        among = k.open(now_s)
        cached = k.all_cached(asked, among)
        work_s = k.backlogs_s(now_s)[among] + own_work_s(k, asked, among, cached)
        if len(among) > MOST_SCORED:
            few = np.argpartition(work_s, SAMPLED)[:SAMPLED]
            if cached.any():
                few = np.union1d(few, int(np.argmax(cached)))
            among, work_s = among[few], work_s[few]
        gain = k.gains(asked, among, now_s)[:, GAIN]
        near = np.flatnonzero(gain >= gain.max() - k.near * weight)
        alike = policy == "sa" and k.are_alike(among)
        first = np.lexsort((work_s[near], k.counts[among][near] if alike else work_s[near]))[0]
        chosen = most_gain(k, asked, k.open(now_s), now_s, router._turns)
        if gain.max() <= weight:
            assert chosen.instance == among[near[first]]
        assert chosen.gain == gain[among.tolist().index(chosen.instance)]
        k.send(asked, chosen.instance, now_s)
