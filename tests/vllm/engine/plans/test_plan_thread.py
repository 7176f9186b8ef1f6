"""The thread that plans beside the engine's loop, and how long a plan is in force."""

from __future__ import annotations

import threading

import numpy as np
import pytest
from scripted_plans import LIMIT_S, until

from lengthwise.scheduler.problem import Plan
from lengthwise.scheduler.serving.engine.plans.in_force import (
    LEAST_STEPS,
    STALE_INTERVALS,
    PlanInForce,
)
from lengthwise.scheduler.serving.engine.plans.plan_thread import PlanThread

# -- the thread --------------------------------------------------------------------------------


def test_one_job_at_a_time_and_each_answer_once():
    gate = threading.Event()

    def work(job):
        gate.wait(LIMIT_S)
        return job + 1

    thread = PlanThread(work)
    assert thread.start(1, 0.0)
    assert thread.busy
    assert not thread.start(2, 0.0)
    assert thread.take() is None
    gate.set()
    assert until(thread.take) == 2
    assert thread.take() is None
    assert not thread.busy
    assert thread.start(5, 0.0)
    assert until(thread.take) == 6
    thread.close()


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_dead_thread_is_told_once_and_another_works():
    def work(job):
        if job == 0:
            raise RuntimeError("the thread ends here")
        return 10 / job

    thread = PlanThread(work)
    thread.start(0, 0.0)
    assert until(lambda: thread.lost(0.0, 60.0)) == "dead"
    assert thread.lost(0.0, 60.0) is None
    assert thread.start(5, 0.0)
    assert until(thread.take) == 2


def test_a_slow_thread_is_left_to_itself():
    gates = {"slow": threading.Event(), "quick": threading.Event()}
    done = []

    def work(job):
        gates[job].wait(LIMIT_S)
        done.append(job)
        return job

    thread = PlanThread(work)
    thread.start("slow", 100.0)
    assert thread.lost(104.0, 5.0) is None
    assert thread.lost(105.5, 5.0) == "slow"
    gates["quick"].set()
    assert thread.start("quick", 106.0)
    assert until(thread.take) == "quick"
    gates["slow"].set()
    until(lambda: len(done) == 2)
    assert thread.take() is None


# -- the plan in force -------------------------------------------------------------------------


def test_limits_hold_until_the_plan_is_stale():
    force = PlanInForce()
    assert (force.stale(1e9), force.age_s(5.0)) == (False, 0.0)
    plan = Plan(np.arange(2), max_running=3, max_prefill_tokens=64, prefill_period=4)
    force.adopt(plan, 10.0, 2.0)
    assert [force.rests(steps) for steps in (0, 2, 3, np.inf)] == [True, True, False, False]
    assert (force.max_running, force.max_prefill_tokens, force.age_s(11.5)) == (3, 64, 1.5)
    assert not force.stale(10.0 + 2.0 * STALE_INTERVALS)
    assert force.stale(10.1 + 2.0 * STALE_INTERVALS)
    force.lift()
    assert (force.max_running, force.max_prefill_tokens) == (None, None)
    assert not force.rests(0)
    assert not force.stale(1e9)
    assert force.adopted == 1


@pytest.mark.parametrize(
    ("changed_s", "asked_s", "stale"),
    [
        (None, 13.9, False),  # nothing changed: until the next tick is long overdue
        (None, 14.1, True),
        (10.5, 11.2, False),
        (10.5, 11.4, True),  # 4 * 0.2 s after the change
        (10.1, 14.1, True),
        (99.0, 13.9, False),
    ],
)
def test_a_plan_ends_sooner_once_the_picture_has_changed(changed_s, asked_s, stale):
    force = PlanInForce()
    force.adopt(Plan(np.arange(2), max_running=3), 10.0, 1.0, 0.2)
    if changed_s is not None:
        force.note_change(changed_s)
        force.note_change(changed_s + 50.0)  # the first counts
    for _ in range(LEAST_STEPS):
        assert not force.stale(asked_s) or asked_s > 14.0
        force.step_ended()
    assert force.stale(asked_s) == stale


def test_a_few_long_steps_are_no_reason_to_give_a_plan_up():
    force = PlanInForce()
    force.adopt(Plan(np.arange(2), max_running=3), 10.0, 100.0, 0.01)
    force.note_change(10.5)
    for step in range(LEAST_STEPS):
        # an engine whose queue is looked at between two steps asks more often
        assert not any(force.stale(10.5 + 5.0 * step + look) for look in range(5))
        force.step_ended()
    assert force.stale(10.5 + 5.0 * LEAST_STEPS)
