"""Newcomers wait for a plan where one more would cost the others their pace, and only there."""

from __future__ import annotations

import threading
import time

import numpy as np
import pytest
from scripted_plans import until
from toy_engine import QUANTILES, ToyEngine, make_request

from lengthwise.scheduler.problem import Plan
from lengthwise.scheduler.serving.engine.plans.hold_back import LONGEST_S, pace
from lengthwise.scheduler.step_time import StepTimeModel

TIGHT_MS = 7.0  # one sequence alone takes 6.5 ms a token, two take 6.8


class Breaks:
    """A policy that raises, or ends its thread."""

    name = "breaks"

    def __init__(self, error: BaseException) -> None:
        self.error = error

    def __call__(self, problem):
        raise self.error


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
    settings = {"plan_in_thread": True, "plan_share": 1.0, "refit_steps": 0}
    fake, policy = ToyEngine(settings, slots=64), Asked()
    fake.core.planner.policy = policy
    yield fake
    policy.go.set()


def asks(name, tpot_ms=None):
    slo = {} if tpot_ms is None else {"slo_tpot_ms": tpot_ms}
    return make_request(name, pred_quantiles=QUANTILES, **slo)


def start(fake, name="first", tpot_ms=None):
    fake.add(asks(name, tpot_ms), output_tokens=500)
    fake.step()
    fake.step()
    assert fake.admitted == [name]


def test_a_newcomer_waits_for_its_plan_and_no_longer(engine):
    start(engine, tpot_ms=TIGHT_MS)
    engine.add(asks("second"))
    engine.step()
    policy = engine.core.planner.policy
    until(lambda: policy.plans == 1)
    assert engine.decisions[-1].max_running == 1
    assert engine.admitted == ["first"]
    policy.go.set()
    until(lambda: engine.step() or "second" in engine.admitted)


def test_a_plan_that_lets_fewer_run_holds_it_on(engine):
    start(engine, tpot_ms=TIGHT_MS)
    policy = engine.core.planner.policy
    policy.most = 1
    policy.go.set()
    engine.add(asks("second"))
    until(lambda: engine.step() or engine.core.decisions.in_force.max_running == 1)
    engine.step()
    assert engine.admitted == ["first"]


def test_a_plan_that_does_not_come_is_not_waited_for(engine):
    start(engine, tpot_ms=TIGHT_MS)
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
    engine.add(asks("first", TIGHT_MS))
    engine.step()
    assert engine.admitted == ["first"]


def test_so_does_one_that_has_come_to_rest(engine):
    """What it did last says nothing of a pace that nobody has now."""
    start(engine, tpot_ms=TIGHT_MS)
    engine.end(engine.running[0], "finished")
    engine.add(asks("second", TIGHT_MS))
    engine.step()
    assert engine.admitted == ["first", "second"]


@pytest.mark.parametrize("tpot_ms", [-5.0, 0.0, 1e-9, 1.0, 6.4])
def test_nobody_waits_for_a_pace_that_nobody_can_have(engine, tpot_ms):
    """One client that asks for it would otherwise keep all others waiting."""
    start(engine, tpot_ms=tpot_ms)
    engine.add(asks("second"))
    engine.step()
    assert engine.admitted == ["first", "second"]


def test_of_several_paces_the_tightest_that_can_be_had_counts(engine):
    start(engine, tpot_ms=TIGHT_MS)
    engine.add(asks("second", 1e-9))
    engine.step()
    assert engine.admitted == ["first"]


def test_who_ran_before_does_not_wait_with_newcomers(engine):
    start(engine, tpot_ms=TIGHT_MS)
    preempted = make_request("preempted", pred_quantiles=QUANTILES)
    preempted.generated = 3
    engine.add(preempted, output_tokens=500)
    engine.add(asks("newcomer"))
    engine.step()
    assert engine.admitted == ["first", "preempted"]


def test_the_pace_counts_newcomers_and_the_prompts_that_come_in():
    model = StepTimeModel(0.01, 0.0, 1e-4, 1e-3, 0.0)
    assert pace(model, 0, 0, 3, 1.0, 100.0) == 0.0
    assert pace(model, 10, 2000, 0, 0.0, 100.0) == pytest.approx(0.02)
    assert pace(model, 10, 2000, 10, 0.0, 100.0) == pytest.approx(0.03)
    assert pace(model, 10, 2000, 0, 50.0, 100.0) == pytest.approx(0.02 / (1.0 - 0.5))
    assert pace(model, 10, 2000, 0, 1e6, 100.0) == pytest.approx(0.2)  # at most ten times


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
@pytest.mark.parametrize("error", [RuntimeError("no"), MemoryError(), SystemExit(), KeyError()])
def test_a_policy_that_breaks_keeps_nobody_waiting(engine, error):
    engine.core.planner.policy = Breaks(error)
    start(engine, tpot_ms=TIGHT_MS)
    began_s = time.monotonic()
    for name in ("second", "third", "fourth"):
        engine.add(asks(name))
        until(lambda name=name: engine.step() or name in engine.admitted)
    assert time.monotonic() - began_s < 3 * LONGEST_S + 1.0


def test_a_pause_counts_as_waiting(engine):
    start(engine, tpot_ms=TIGHT_MS)
    engine.add(asks("second"))
    engine.step()
    engine.paused = True
    engine.step()
    time.sleep(LONGEST_S + 0.05)
    engine.paused = False
    until(lambda: engine.step() or "second" in engine.admitted)
    assert engine.decisions[-1].max_running is None


def test_who_hangs_up_leaves_the_next_a_wait_of_its_own(engine):
    start(engine, tpot_ms=TIGHT_MS)
    for name in ("second", "third"):
        engine.add(asks(name))
        engine.step()
        time.sleep(0.6 * LONGEST_S)
        engine.step()
        assert engine.admitted == ["first"]
        gone = next(request for request in engine.queue if request.request_id == name)
        engine.queue.remove_request(gone)
        engine.end(gone, "aborted")
    engine.core.planner.policy.go.set()
    engine.add(asks("fourth"))
    until(lambda: engine.step() or "fourth" in engine.admitted)


def test_a_stream_of_newcomers_keeps_none_longer(engine):
    """Who comes while others are held back is let in with them; then nobody is held."""
    start(engine, tpot_ms=TIGHT_MS)
    came_s, waited_s = {}, {}
    until_s = time.monotonic() + 4 * LONGEST_S
    while time.monotonic() < until_s:
        name = f"n{len(came_s)}"
        came_s[name] = time.monotonic()
        engine.add(asks(name))
        engine.step()
        for one in set(engine.admitted) & came_s.keys() - waited_s.keys():
            waited_s[one] = time.monotonic() - came_s[one]
        time.sleep(0.03)
    assert len(waited_s) > 3
    now_s = time.monotonic()
    still_s = [now_s - at_s for name, at_s in came_s.items() if name not in waited_s]
    assert max([*waited_s.values(), *still_s]) < LONGEST_S + 0.15
