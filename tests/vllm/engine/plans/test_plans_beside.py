"""Plans made beside the engine's loop: handed over, adopted as far as they fit, done without."""

from __future__ import annotations

import time

import numpy as np
import pytest
from prometheus_client import REGISTRY
from scripted_plans import (
    LIMIT_S,
    Scripted,
    adopted,
    begin_plan,
    fill,
    step_until,
    threaded,
    waiting,
)


def test_a_plan_is_adopted_without_waiting_for_it():
    policy = Scripted()
    engine = threaded(policy)
    begin_plan(engine, policy, "abcd")
    began_s = time.monotonic()
    for _ in range(20):
        engine.step()
    assert time.monotonic() - began_s < LIMIT_S / 2  # the policy waits, no step does
    assert waiting(engine) == ["b", "c", "d"]
    assert policy.calls == 1
    policy.gate.set()
    step_until(engine, lambda: adopted(engine))
    assert waiting(engine) == ["d", "c", "b"]
    plan = engine.status()["plan"]
    assert plan["in_thread"]
    assert plan["fallbacks"] == {}
    assert plan["age_s"] > 0


def test_what_left_is_skipped_and_newcomers_stand_behind_by_arrival():
    policy = Scripted()
    engine = threaded(policy)
    begin_plan(engine, policy, "abcde")
    gone = next(request for request in engine.queue if request.request_id == "d")
    engine.queue.remove_request(gone)
    engine.end(gone, "aborted")
    fill(engine, "xy")
    policy.gate.set()
    step_until(engine, lambda: adopted(engine))
    assert waiting(engine) == ["e", "c", "b", "x", "y"]


def test_outcomes_are_told_before_the_next_plan_and_never_during_one():
    policy = Scripted()
    engine = threaded(policy, slots=2)
    begin_plan(engine, policy, "abcd", output_tokens=3, slo_e2e_ms=60_000)
    arrivals = {name: engine.core.table.get(name).arrival_s for name in "ab"}
    for _ in range(3):
        engine.step()
    assert set(engine.finished) == {"a", "b"}
    assert policy.told == []
    policy.gate.set()
    step_until(engine, lambda: policy.calls > 1 or len(engine.finished) == 4)
    fill(engine, "efgh")
    step_until(engine, lambda: len(policy.told) >= 2)
    assert policy.told[:2] == [(arrivals["a"], True), (arrivals["b"], True)]


def test_what_a_policy_says_of_itself_is_told_in_status_and_metrics():
    policy = Scripted()
    policy.status = lambda: {
        "trust": {"toy-part": {"promised": 0.75, "met": 0.5, "withdrawn_s": 3.0, "rows": 9.0}}
    }
    engine = threaded(policy)
    fill(engine, "abc", output_tokens=100_000)
    step_until(engine, lambda: adopted(engine))
    assert engine.status()["plan"]["policy"] == policy.status()
    engine.core.update_gauges(time.monotonic())

    def shown(name, **labels):
        return REGISTRY.get_sample_value(f"lengthwise_plan_{name}", {"part": "toy-part"} | labels)

    assert (shown("trust"), shown("promise", of="promised"), shown("promise", of="met")) == (
        0.0, 0.75, 0.5,
    )  # fmt: skip


def test_a_policys_own_kinds_of_numbers_do_not_reach_the_wire():
    """vLLM's thread of answers ends at the first value that msgpack does not know."""
    policy = Scripted()
    policy.status = lambda: {"pace": np.float64(1.25), "rows": np.arange(2)}
    engine = threaded(policy)
    fill(engine, "abc", output_tokens=100_000)
    step_until(engine, lambda: adopted(engine))
    told = engine.status()["plan"]["policy"]
    assert told == {"pace": 1.25, "rows": [0, 1]}
    assert type(told["pace"]) is float


def test_a_raising_policy_means_arrival_order_until_it_plans_again():
    policy = Scripted()
    engine = threaded(policy)
    fill(engine, "abc", output_tokens=100_000)
    step_until(engine, lambda: waiting(engine) == ["c", "b"])
    policy.raises = RuntimeError("no plan")
    fill(engine, "d", output_tokens=100_000)
    step_until(engine, lambda: waiting(engine) == ["b", "c", "d"])
    assert engine.status()["plan"]["fallbacks"]["planner"] > 0
    policy.raises = None
    fill(engine, "e", output_tokens=100_000)
    step_until(engine, lambda: waiting(engine) == ["e", "d", "c", "b"])


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_dead_thread_is_counted_and_started_again(monkeypatch):
    engine = threaded(Scripted())
    fill(engine, "abc", output_tokens=100_000)
    engine.core.planner.policy.raises = SystemExit()  # no Exception: it ends the thread
    step_until(engine, lambda: engine.status()["plan"]["fallbacks"].get("plan-thread"))
    assert waiting(engine) == ["b", "c"]
    assert engine.core.planner.policy.name == "fcfs"  # another, as the settings say
    fill(engine, "d", output_tokens=100_000)
    step_until(engine, lambda: adopted(engine))


def test_no_slot_is_taken_that_is_not_needed():
    policy = Scripted(preempt=np.array([0, 1]))
    engine = threaded(policy, slots=3, plan_share=0.001)
    begin_plan(engine, policy, "abcde")
    engine.end(engine.running[0], "aborted")  # a slot for one of the two who wait
    policy.gate.set()
    step_until(engine, lambda: adopted(engine))
    assert engine.status()["queue"]["yields"] == 1
    assert {request.request_id for request in engine.running} == {"c", "d", "e"}


def test_a_plan_for_a_queue_that_is_gone_is_dropped():
    policy = Scripted(max_running=1)
    engine = threaded(policy)
    begin_plan(engine, policy, "ab", output_tokens=3)
    engine.run()
    policy.gate.set()
    step_until(engine, lambda: engine.status()["plan"]["dropped"].get("idle"))
    assert engine.decisions[-1].max_running is None
    assert adopted(engine) == 0


def test_whose_slot_was_taken_goes_first_once_no_plan_holds():
    policy = Scripted(preempt=np.array([0]))
    engine = threaded(policy, plan_in_thread=False)
    fill(engine, "ab", output_tokens=10_000_000, max_tokens=10_000_000)
    step_until(engine, lambda: engine.status()["queue"]["yields"])
    (gave,) = waiting(engine)
    fill(engine, "cd")
    policy.raises = RuntimeError("no plan")
    engine.step()
    assert waiting(engine) == [gave, "c", "d"]
    assert engine.status()["queue"]["recovering"] == 1


def test_the_share_of_processor_time_is_bounded_and_told():
    class Working(Scripted):
        def __call__(self, problem):
            until_s = time.thread_time() + 0.01
            while time.thread_time() < until_s:
                pass
            return super().__call__(problem)

    engine = threaded(Working(), plan_share=0.1)
    fill(engine, [f"r{i}" for i in range(50)], output_tokens=100_000)
    began_s = time.monotonic()
    while time.monotonic() - began_s < 1.0:
        engine.core.planner.changed()
        engine.step()
        time.sleep(0.001)
    plan = engine.status()["plan"]
    lasted_s = time.monotonic() - began_s
    assert plan["count"] <= 2 + lasted_s * 0.1 / 0.01
    assert 0 < plan["processor_share"] * 30.0 <= 0.1 * lasted_s + 0.04
