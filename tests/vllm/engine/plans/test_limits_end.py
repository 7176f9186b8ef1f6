"""A plan's limits end with the traffic they were made for."""

from __future__ import annotations

import threading
import time
from dataclasses import replace

import numpy as np
import pytest
from scripted_plans import Scripted, adopted, begin_plan, fill, step_until, threaded, until, waiting
from toy_engine import ToyEngine, make_request

from lengthwise.scheduler.serving.engine.plans import planning


def test_a_slow_thread_is_given_up_and_limits_do_not_outlive_it(monkeypatch):
    monkeypatch.setattr(planning, "_LONGEST_PLAN_S", 0.2)
    policy = Scripted(max_running=1, max_prefill_tokens=32)
    engine = threaded(policy, slots=2)
    engine.core.planner.gate.max_age_s = 0.02
    fill(engine, "abcd", output_tokens=100_000)
    step_until(engine, lambda: engine.decisions[-1].max_running == 1)
    policy.gate = threading.Event()
    fill(engine, "e", output_tokens=100_000)
    step_until(engine, lambda: engine.status()["plan"]["fallbacks"].get("stale-plan"))
    assert (engine.decisions[-1].max_running, engine.decisions[-1].max_prefill_tokens) == (
        None, None,
    )  # fmt: skip
    assert waiting(engine) == sorted(waiting(engine))
    step_until(engine, lambda: engine.status()["plan"]["fallbacks"].get("plan-thread"))
    policy.gate.set()
    fill(engine, "f", output_tokens=100_000)
    before = adopted(engine)
    step_until(engine, lambda: adopted(engine) > before)


class Patient(Scripted):
    """Serves the last arrival first, while each has waited so long at most."""

    def __init__(self, patience_s):
        super().__init__()
        self.patience_s = patience_s

    def __call__(self, problem):
        latest_start_s = problem.waiting.arrival_s + self.patience_s
        return replace(super().__call__(problem), latest_start_s=latest_start_s)


@pytest.mark.parametrize(("max_wait_s", "served"), [(100.0, "rdbac"), (3.0, "rcdba")])
def test_who_is_past_its_latest_start_goes_behind_unless_it_waited_to_the_bound(max_wait_s, served):
    engine = ToyEngine({"policy": "fcfs", "refit_steps": 0, "max_wait_s": max_wait_s}, slots=1)
    planner = engine.core.planner
    planner.policy = Patient(5.0)
    fill(engine, "r", output_tokens=3)
    engine.step()
    now = time.time()
    for name, age_s in (("a", 1.0), ("b", 0.5), ("c", 4.8), ("d", 0.0)):
        engine.add(make_request(name, arrival_time=now - age_s))
    planner.gate._not_before_s = -np.inf
    engine.step()
    assert planner.policy.calls > 1
    planner.gate._not_before_s = np.inf  # no other plan
    time.sleep(0.3)
    step_until(engine, lambda: engine.finished.keys() == set("rabcd"))
    assert engine.admitted == list(served)


@pytest.mark.parametrize("in_thread", [True, False])
def test_limits_are_lifted_when_nobody_waits(in_thread):
    engine = threaded(
        Scripted(max_running=1, max_prefill_tokens=32), slots=2, plan_in_thread=in_thread
    )
    fill(engine, "abc", output_tokens=40)
    step_until(engine, lambda: engine.decisions[-1].max_running == 1)
    assert engine.decisions[-1].max_prefill_tokens == 32
    step_until(engine, lambda: len(engine.finished) == 3)
    engine.step()
    assert (engine.decisions[-1].max_running, engine.decisions[-1].max_prefill_tokens) == (
        None, None,
    )  # fmt: skip
    fill(engine, "xy", output_tokens=40)
    if in_thread:  # both are admitted before any plan could say otherwise
        engine.step()
        assert len(engine.running) == 2


