"""Fewer at once where a tight time per output token demands it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from planning_cases import LEVELS, draw_workload

from lengthwise.scheduler.plan.batch_limit import binding_caps
from lengthwise.scheduler.plan.jobs import prepare
from lengthwise.scheduler.policies.make import make_policy
from lengthwise.scheduler.problem import Capacity, Problem, RequestArrays
from lengthwise.scheduler.profile import EngineProfile
from lengthwise.scheduler.simulator.run import simulate
from lengthwise.scheduler.step_time import StepTimeModel

# 2 ms, and 1 ms more for each sequence: 12 ms a token at 10, 34 ms at 32
STEEP = StepTimeModel(2e-3, 0.0, 0.0, 1e-3, 0.0)


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


def test_the_largest_batch_that_keeps_the_pace():
    problem = queue(tpot_s=0.020)
    (cap,) = binding_caps(problem, prepare(problem))
    assert STEEP.step_s(0, cap, 0) <= 0.020 < STEEP.step_s(0, cap + 2, 0)


@pytest.mark.parametrize("tpot_s", [0.05, np.inf, 0.0025])
def test_none_where_the_full_batch_is_quick_enough_or_no_batch_is(tpot_s):
    problem = queue(tpot_s)
    assert binding_caps(problem, prepare(problem)) == []


def test_each_tight_objective_has_its_own_cap():
    problem = queue(tpot_s=np.where(np.arange(64) % 2, 0.012, 0.025))
    assert binding_caps(problem, prepare(problem)) == [21, 9]


def test_the_plan_limits_how_many_run_only_where_it_pays():
    policy = make_policy("sa", iterations=20)
    assert policy(queue(tpot_s=0.020)).max_running == 17
    assert policy(queue(tpot_s=0.05)).max_running is None
    # 63 requests without TPOT would starve for the sake of one
    problem = queue(tpot_s=np.where(np.arange(64) > 0, np.inf, 0.005), ttft_s=5.0)
    assert policy(problem).max_running is None


def test_tight_objectives_are_met_in_the_simulator():
    workload = draw_workload(7, 300, rate_rps=25.0)
    n = len(workload)
    workload = replace(
        workload, ttft_s=np.full(n, 60.0), tpot_s=np.full(n, 0.020), e2e_s=np.full(n, np.inf)
    )
    profile = EngineProfile("steep", STEEP, Capacity(32, 10**6, 2048), "a test")
    planned = simulate(workload, make_policy("sa", iterations=20), profile)
    arrival_order = simulate(workload, make_policy("feasible-edf"), profile)
    assert planned.met(workload).mean() > arrival_order.met(workload).mean() + 0.2
