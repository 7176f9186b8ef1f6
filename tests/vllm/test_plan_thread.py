"""Plans made beside the engine's loop: handed over, adopted as far as they fit, done without."""

from __future__ import annotations

import threading
import time

import numpy as np
import pytest
from prometheus_client import REGISTRY
from toy_engine import QUANTILES, ToyEngine, make_request

from lengthwise.scheduler.problem import Plan
from lengthwise.scheduler.vllm_adapter.engine.plans import planning
from lengthwise.scheduler.vllm_adapter.engine.plans.in_force import (
    LEAST_STEPS,
    STALE_INTERVALS,
    PlanInForce,
)
from lengthwise.scheduler.vllm_adapter.engine.plans.plan_thread import PlanThread

LIMIT_S = 20.0


def until(condition):
    deadline_s = time.monotonic() + LIMIT_S
    while not (found := condition()):
        assert time.monotonic() < deadline_s, "it did not happen"
        time.sleep(0.001)
    return found


# -- the thread -------------------------------------------------------------------------------


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


# -- the plan in force ------------------------------------------------------------------------


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
    assert force.stale(asked_s) == stale


def test_a_few_long_steps_are_no_reason_to_give_a_plan_up():
    force = PlanInForce()
    force.adopt(Plan(np.arange(2), max_running=3), 10.0, 100.0, 0.01)
    force.note_change(10.5)
    assert [force.stale(10.5 + 5.0 * step) for step in range(1, LEAST_STEPS + 2)] == [
        *[False] * LEAST_STEPS, True,
    ]  # fmt: skip


# -- the core ---------------------------------------------------------------------------------


class Scripted:
    """Serves the last arrival first; what else it does is set from outside."""

    name = "scripted"
    nominal_s = 0.001

    def __init__(self, **parts):
        self.parts = parts
        self.raises = None
        self.gate = None
        self.calls = 0
        self.told = []
        self.seen = []

    def __call__(self, problem):
        self.calls += 1
        self.seen.append(problem)
        if self.gate is not None:
            self.gate.wait(LIMIT_S)
        if self.raises is not None:
            raise self.raises
        return Plan(np.arange(len(problem.waiting))[::-1], **self.parts)

    def finished(self, arrival_s, met):
        self.told.append((arrival_s, met))

    def status(self):
        return {}


def threaded(policy, slots=1, **settings):
    engine = ToyEngine(
        {"policy": "fcfs", "plan_share": 1.0, "refit_steps": 0, "plan_in_thread": True} | settings,
        slots=slots,
    )
    engine.core.planner.policy = policy
    return engine


def fill(engine, names, output_tokens=50, **extra):
    for name in names:
        engine.add(make_request(name, pred_quantiles=QUANTILES, **extra), output_tokens)


def step_until(engine, condition):
    def stepped():
        engine.step()
        return condition()

    return until(stepped)


def waiting(engine):
    return [request.request_id for request in engine.queue]


def adopted(engine):
    return engine.status()["plan"]["adopted"]


def test_a_plan_is_adopted_without_waiting_for_it():
    policy = Scripted()
    policy.gate = threading.Event()
    engine = threaded(policy)
    fill(engine, "abcd", output_tokens=100_000)
    engine.step()
    until(lambda: policy.calls)
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
    policy.gate = threading.Event()
    engine = threaded(policy)
    fill(engine, "abcde", output_tokens=100_000)
    engine.step()
    until(lambda: policy.calls)
    gone = next(request for request in engine.queue if request.request_id == "d")
    engine.queue.remove_request(gone)
    engine.end(gone, "aborted")
    fill(engine, "xy")
    policy.gate.set()
    step_until(engine, lambda: adopted(engine))
    assert waiting(engine) == ["e", "c", "b", "x", "y"]


def test_outcomes_are_told_before_the_next_plan_and_never_during_one():
    policy = Scripted()
    policy.gate = threading.Event()
    engine = threaded(policy, slots=2)
    fill(engine, "abcd", output_tokens=3, slo_e2e_ms=60_000)
    engine.step()
    until(lambda: policy.calls)
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


def test_no_slot_is_taken_that_is_not_needed():
    policy = Scripted(preempt=np.array([0, 1]))
    policy.gate = threading.Event()
    engine = threaded(policy, slots=3, plan_share=0.001)
    fill(engine, "abcde", output_tokens=100_000)
    engine.step()
    until(lambda: policy.calls)
    engine.end(engine.running[0], "aborted")  # a slot for one of the two who wait
    policy.gate.set()
    step_until(engine, lambda: adopted(engine))
    assert engine.status()["queue"]["yields"] == 1
    assert {request.request_id for request in engine.running} == {"c", "d", "e"}


def test_a_plan_for_a_queue_that_is_gone_is_dropped():
    policy = Scripted(max_running=1)
    policy.gate = threading.Event()
    engine = threaded(policy)
    fill(engine, "ab", output_tokens=3)
    engine.step()
    until(lambda: policy.calls)
    engine.run()
    policy.gate.set()
    step_until(engine, lambda: engine.status()["plan"]["dropped"].get("idle"))
    assert engine.decisions[-1].max_running is None
    assert adopted(engine) == 0


@pytest.mark.parametrize("hang_up", [False, True])
@pytest.mark.parametrize("idle_s", [0.0, 0.3])
def test_seven_then_twelve(hang_up, idle_s):
    """A plan of the seven, in the making as they end, has nothing to say to the twelve.

    No step is taken in between: the plan lies there, and its age would have been its time to hold.
    """
    policy = Scripted(max_running=2)
    policy.gate = threading.Event()
    engine = threaded(policy, slots=32)
    engine.slots = engine.core.slots = 4  # so that three of the seven wait, and are planned for
    fill(engine, [f"seven-{i}" for i in range(7)], output_tokens=200, slo_tpot_ms=6.5)
    engine.step()
    until(lambda: policy.calls)
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


def test_whose_slot_was_taken_goes_first_once_no_plan_holds():
    policy = Scripted(preempt=np.array([0]))
    engine = threaded(policy, plan_in_thread=False)
    fill(engine, "ab", output_tokens=100_000)
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
