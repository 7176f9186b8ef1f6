"""Slots given up and limits: taken where they pay, left alone where they do not."""

from __future__ import annotations

from dataclasses import replace
from itertools import count
from types import SimpleNamespace

import numpy as np
import pytest
from planning_cases import LEVELS, MODEL, draw_workload

from lengthwise.scheduler.plan.search import anneal, value_of
from lengthwise.scheduler.policies.candidate_starts import LEAST_VALUED
from lengthwise.scheduler.policies.make import make_policy
from lengthwise.scheduler.problem import Capacity, Problem, RequestArrays
from lengthwise.scheduler.profile import EngineProfile
from lengthwise.scheduler.simulator.run import simulate
from lengthwise.scheduler.step_time import StepTimeModel

SLOTS = 4
ALL = ("order", "slots", "limits", "prefill", "period")
# 2 ms, and 1 ms more for each sequence: 12 ms a token at 10, 34 ms at 32
STEEP = StepTimeModel(2e-3, 0.0, 0.0, 1e-3, 0.0)
FLAT = StepTimeModel(8e-3, 0.0, 0.0, 1e-5, 0.0)


def certain(tokens, arrival_s, **columns):
    """Requests whose lengths are known."""
    tokens = np.asarray(tokens, dtype=float)
    return RequestArrays.build(
        np.repeat(tokens[:, None], len(LEVELS), axis=1), arrival_s, **columns
    )


def full_engine(e2e_s, *, now_s=50.0, queued_s=None, max_wait_s=120.0) -> Problem:
    """Four long answers run, twelve short ones wait that only a slot at once can save."""
    return Problem(
        now_s=now_s,
        levels=LEVELS,
        waiting=certain(np.full(12, 50), now_s - 0.5, prompt_tokens=20, e2e_s=1.5),
        running=certain(
            np.full(SLOTS, 20_000), 0.0, prompt_tokens=100, prefill_left_tokens=0.0,
            generated_tokens=1000, first_token_s=1.0, e2e_s=e2e_s, queued_s=queued_s,
        ),
        capacity=Capacity(SLOTS, 10**6, 512),
        step_time=MODEL,
        max_wait_s=max_wait_s,
    )  # fmt: skip


def test_the_hopeless_give_way_to_those_that_can_still_be_met():
    assert len(make_policy("sa", parts=ALL)(full_engine(e2e_s=20.0)).preempt) > 0


@pytest.mark.parametrize(
    "problem",
    [
        full_engine(e2e_s=1e6),  # they will meet their objective
        full_engine(e2e_s=20.0, queued_s=10.0),  # they have given way once
        full_engine(e2e_s=20.0, max_wait_s=40.0),  # older than any request may wait
    ],
)
def test_others_keep_their_slots(problem):
    assert len(make_policy("sa", parts=ALL)(problem).preempt) == 0


@pytest.mark.parametrize(
    ("part", "given"),
    [
        ("slots", lambda plan: len(plan.preempt)),
        ("limits", lambda plan: plan.max_running is not None),
        ("prefill", lambda plan: plan.max_prefill_tokens is not None),
        ("period", lambda plan: plan.prefill_period is not None),
    ],
)
def test_each_part_can_be_switched_off(part, given):
    others = tuple(other for other in ALL if other != part)
    for problem in (full_engine(e2e_s=20.0), queue(tpot_s=0.020)):
        assert not given(make_policy("sa", parts=others)(problem))


def queue(tpot_s, ttft_s=60.0, n=64) -> Problem:
    return Problem(
        now_s=1.0,
        levels=LEVELS,
        waiting=RequestArrays.build(
            np.full((n, len(LEVELS)), 100.0), 1.0, prompt_tokens=10, tpot_s=tpot_s, ttft_s=ttft_s
        ),
        running=RequestArrays.empty(len(LEVELS)),
        capacity=Capacity(32, 10**6, 2048),
        step_time=STEEP,
        max_wait_s=120.0,
    )


def test_fewer_run_where_a_tight_pace_asks_for_it():
    problem = queue(tpot_s=0.020)
    parts = ("order", "limits", "prefill")  # one plan's search finds either limit, not always both
    limits = [make_policy("sa", seed=seed, parts=parts)(problem).max_running for seed in range(5)]
    kept = [limit for limit in limits if limit is not None]
    assert len(kept) >= 4
    assert all(STEEP.step_s(0, limit, 0) <= 0.020 * 1.05 for limit in kept)


@pytest.mark.parametrize(
    "problem",
    [
        replace(queue(tpot_s=0.02), step_time=FLAT),  # the full batch is quick enough
        # 63 requests would starve for the sake of one
        queue(tpot_s=np.where(np.arange(64) > 0, np.inf, 0.005), ttft_s=5.0),
    ],
)
def test_all_may_run_where_a_limit_does_not_pay(problem):
    limit = make_policy("sa")(problem).max_running
    assert limit is None or limit > 24


