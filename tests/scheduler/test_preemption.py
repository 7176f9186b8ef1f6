"""Slots taken back from running requests whose objectives are lost."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from planning_cases import LEVELS, MODEL, draw_problem, draw_workload, problems

from lengthwise.scheduler.plan.jobs import prepare
from lengthwise.scheduler.plan.preemption import running_chance
from lengthwise.scheduler.policies.make import make_policy
from lengthwise.scheduler.problem import Capacity, Problem, RequestArrays
from lengthwise.scheduler.profile import EngineProfile
from lengthwise.scheduler.simulator.run import simulate

SLOTS = 4


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


def plan(problem, **params):
    return make_policy("sa", iterations=40, calm=0.0, **params)(problem)


def test_the_hopeless_give_way_to_those_that_can_still_be_met():
    assert len(plan(full_engine(e2e_s=20.0)).preempt) > 0


@pytest.mark.parametrize(
    "problem",
    [
        full_engine(e2e_s=1e6),  # they will meet their objective
        full_engine(e2e_s=20.0, queued_s=10.0),  # they have given way once
        full_engine(e2e_s=20.0, max_wait_s=40.0),  # older than any request may wait
    ],
)
def test_others_keep_their_slots(problem):
    assert len(plan(problem).preempt) == 0


def test_it_can_be_switched_off():
    assert len(plan(full_engine(e2e_s=20.0), forlorn=-1.0).preempt) == 0


def test_no_more_slots_are_taken_than_can_be_used():
    problem = full_engine(e2e_s=20.0)
    assert len(plan(replace(problem, waiting=problem.waiting.take([0, 1]))).preempt) <= 2


@given(problems)
def test_victims_are_running_rows_each_once(problem):
    preempt = plan(problem).preempt
    assert len(set(preempt.tolist())) == len(preempt)
    assert ((preempt >= 0) & (preempt < len(problem.running))).all()


def test_chances_of_running_requests():
    now_s = 10.0
    rows = certain(
        np.full(6, 200), 0.0, prompt_tokens=10, prefill_left_tokens=0.0, generated_tokens=100,
        first_token_s=[5.0, 5.0, 5.0, 5.0, 2.0, 5.0],
        ttft_s=[np.inf, 4.0, 6.0, np.inf, np.inf, np.inf],
        tpot_s=[np.inf, np.inf, np.inf, 0.025, 0.05, np.inf],
        e2e_s=[9.0, np.inf, np.inf, np.inf, np.inf, 11.5],
    )  # fmt: skip
    problem = replace(draw_problem(0, 1), now_s=now_s, running=rows)
    chance = running_chance(
        LEVELS, rows.quantiles, prepare(problem).running, rows.generated_tokens,
        rows.first_token_s, now_s, 0.01,
    )  # fmt: skip
    # late; first token late; first token in time; mean pace lost for good (100 tokens at 10 ms
    # bring 50 ms down to 30); mean pace won back; 100 tokens left at 10 ms in 1.5 s
    assert chance == pytest.approx([0.0, 0.0, 1.0, 0.0, 1.0, 1.0], abs=0.01)


def test_best_effort_has_nothing_to_lose():
    problem = full_engine(e2e_s=np.inf)
    assert len(plan(problem).preempt) > 0


def test_whoever_gave_way_still_ends_once():
    workload = draw_workload(4, 300, rate_rps=120.0)
    workload = replace(workload, quantiles=np.maximum(workload.quantiles / 4, 1.0))  # runaways
    profile = EngineProfile("small", MODEL, Capacity(SLOTS, 4000, 256), "a test")
    result = simulate(workload, make_policy("sa", iterations=20, calm=0.0), profile)
    assert result.yields > 0
    assert np.isfinite(result.finish_s).all()
    assert (result.output_tokens == workload.output_tokens).all()
