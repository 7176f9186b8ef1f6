from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from planning_cases import MODEL, draw_problem, draw_workload

from lengthwise.scheduler.guards.fairness import (
    TenantFairness,
    adjusted_weights,
    fair_shares,
    jain_index,
    slot_seconds,
    tenant_factors,
)
from lengthwise.scheduler.plan.rollout.rows import snapshot
from lengthwise.scheduler.policies.make import make_policy
from lengthwise.scheduler.problem import Capacity
from lengthwise.scheduler.profile import EngineProfile
from lengthwise.scheduler.simulator.run import simulate

SMALL = EngineProfile("small", MODEL, Capacity(6, 3_000, 256), "test")
NOBODY = np.empty(0, dtype=np.int64)

demands = st.lists(st.floats(0.0, 1e6), min_size=1, max_size=12).map(np.array)
capacities = st.floats(0.1, 1e6)


def draw_tenants(seed, n, k):
    return np.random.default_rng(seed).integers(0, k, n)


@given(demand=demands, capacity=capacities, seed=st.integers(0, 1000))
def test_fair_shares_are_max_min(demand, capacity, seed):
    weight = np.random.default_rng(seed).uniform(0.1, 10.0, len(demand))
    share = fair_shares(demand, capacity, weight)
    assert (share >= 0).all()
    assert (share <= demand).all()
    assert share.sum() == pytest.approx(min(capacity, demand.sum()), rel=1e-6)
    for t in np.flatnonzero(share < demand * (1 - 1e-9)):  # who is cut has no less than any other
        assert (share[t] / weight[t] >= share / weight * (1 - 1e-6)).all()


def test_the_small_get_what_they_ask_for_and_weights_divide_the_rest():
    share = fair_shares(np.array([10.0, 100, 100]), 70.0, np.array([1.0, 1, 2]))
    assert share == pytest.approx([10, 20, 40])


@pytest.mark.parametrize(("demand", "weight"), [(-1.0, 1.0), (1.0, 0.0)])
def test_nonsense_is_refused(demand, weight):
    with pytest.raises(ValueError, match="demands must not be negative"):
        fair_shares(np.array([demand]), 1.0, np.array([weight]))


@given(demand=demands, capacity=capacities, seed=st.integers(0, 1000), severity=st.floats(0.1, 8))
def test_scaling_keeps_the_order_within_a_tenant_and_no_weight_is_lost(
    demand, capacity, seed, severity
):
    rng = np.random.default_rng(seed)
    factor = tenant_factors(demand, capacity, np.ones(len(demand)), severity)
    assert (factor > 0).all()
    assert factor.max() == 1.0
    weight, tenant = rng.uniform(0, 5, 60), rng.integers(0, len(demand), 60)
    scaled = adjusted_weights(weight, tenant, factor)
    assert (scaled >= 0).all()
    assert (scaled <= weight).all()
    for t in np.unique(tenant):
        own = tenant == t
        assert (np.argsort(scaled[own]) == np.argsort(weight[own])).all()


def test_whoever_wants_more_is_not_better_off():
    factor = tenant_factors(np.array([5.0, 80, 400, 0]), 100.0, np.ones(4))
    assert factor[0] == 1.0 == factor[3]
    assert factor[1] > factor[2] > 0


def test_nothing_changes_while_all_demand_fits():
    assert (tenant_factors(np.array([5.0, 80]), 100.0, np.ones(2)) == 1).all()


@given(seed=st.integers(0, 1000), waiting=st.integers(0, 30), tenant=st.integers(0, 3))
def test_one_tenant_changes_nothing(seed, waiting, tenant):
    problem = draw_problem(seed, waiting)
    fairness = TenantFairness()
    rows = np.full(waiting, tenant)
    assert fairness.adjust(problem, rows, np.full(4, tenant)) is problem
    order = np.random.default_rng(seed).permutation(waiting)
    assert fairness.settle(problem, rows, order) is order