@pytest.mark.parametrize("hang_up", [False, True])
@pytest.mark.parametrize("idle_s", [0.0, 0.3])
def test_seven_then_twelve(hang_up, idle_s):
    """A plan of the seven, in the making as they end, has nothing to say to the twelve.

    No step is taken in between: the plan lies there, and its age would have been its time to hold.
    """
    policy = Scripted(max_running=2)
    engine = threaded(policy, slots=32)
    engine.slots = engine.core.slots = 4  # so that three of the seven wait, and are planned for
    names = [f"seven-{i}" for i in range(7)]
    begin_plan(engine, policy, names, output_tokens=200, slo_tpot_ms=6.5)
    for request in [*engine.running, *engine.queue]:
        engine.queue.remove_request(request)
        engine.end(request, "aborted" if hang_up else "finished")
    policy.gate.set()
    time.sleep(idle_s)
    engine.slots = engine.core.slots = 32
    until(lambda: engine.core.planner._thread._worker.result)
    policy.parts = {}
    fill(engine, [f"twelve-{i}" for i in range(12)], output_tokens=400)
    fill(engine, ["urgent"], output_tokens=20, slo_ttft_ms=300)
    engine.step()
    assert len(engine.running) == 13
    assert engine.status()["queue"]["max_running"] == 32
    assert engine.status()["plan"]["dropped"] == {"idle": 1}
    assert adopted(engine) == 0


@pytest.mark.parametrize("hang_up", [False, True])
def test_seven_then_twelve_by_the_annealing_planner(hang_up):
    """As it was seen: two ran and eleven waited for 5.4 s, with 30 slots free."""
    engine = ToyEngine({"policy": "sa", "refit_steps": 0, "plan_in_thread": True}, slots=32)
    for i in range(7):
        engine.add(make_request(f"seven-{i}", slo_tpot_ms=6.5, max_tokens=200), 200)
    for _ in range(30 if hang_up else 200):
        engine.step()
        time.sleep(0.001)
    for request in [*engine.running]:
        engine.end(request, "aborted")
    for i in range(12):
        engine.add(make_request(f"twelve-{i}", max_tokens=400), 400)
    engine.add(make_request("urgent", slo_ttft_ms=300, max_tokens=20), 20)
    began_s = time.monotonic()
    step_until(engine, lambda: "urgent" in engine.admitted)
    step_until(engine, lambda: len(engine.admitted) == 7 + 13)
    assert time.monotonic() - began_s < 2.0
    assert engine.status()["plan"]["fallbacks"].keys() <= {"no-prediction"}


def test_a_limit_whose_successor_does_not_come_ends_soon():
    """The planner hangs after a plan that let two run; the picture has changed since."""
    policy = Scripted(max_running=2)
    engine = threaded(policy, slots=32)
    engine.slots = engine.core.slots = 4
    fill(engine, [f"seven-{i}" for i in range(7)], output_tokens=100_000)
    step_until(engine, lambda: engine.decisions[-1].max_running == 2)
    policy.gate = threading.Event()
    engine.slots = engine.core.slots = 32
    began_s = time.monotonic()
    fill(engine, ["urgent"], output_tokens=20, slo_ttft_ms=300)
    step_until(engine, lambda: len(engine.running) == 8)
    assert time.monotonic() - began_s < 3.5  # a tick of nothing new would have taken 4
    assert engine.status()["queue"]["max_running"] == 32
    policy.gate.set()


@pytest.mark.parametrize("in_thread", [True, False])
def test_nothing_is_planned_taken_or_limited_while_the_engine_is_paused(in_thread):
    policy = Scripted(max_running=1)
    engine = threaded(policy, slots=2, plan_in_thread=in_thread)
    fill(engine, "ab", output_tokens=100_000)
    step_until(engine, lambda: engine.running)
    policy.parts["preempt"] = np.array([0])
    fill(engine, "c", output_tokens=100_000)
    step_until(engine, lambda: engine.status()["queue"]["yields"])
    yields, calls = engine.status()["queue"]["yields"], policy.calls
    engine.paused = True
    for _ in range(200):
        engine.step()
        assert (engine.decisions[-1].preempt, engine.decisions[-1].max_running) == ([], None)
    queue = engine.status()["queue"]
    assert (queue["yields"], queue["paused"], queue["max_running"]) == (yields, True, 2)
    assert policy.calls <= calls + 1  # what the thread was at
    assert len(engine.running) == 1  # who ran, runs on
    engine.paused = False
    fill(engine, "de", output_tokens=100_000)
    step_until(engine, lambda: policy.calls > calls + 1)
