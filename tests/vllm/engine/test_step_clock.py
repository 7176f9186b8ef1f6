"""The clock that the engine's steps show, and plans that go by it."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from toy_engine import ToyEngine

from lengthwise.scheduler.serving.engine.core_status import core_status
from lengthwise.scheduler.serving.engine.observed.step_clock import DEADBAND, StepClock
from lengthwise.scheduler.step_time import StepTimeModel

MODEL = StepTimeModel(0.007, 0.008, 3e-5, 1.4e-5, 3e-8, eager_s=0.045, graph_tokens=256.0)


def steps(seed: int, count: int = 1_500) -> list[tuple[int, int, int]]:
    """Decodes with a step of prompts among every six or so."""
    rng = np.random.default_rng(seed)
    prompts = np.where(rng.random(count) < 1 / 6, rng.integers(1, 2_000, count), 0)
    running = rng.integers(20, 120, count)
    return list(zip(prompts.tolist(), running.tolist(), (running * 400).tolist(), strict=True))


@given(
    st.floats(0.5, 2.0).filter(lambda factor: abs(factor - 1.0) > 2 * DEADBAND),
    st.integers(0, 3),
    st.booleans(),
)
def test_the_ratio_is_the_factor_even_where_durations_are_booked_a_step_late(factor, seed, late):
    clock = StepClock()
    modelled = [MODEL.step_s(*work) for work in steps(seed)]
    took = [factor * seconds for seconds in modelled]
    for duration_s, modelled_s in zip(took, modelled[1:] if late else modelled, strict=False):
        clock.note(duration_s, modelled_s)
    assert clock.ratio == pytest.approx(factor, rel=0.02)
    corrected = clock.corrected(MODEL)
    for work in steps(seed, 20):
        assert corrected.step_s(*work) == pytest.approx(clock.ratio * MODEL.step_s(*work))


def test_a_right_clock_is_left_as_it_is():
    clock, rng = StepClock(), np.random.default_rng(0)
    for work in steps(5):
        clock.note(MODEL.step_s(*work) * rng.normal(1.0, 0.05), MODEL.step_s(*work))
    assert clock.ratio == 1.0
    assert clock.corrected(MODEL) is MODEL


def test_a_few_steps_and_a_stall_say_nothing():
    clock = StepClock()
    for _ in range(100):
        clock.note(0.012, 0.01)
    assert clock.ratio == 1.0  # 1.2 s of evidence
    for _ in range(200):
        clock.note(0.012, 0.01)
    before = clock.ratio
    assert before == pytest.approx(1.2)
    for odd_s in (30.0, 0.0, -1.0, float("nan")):
        clock.note(odd_s, 0.01)
    assert clock.ratio == before


def test_a_machine_that_recovers_is_believed_within_its_memory():
    clock = StepClock()
    for factor, ratio in ((1.3, 1.3), (1.0, 1.0)):
        for _ in range(4_000):
            clock.note(factor * 0.01, 0.01)
        assert clock.ratio == pytest.approx(ratio, abs=0.01)


def test_plans_go_by_the_clock_and_a_new_fit_starts_it_anew():
    engine = ToyEngine({"policy": "fcfs", "refit_steps": 0}, slots=4)
    planner = engine.core.planner
    fitted = planner.fitted
    assert planner.step_time is fitted
    for work in steps(1):
        planner.note_step(work, 1.25 * fitted.step_s(*work))
    assert planner.step_time.base_s == pytest.approx(1.25 * fitted.base_s, rel=0.01)
    status = core_status(engine.core, 0.0)["step_time"]
    assert status["measured_over_modelled"] == pytest.approx(1.25, rel=0.01)
    assert status["base_s"] == fitted.base_s
    planner.believe(MODEL)
    assert planner.step_time is MODEL


def test_the_engine_tells_the_clock_of_each_step_that_ends():
    engine = ToyEngine({"policy": "fcfs", "refit_steps": 0}, slots=4)
    core, noted = engine.core, []
    core.planner.note_step = lambda work, took_s: noted.append((work, took_s))
    core.timer.begin((8, 0, 0), 1.0)
    core.step_ended(True, 1, 1.5, 0.0)
    core.step_ended(False, 1, 1.6, 0.0)
    assert noted == [((8, 0, 0), pytest.approx(0.5))]
