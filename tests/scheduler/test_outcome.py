"""What an order brings those who wait, asked from outside."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from planning_cases import LEVELS, draw_problem, problems

from lengthwise.scheduler.plan.rollout.outcome import HORIZON_S, played
from lengthwise.scheduler.problem import RequestArrays


@given(problem=problems)
def test_everybody_has_times_and_a_chance(problem):
    order = np.random.default_rng(0).permutation(len(problem.waiting))
    outcome = played(problem, order)
    assert len(outcome.first_s) == len(outcome.finish_s) == len(problem.waiting)
    assert (outcome.first_s > problem.now_s).all()
    assert (outcome.finish_s >= outcome.first_s).all()
    assert ((outcome.chance >= 0) & (outcome.chance <= 1)).all()
    rows = problem.waiting
    nothing = np.isinf(np.minimum(np.minimum(rows.ttft_s, rows.tpot_s), rows.e2e_s))
    assert (outcome.chance[nothing] == 0).all()  # nothing to attain


def test_an_idle_engine_meets_what_it_can():
    rows = RequestArrays.build(
        np.full((2, len(LEVELS)), 100.0), 5.0, prompt_tokens=50, e2e_s=[60.0, 0.01]
    )
    problem = replace(draw_problem(0, 1, running=0), waiting=rows)
    assert played(problem, np.arange(2)).chance.tolist() == [1.0, 0.0]


def test_those_who_recover_go_before_any_plan():
    problem = draw_problem(3, 1, running=0, max_num_seqs=1)
    alone = played(problem, np.arange(1))
    before = problem.waiting.take([0])
    before = replace(
        before,
        generated_tokens=np.array([20.0]),
        prefill_left_tokens=before.prompt_tokens + 20.0,
        first_token_s=np.array([4.0]),
    )
    behind = played(replace(problem, recovering=before), np.arange(1))
    assert behind.first_s[0] > alone.first_s[0]


def test_beyond_the_horizon_nothing_is_known():
    problem = draw_problem(4, 30, running=0, max_num_seqs=1)
    near, far = (played(problem, np.arange(30), horizon) for horizon in (1.0, HORIZON_S))
    assert np.isinf(near.finish_s).any()
    assert np.isfinite(far.finish_s).all()
    ended = np.isfinite(near.finish_s)
    assert near.finish_s[ended] == pytest.approx(far.finish_s[ended])