@given(seed=st.integers(0, 1000), n=st.integers(1, 60), max_wait_s=st.sampled_from([1.0, 60.0]))
def test_a_settled_order_is_a_permutation_with_the_overdue_before_the_tenants_others(
    seed, n, max_wait_s
):
    problem = replace(draw_problem(seed, n), max_wait_s=max_wait_s)
    tenant = draw_tenants(seed, n, 3)
    fairness = TenantFairness()
    fairness.adjust(problem, tenant, draw_tenants(seed + 1, 4, 3))
    order = fairness.settle(problem, tenant, np.random.default_rng(seed).permutation(n))
    assert sorted(order) == list(range(n))
    past = problem.now_s - problem.waiting.arrival_s > max_wait_s
    for t in np.unique(tenant):
        own = past[order[tenant[order] == t]]
        assert (np.diff(own.astype(int)) <= 0).all()


def test_the_overdue_of_a_flood_leave_turns_to_the_others():
    """Fifty overdue requests of tenant 0, one fresh one of tenant 1 at the plan's end."""
    problem = draw_problem(3, 51, running=0)
    arrival_s = np.append(np.linspace(0.0, 0.5, 50), 4.9)
    problem = replace(
        problem, waiting=replace(problem.waiting, arrival_s=arrival_s), max_wait_s=2.0
    )
    tenant = np.append(np.zeros(50, dtype=np.int64), 1)
    fairness = TenantFairness()
    fairness.adjust(problem, tenant, NOBODY)
    order = fairness.settle(problem, tenant, np.arange(51))
    assert 50 in order[:2]
    alone = TenantFairness()
    alone.adjust(problem, np.zeros(51, dtype=np.int64), NOBODY)
    assert alone.settle(problem, np.zeros(51, dtype=np.int64), np.arange(51))[-1] == 50


def test_the_work_estimate_follows_the_planners():
    """A rough one will do, since only shares count."""
    problem = draw_problem(5, 40, running=8, max_num_seqs=16)
    exact = snapshot(problem, problem.waiting, 0, 40, 0.5).slot_s
    estimate = slot_seconds(problem, problem.waiting)
    assert np.corrcoef(np.log(estimate), np.log(exact))[0, 1] > 0.9


def test_what_a_tenant_had_counts_until_it_fades():
    problem = draw_problem(1, 2)
    fairness = TenantFairness(horizon_s=10.0)
    tenant, running = np.array([0, 1]), np.zeros(4, dtype=np.int64)
    for now_s in (0.0, 0.5, 1.0):
        fairness.adjust(replace(problem, now_s=now_s), tenant, running)
    # half a second of 4 slots, faded for half a second, and half a second more
    assert fairness._served_s == pytest.approx([2.0 * np.exp(-0.05) + 2.0, 0.0])
    fairness.adjust(replace(problem, now_s=101.0), tenant, np.empty(0, dtype=np.int64))
    assert fairness._served_s[0] < 0.001


def test_jain():
    assert jain_index(np.array([0.5, 0.5, 0.5])) == pytest.approx(1.0)
    assert jain_index(np.array([1.0, 0.0, 0.0, 0.0])) == pytest.approx(0.25)
    assert jain_index(np.empty(0)) == jain_index(np.zeros(3)) == 1.0


def flooded(seed):
    """144 requests of tenant 1 in little more than a second, and 16 of tenant 0 among them."""
    workload = draw_workload(seed, 160, rate_rps=120.0)
    tenant = (np.arange(160) % 10 > 0).astype(np.int64)
    bounded = replace(workload, e2e_s=np.full(160, 1.0), ttft_s=np.full(160, np.inf))
    return replace(bounded, tpot_s=np.full(160, np.inf), tenant_id=tenant)


def test_a_flood_does_not_push_the_victim_below_arrival_order():
    def attained(seed, name, fairness=None):
        workload = flooded(seed)
        policy = make_policy(name, **({"iterations": 20} if name == "sa" else {}))
        met = simulate(workload, policy, SMALL, fairness=fairness).met(workload)
        return met[workload.tenant_id == 0].mean()

    by_arrival = [attained(seed, "fcfs") for seed in range(3)]
    plain = [attained(seed, "sa") for seed in range(3)]
    fair = [attained(seed, "sa", TenantFairness(horizon_s=1.0)) for seed in range(3)]
    assert all(f >= a for f, a in zip(fair, by_arrival, strict=True))
    assert np.mean(fair) >= np.mean(plain)


def test_without_tenants_the_simulator_plays_as_before():
    workload = replace(flooded(1), tenant_id=None)
    ends = [
        simulate(workload, make_policy("sa", iterations=20), SMALL, fairness=fairness).finish_s
        for fairness in (None, TenantFairness())
    ]
    assert (ends[0] == ends[1]).all()