def test_tight_objectives_are_met_in_the_simulator():
    workload = draw_workload(7, 300, rate_rps=25.0)
    n = len(workload)
    workload = replace(
        workload, ttft_s=np.full(n, 60.0), tpot_s=np.full(n, 0.020), e2e_s=np.full(n, np.inf)
    )
    profile = EngineProfile("steep", STEEP, Capacity(32, 10**6, 2048), "a test")
    planned = simulate(workload, make_policy("sa"), profile)
    best_rule = simulate(workload, make_policy("feasible-edf"), profile)
    assert planned.met(workload).mean() > best_rule.met(workload).mean() + 0.2


def test_whoever_gave_way_still_ends_once():
    """Eight long answers that are lost from the start, then a stream of short ones."""
    workload, long = draw_workload(4, 120, rate_rps=20.0), np.arange(120) < 8
    output = np.where(long, 3000, np.minimum(workload.output_tokens, 60))
    workload = replace(
        workload,
        arrival_s=np.where(long, 0.0, workload.arrival_s),
        output_tokens=output,
        quantiles=np.repeat(output[:, None].astype(float), len(LEVELS), axis=1),
        e2e_s=np.full(120, 1.0),
        ttft_s=np.full(120, np.inf),
        tpot_s=np.full(120, np.inf),
    )
    profile = EngineProfile("small", MODEL, Capacity(SLOTS, 20_000, 256), "a test")
    result = simulate(workload, make_policy("sa", parts=ALL), profile)
    kept = simulate(workload, make_policy("sa", parts=("order", "limits")), profile)
    assert result.yields > 0
    assert kept.yields == 0
    assert np.isfinite(result.finish_s).all()
    assert (result.output_tokens == workload.output_tokens).all()
    assert result.met(workload).mean() >= kept.met(workload).mean()


def test_prompts_are_gathered_where_each_step_with_some_is_dear():
    """A slot comes free every few steps; a prompt in each would halve the pace of all others."""
    floor = replace(FLAT, eager_s=0.06)
    lengths = np.linspace(110.0, 600.0, 32)[:, None] * np.ones(len(LEVELS))
    running = RequestArrays.build(
        lengths, 0.0, generated_tokens=100.0, prefill_left_tokens=0.0, prompt_tokens=10,
        first_token_s=0.1, tpot_s=1.5 * FLAT.step_s(0, 32, 0),
    )  # fmt: skip
    problem = replace(queue(tpot_s=np.inf), running=running, step_time=floor)
    alone = [make_policy("sa", seed=seed, parts=("period",)) for seed in range(5)]
    periods = [policy(problem).prefill_period or 1 for policy in alone]
    assert sum(period > 4 for period in periods) >= 3
    assert make_policy("sa", parts=("order", "limits", "prefill"))(problem).prefill_period is None


def test_a_plan_without_time_keeps_the_limits_of_the_last():
    """One plan without them lets every step compute prompts, and all paces break."""
    policy, problem = make_policy("sa", parts=("order", "limits", "prefill")), queue(tpot_s=0.020)
    limit = next(most for _ in range(9) if (most := policy(problem).max_running) is not None)
    policy.budget_s = 1e-9
    hurried = policy(replace(problem, now_s=problem.now_s + 0.2))
    assert hurried.evaluations == LEAST_VALUED
    assert hurried.max_running == limit


def test_limits_that_gain_nothing_any_more_are_lifted():
    policy, problem = make_policy("sa", parts=("order", "limits", "prefill")), queue(tpot_s=0.020)
    next(most for _ in range(9) if (most := policy(problem).max_running) is not None)
    policy.budget_s = 1e-9
    few = queue(tpot_s=np.inf, ttft_s=np.inf, n=3)
    lifted = policy(replace(few, now_s=problem.now_s + 0.2))
    assert lifted.max_running is None


def test_a_budget_is_the_processors_time_not_that_of_a_machine_that_is_busy(monkeypatch):
    """The thread waits for a core: the clock on the wall runs, its own stands still."""
    wall = count(0.0, 10.0)
    monkeypatch.setattr("lengthwise.scheduler.policies.annealing.time", SimpleNamespace(
        perf_counter=lambda: next(wall), thread_time=lambda: 1.0,
    ))  # fmt: skip
    plans = make_policy("sa", budget_s=0.02, seed=1), make_policy("sa", seed=1)
    hurried, unhurried = (policy(queue(tpot_s=0.020)) for policy in plans)
    assert hurried.evaluations == unhurried.evaluations


def test_nothing_is_compiled_anew_whatever_the_engine_counts_in():
    """Kernels compiled while serving take the engine's cores for most of a minute."""
    policy, problem = make_policy("sa"), queue(tpot_s=0.02)
    policy(problem)
    known = len(value_of.signatures), len(anneal.signatures)
    for rested in (0, 3, 5.0, np.inf):
        policy(replace(problem, now_s=problem.now_s + 0.1, rested_steps=rested))
    assert (len(value_of.signatures), len(anneal.signatures)) == known
