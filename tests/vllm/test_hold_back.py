"""Newcomers wait for a plan where one more would cost the others their pace, and only there."""

from __future__ import annotations

import threading
import time

import numpy as np
import pytest
from toy_engine import ToyEngine, make_request

from lengthwise.scheduler.problem import Plan
from lengthwise.scheduler.step_time import StepTimeModel
from lengthwise.scheduler.vllm_adapter.engine.hold_back import LONGEST_S, pace

QUANTILES = [10.0, 12, 14, 16, 18, 20, 22, 24, 26, 30, 35, 50]


class Asked:
    """A policy that counts, holds nobody's order, and ends when told to."""

    name = "asked"

    def __init__(self) -> None:
        self.plans = 0
        self.most: int | None = None
        self.go = threading.Event()

    def __call__(self, problem):
        self.plans += 1
        self.go.wait(10.0)
        return Plan(order=np.arange(len(problem.waiting)), max_running=self.most)


@pytest.fixture
def engine():
    fake = ToyEngine({"plan_in_thread": True, "plan_share": 1.0, "refit_steps": 0}, slots=8)
    fake.core.planner.policy = Asked()
    yield fake
    fake.core.planner.policy.go.set()


def asks(name, tpot_ms=None):
    slo = {} if tpot_ms is None else {"slo_tpot_ms": tpot_ms}
    return make_request(name, pred_quantiles=QUANTILES, **slo)


def start(fake, name="first", tpot_ms=None):
    fake.add(asks(name, tpot_ms), output_tokens=500)
    fake.step()
    fake.step()
    assert fake.admitted == [name]


def wait_for(condition):
    until_s = time.monotonic() + 5.0
    while not condition():
        assert time.monotonic() < until_s
        time.sleep(0.001)


def test_a_newcomer_waits_for_its_plan_and_no_longer(engine):
    start(engine, tpot_ms=0.5)
    engine.add(asks("second"))
    engine.step()
    policy = engine.core.planner.policy
    wait_for(lambda: policy.plans == 1)
    assert engine.decisions[-1].max_running == 1
    assert engine.admitted == ["first"]
    policy.go.set()
    wait_for(lambda: engine.step() or "second" in engine.admitted)


def test_a_plan_that_lets_fewer_run_holds_it_on(engine):
    start(engine, tpot_ms=0.5)
    policy = engine.core.planner.policy
    policy.most = 1
    policy.go.set()
    engine.add(asks("second"))
    wait_for(lambda: engine.step() or engine.core.decisions.in_force.max_running == 1)
    engine.step()
    assert engine.admitted == ["first"]


def test_a_plan_that_does_not_come_is_not_waited_for(engine):
    start(engine, tpot_ms=0.5)
    engine.add(asks("second"))
    engine.step()
    assert engine.admitted == ["first"]
    time.sleep(LONGEST_S + 0.05)
    engine.step()
    engine.step()
    assert engine.admitted == ["first", "second"]


@pytest.mark.parametrize("tpot_ms", [None, 60_000.0])
def test_nobody_waits_where_no_pace_is_in_danger(engine, tpot_ms):
    start(engine, tpot_ms=tpot_ms)
    engine.add(asks("second", tpot_ms))
    engine.step()
    assert engine.admitted == ["first", "second"]


def test_an_engine_at_rest_takes_who_comes(engine):
    engine.add(asks("first", 0.001))
    engine.step()
    assert engine.admitted == ["first"]


def test_the_pace_counts_newcomers_and_the_prompts_that_come_in():
    model = StepTimeModel(0.01, 0.0, 1e-4, 1e-3, 0.0)
    assert pace(model, 0, 0, 3, 1.0, 100.0) == 0.0
    assert pace(model, 10, 2000, 0, 0.0, 100.0) == pytest.approx(0.02)
    assert pace(model, 10, 2000, 10, 0.0, 100.0) == pytest.approx(0.03)
    assert pace(model, 10, 2000, 0, 50.0, 100.0) == pytest.approx(0.02 / (1.0 - 0.5))
    assert pace(model, 10, 2000, 0, 1e6, 100.0) == pytest.approx(0.2)  # at most ten times
