from dataclasses import replace

import numpy as np
import pytest

from lengthwise.scheduler.policies.make import make_policy
from lengthwise.scheduler.problem import Capacity
from lengthwise.scheduler.profile import EngineProfile, PrefixCache
from lengthwise.scheduler.simulator.clairvoyant import (
    FixedOrder,
    KnownArrivals,
    by_steps,
    clairvoyant,
)
from lengthwise.scheduler.simulator.run import simulate
from lengthwise.scheduler.simulator.sim_workload import SimWorkload
from lengthwise.scheduler.step_time import StepTimeModel

PROFILE = EngineProfile(
    "four slots", StepTimeModel(0.01, 0.002, 1e-5, 1e-3, 0.0), Capacity(4, 4096, 512), "made up"
)


def overloaded(n=60):
    rng = np.random.default_rng(4)
    answers = rng.integers(5, 120, n)
    return SimWorkload(
        arrival_s=np.sort(rng.uniform(0.0, 8.0, n)),
        prompt_tokens=rng.integers(5, 60, n),
        output_tokens=answers,
        ttft_s=np.where(rng.random(n) < 0.3, 1.0, np.inf),
        tpot_s=np.full(n, np.inf),
        e2e_s=np.where(rng.random(n) < 0.8, 3.0, np.inf),
        weight=np.ones(n),
        class_id=np.zeros(n, dtype=np.int64),
        quantiles=np.repeat(answers[:, None].astype(float), 2, axis=1),
        levels=np.array([0.05, 0.95]),
    )


def orders_of(workload):
    return [np.argsort(workload.arrival_s), np.argsort(workload.output_tokens, kind="stable")]


def searched(workload, steps=1500):
    rng = np.random.default_rng(0)
    return clairvoyant(workload, PROFILE, orders_of(workload), by_steps(steps), rng)


def test_the_search_only_gains_and_knows_more_than_arrival_order():
    workload = overloaded()
    found = searched(workload)
    attained = simulate(workload, make_policy("fcfs"), PROFILE).met(workload).mean()
    assert found.steps == 1600  # whole rounds
    assert attained < found.attainment <= 1.0
    assert found.start <= found.attainment
    again = searched(workload)
    assert again.attainment == found.attainment
    assert (again.order == found.order).all()


def test_no_search_is_the_best_start():
    found = searched(overloaded(), 0)
    assert found.steps == 0
    assert found.start == found.attainment


def test_what_was_found_is_attained_when_it_is_served():
    workload = overloaded()
    found = searched(workload)
    result = simulate(workload, FixedOrder(workload, found), PROFILE, max_wait_s=1e9)
    assert result.met(workload).mean() == pytest.approx(found.attainment, abs=0.07)
    fcfs = simulate(workload, make_policy("fcfs"), PROFILE).met(workload).mean()
    assert result.met(workload).mean() > fcfs


def test_a_fixed_order_is_known_by_arrival_times():
    workload = overloaded()
    found = searched(workload, 0)
    alike = replace(workload, arrival_s=np.zeros(len(workload)))
    with pytest.raises(ValueError, match="must differ"):
        FixedOrder(alike, found)


def test_known_arrivals_are_those_to_come_within_the_horizon():
    workload = overloaded()
    forecast = KnownArrivals(workload, PROFILE)
    now_s = float(workload.arrival_s[10])
    seen = []

    class Asking:
        name, nominal_s = "asking", 0.0

        def __call__(self, problem):
            if problem.now_s >= now_s and not seen:
                seen.append((problem.now_s, forecast.expected(problem, 2.0, 100)))
                assert len(forecast.expected(problem, 2.0, 3)) == 3
            return make_policy("fcfs")(problem)

    simulate(workload, Asking(), PROFILE)
    ((asked_s, rows),) = seen
    coming = (workload.arrival_s > asked_s) & (workload.arrival_s <= asked_s + 2.0)
    assert (rows.arrival_s == workload.arrival_s[coming]).all()
    assert (rows.prompt_tokens == workload.prompt_tokens[coming]).all()
    assert (rows.quantiles == workload.quantiles[coming]).all()
    assert (rows.prefill_left_tokens == rows.prompt_tokens).all()


def test_a_shared_beginning_counts_where_the_engine_keeps_it():
    workload = overloaded()
    n = len(workload)
    shared = replace(
        workload,
        prompt_tokens=np.full(n, 60),
        prefix_id=np.zeros(n, dtype=np.int64),
        prefix_tokens=np.full(n, 50),
    )
    keeping = replace(PROFILE, prefix_cache=PrefixCache(16))
    dear = replace(PROFILE.step_time, prefill_token_s=2e-3)
    profiles = [replace(profile, step_time=dear) for profile in (PROFILE, keeping)]
    without, kept = (
        clairvoyant(shared, profile, orders_of(shared), by_steps(0), np.random.default_rng(0))
        for profile in profiles
    )
    assert kept.attainment > without.attainment


def test_it_needs_an_order_to_begin_with():
    with pytest.raises(ValueError, match="at least one start"):
        clairvoyant(overloaded(), PROFILE, [], by_steps(10), np.random.default_rng(0))
