from __future__ import annotations

import threading
import time
from types import SimpleNamespace

import pytest

from lengthwise.scheduler.plan.pacing import ReplanGate
from lengthwise.scheduler.vllm_adapter.emulated.nominal_time import pace_plans
from lengthwise.scheduler.vllm_adapter.emulated.warp import WarpClock


def busy(cpu_s):
    end_s = time.thread_time() + cpu_s
    while time.thread_time() < end_s:
        pass


def test_sleeps_are_skipped_and_everything_is_put_back():
    before = time.monotonic, time.time, time.sleep
    began_s = time.perf_counter()
    clock = WarpClock()
    with clock.installed():
        monotonic_s, unix_s = time.monotonic(), time.time()
        time.sleep(3600.0)
        assert time.monotonic() - monotonic_s == pytest.approx(3600.0)
        assert time.time() - unix_s == pytest.approx(3600.0)
        time.sleep(0)
    assert clock.now() == 3600.0
    assert (time.monotonic, time.time, time.sleep) == before
    assert time.perf_counter() - began_s < 60


def test_a_free_host_takes_no_time_and_a_charged_one_its_own():
    free, charged = WarpClock(0.0), WarpClock(2.0)
    busy(0.02)
    assert free.now() == 0.0
    assert 0.04 <= charged.now() < 2.0
    with charged.stopped():
        before_s = charged.now()
        busy(0.02)
    assert charged.now() - before_s < 0.01


def test_other_threads_sleep_for_real_and_do_not_move_the_clock():
    clock, slept_s = WarpClock(), []

    def other():
        began_s = time.perf_counter()
        time.sleep(0.02)
        slept_s.append(time.perf_counter() - began_s)

    with clock.installed():
        thread = threading.Thread(target=other)
        thread.start()
        thread.join()
    assert slept_s[0] >= 0.02
    assert clock.now() == 0.0


class Slow:
    name, nominal_s = "slow", 0.25

    def __call__(self, problem):
        busy(0.01)
        return problem


@pytest.mark.parametrize(("budget_s", "taken_s"), [(1.0, 0.25), (0.02, 0.02)])
def test_plans_are_paced_by_their_nominal_time_and_cost_the_clock_nothing(budget_s, taken_s):
    clock = WarpClock(1.0)
    clock.set(5.0)
    planner = SimpleNamespace(policy=Slow(), gate=ReplanGate(plan_share=0.1))
    paced = pace_plans(planner, clock, budget_s)
    assert planner.policy("problem") == "problem"
    assert clock.now() == pytest.approx(5.0, abs=0.005)
    assert paced.plan_s[0] >= 0.01
    # whatever the planner has measured
    planner.gate.planned(5.0, 123.0)
    assert planner.gate.not_before_s == pytest.approx(5.0 + 10 * taken_s)
    # a planner that fell back made no plan
    planner.gate.planned(9.0, 123.0)
    assert planner.gate.not_before_s == 9.0
    assert (paced.name, paced.nominal_s) == ("slow", 0.25)


@pytest.mark.parametrize("factor", [-0.1, 101.0, float("nan")])
def test_a_senseless_host_factor_is_refused(factor):
    with pytest.raises(ValueError, match="host_factor must lie from 0 to 100"):
        WarpClock(factor)
