"""The factor on the profile's step times, learned from the tokens that running requests gain."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from planning_cases import draw_problem

from lengthwise.scheduler.plan.feedback.pace import DEADBAND, MOST, StepPace


def decoding(now_s: float, tokens: float, rows: int = 4):
    """``rows`` requests that have ``tokens`` each."""
    problem = draw_problem(0, 1, running=rows)
    running = replace(
        problem.running,
        arrival_s=np.arange(rows, dtype=float),
        generated_tokens=np.full(rows, tokens),
        prefill_left_tokens=np.zeros(rows),
    )
    return replace(problem, now_s=now_s, running=running)


def expect(pace: StepPace, problem, token_s: float) -> None:
    """The plan says a token every ``token_s``."""
    pace.expect(problem, lambda until_s: (until_s - problem.now_s) / token_s)


def lived(pace: StepPace, real_s: float, told_s: float, seconds: float = 60.0) -> StepPace:
    """Plans twice a second expect a token every ``told_s``; it takes ``real_s``."""
    for now_s in np.arange(10.0, 10.0 + seconds, 0.5):
        problem = decoding(now_s, 100.0 + now_s / real_s)
        pace.observe(problem)
        expect(pace, problem, told_s * pace.factor)
    return pace


@pytest.mark.parametrize("ratio", [1 / 10, 1 / 3, 0.4, 2.5, 3.0, 10.0])
def test_a_large_lasting_error_is_learned(ratio):
    assert lived(StepPace(), 0.02 * ratio, 0.02).factor == pytest.approx(ratio, rel=0.1)


@pytest.mark.parametrize("ratio", [0.6, 1.0, 1.8])
def test_a_small_error_is_left_alone(ratio):
    assert 1 / DEADBAND < ratio < DEADBAND
    assert lived(StepPace(), 0.02 * ratio, 0.02).factor == 1.0


def test_what_was_learned_is_forgotten_when_it_is_no_longer_so():
    pace = lived(StepPace(), 0.06, 0.02)
    assert pace.factor > 2.0
    assert lived(pace, 0.02, 0.02).factor == 1.0


def test_one_odd_plan_is_noise():
    pace = StepPace()
    first = decoding(10.0, 100.0)
    expect(pace, first, 0.02)
    pace.observe(decoding(11.0, 110.0))  # ten tokens where fifty were expected
    assert pace.factor == 1.0


@pytest.mark.parametrize(
    "later",
    [
        decoding(9.0, 150.0),  # the clock stepped back
        decoding(10.0, 150.0),
        decoding(90.0, 150.0),  # too long ago
        decoding(11.0, 100.0),  # nobody gained
        decoding(11.0, 1000.0),  # too short a time, whatever it says
        decoding(11.0, 150.0, rows=0),  # nobody runs
    ],
)
def test_what_says_nothing_teaches_nothing(later):
    pace = StepPace()
    expect(pace, decoding(10.0, 100.0), 1e-4)
    pace.observe(later)
    assert pace.factor == 1.0


@given(
    moments=st.lists(
        st.tuples(st.floats(-5.0, 5.0), st.floats(0.0, 1e4), st.floats(1e-6, 10.0)), max_size=30
    )
)
def test_the_factor_stays_in_bounds(moments):
    pace, now_s = StepPace(), 10.0
    for step_s, tokens, token_s in moments:
        now_s += step_s
        problem = decoding(now_s, tokens)
        pace.observe(problem)
        expect(pace, problem, token_s)
        assert 1 / MOST <= pace.factor <= MOST
