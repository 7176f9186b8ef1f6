"""The pool's clock: tokens tell how long a step takes."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from lmdeploy_cases import random_workload

from lengthwise.scheduler.lmdeploy_adapter.pool_order import PoolOrder, pool_policy_of
from lengthwise.scheduler.lmdeploy_adapter.token_clock import (
    LEAST_RATIOS,
    MOST_GAPS,
    TokenClock,
)
from lengthwise.scheduler.profile import load_profile
from lengthwise.scheduler.simulator.instance import Course
from lengthwise.scheduler.step_time import MOST_WRONG, StepTimeModel

MODEL = StepTimeModel(0.01, 0.02, 1e-5, 1e-4, 1e-7)
ROWS, CONTEXT = 5, 2000.0
STEP_S = MODEL.step_s(0.0, ROWS, CONTEXT)


def served(gaps_s, tokens=1, plans=LEAST_RATIOS, reads=4):
    """A clock that has seen so many plans, each after a few reads of every row."""
    clock, now_s, at = TokenClock(), 0.0, 0
    for _ in range(plans):
        for _ in range(reads):
            now_s += gaps_s[at % len(gaps_s)]
            at += 1
            for row in range(ROWS):
                clock.read(row, tokens, now_s)
        clock.compare(MODEL, ROWS, CONTEXT)
    return clock


def test_a_right_clock_is_left_alone():
    clock = served([STEP_S])
    assert clock.ratio == 1.0
    assert clock.corrected(MODEL) is MODEL
    assert served([1.02 * STEP_S]).ratio == 1.0


@pytest.mark.parametrize("times", [0.6, 1.4, 3.0])
def test_slower_and_faster_engines_are_seen(times):
    clock = served([times * STEP_S])
    assert clock.ratio == pytest.approx(times)
    assert clock.corrected(MODEL).step_s(0.0, ROWS, CONTEXT) == pytest.approx(times * STEP_S)


def test_prompts_between_some_tokens_are_no_slower_clock():
    usual, beside_prompts = 1.4 * STEP_S, 1.4 * STEP_S + 0.3
    assert served([usual, usual, beside_prompts]).ratio == pytest.approx(1.4)


def test_tokens_that_come_at_once_share_their_time():
    assert served([4 * 1.5 * STEP_S], tokens=4).ratio == pytest.approx(1.5)


def test_little_evidence_says_nothing():
    assert served([2.0 * STEP_S], plans=LEAST_RATIOS - 1).ratio == 1.0
    assert served([2.0 * STEP_S], reads=1).ratio == 1.0  # five gaps a plan


def test_who_ended_leaves_no_gap_to_a_later_row_of_its_number():
    clock = TokenClock()
    for turn in range(40):
        clock.read(0, 1, 100.0 * turn)
        clock.ended(0)
        clock.compare(MODEL, 1, 100.0)
    assert clock.ratio == 1.0


def test_a_server_that_never_plans_keeps_only_the_last_gaps():
    clock = TokenClock()
    for at in range(5 * MOST_GAPS):
        clock.read(0, 1, at * STEP_S)
    assert len(clock._gaps_s) == MOST_GAPS


@given(
    reads=st.lists(
        st.tuples(st.integers(0, 5), st.integers(0, 3), st.floats(0.0, 1e3)), max_size=200
    ),
    decoding=st.integers(0, 5),
)
def test_the_ratio_is_bounded_whatever_comes(reads, decoding):
    clock = TokenClock()
    for at, (row, tokens, now_s) in enumerate(reads):  # a clock that steps back, too
        clock.read(row, tokens, now_s)
        if at % 7 == 0:
            clock.compare(MODEL, decoding, 10.0)
    assert 1.0 / MOST_WRONG <= clock.ratio <= MOST_WRONG


class Recorder:
    """A policy that remembers the clock it was given."""

    name, nominal_s = "recorder", 0.0

    def __init__(self):
        self.policy, self.base_s = pool_policy_of("fcfs"), []

    def __call__(self, problem):
        self.base_s.append(problem.step_time.base_s)
        return self.policy(problem)


def test_plans_at_the_pool_are_made_on_the_corrected_clock():
    profile, policy = load_profile("tiny-cpu"), Recorder()
    course = Course(random_workload(60, answers=(500, 501)))
    order = PoolOrder(course, policy, profile)
    for row in range(12):
        order.arrive(row, 0.0)
    order.admit(0.0, 12)
    now_s, model, came = 0.0, profile.scaled_step_time, 12
    for _ in range(400):
        known = course.rows(np.array(order.running), None, False)
        context = float((known.prompt_tokens + known.generated_tokens).sum())
        now_s += 2.0 * model.step_s(0.0, 12, context)
        for row in order.running:
            order.read(row, 1, now_s)
        if came < 60:
            order.arrive(came, now_s)
            came += 1
        order.admit(now_s, 0)
    assert policy.base_s[0] == model.base_s
    assert policy.base_s[-1] == pytest.approx(2.0 * model.base_s, rel=0.1)
