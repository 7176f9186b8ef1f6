"""The served pool's engine without LMDeploy: a pool of handles that gives a token a turn."""

import asyncio
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lengthwise.data.slo import Slo
from lengthwise.scheduler.lmdeploy_adapter.pool_client import PoolClient
from lengthwise.scheduler.lmdeploy_adapter.pool_engine import PoolEngine, PoolRequest
from lengthwise.scheduler.lmdeploy_adapter.pool_order import PARTS
from lengthwise.scheduler.problem import Capacity, Plan
from lengthwise.scheduler.serving.engine.engine_metrics import engine_metrics
from lengthwise.scheduler.serving.settings import make_settings
from lengthwise.scheduler.serving.wire.hints import Hints

VERSIONS = {"lengthwise": "1", "lmdeploy": "0.18.0"}
STEP_S = 0.02


class ToyPool:
    """As many handles as slots; a turn gives each who has one a token, a step later."""

    def __init__(self, slots=2, **values):
        told = {"policy": "sjf", "plan_in_thread": False, "plan_share": 1.0, "refit_steps": 0}
        self.engine = PoolEngine(
            make_settings(told | {"plan_parts": PARTS} | values),
            Capacity(slots, 65536, 2048),
            engine_metrics(),
            max_model_len=4096,
            versions=VERSIONS,
        )
        self.free, self.lengths, self.order, self.now_s = slots, {}, [], time.time()

    def ask(self, name, tokens, quantiles=None, **slo):
        request = PoolRequest(name, 10, 1000)
        known = quantiles or (float(tokens),) * 12
        hints = Hints(Slo(slo_class="chat", **slo), quantiles=known, version="v")
        self.engine.arrived(request, hints, time.time())
        self.engine.wait(request)
        self.lengths[name] = tokens
        return request

    def turn(self):
        for request in self.engine.admitted(self.free):
            self.free -= 1
            self.order.append(request.request_id)
        self.now_s += STEP_S
        for request in list(self.engine.running.values()):
            self.engine.read(request, 1, self.now_s)
            if request.generated >= self.lengths[request.request_id]:
                request.status = "finished"
                self.end(request)

    def end(self, request):
        self.engine.freed(request)
        self.free += 1
        self.engine.over(request)

    def run(self, most=3000):
        for _ in range(most):
            if not self.engine.queue and not self.engine.running:
                return
            self.turn()
        raise AssertionError("not done")

    @property
    def status(self):
        return self.engine.answers.control.status()


def test_the_planned_order_is_served_and_ends_are_booked():
    pool = ToyPool(slots=1)
    for name, tokens in (("long", 30), ("short", 3), ("middle", 9)):
        pool.ask(name, tokens, e2e_s=60.0)
    pool.run()
    assert pool.order == ["short", "middle", "long"]
    status = pool.status
    assert status["outcomes"] == {"chat": {"finished": 3, "met": 3}}
    assert status["versions"] == VERSIONS
    assert (status["tracked"], status["queue"]["running"]) == (0, 0)
    assert status["step_time"]["steps"] == 30 + 3 + 9


def test_a_limit_on_how_many_run_is_kept_and_lifted():
    class OneAtATime:
        name, nominal_s = "one", 0.001

        def __call__(self, problem):
            return Plan(np.arange(len(problem.waiting)), max_running=1)

    pool = ToyPool(slots=3)
    pool.engine.core.planner.policy = OneAtATime()
    for name in "abc":
        pool.ask(name, 5)
    pool.turn()
    assert pool.order == ["a"]
    pool.run()
    assert pool.order == ["a", "b", "c"]
    assert pool.status["plan"]["max_running"] is None  # nobody waits for whom it would hold


def test_who_gives_up_waiting_is_aborted_once():
    pool = ToyPool(slots=1)
    first, second = pool.ask("a", 5), pool.ask("b", 5)
    pool.turn()
    pool.engine.gave_up(second)
    pool.engine.over(second)
    pool.engine.over(second)
    pool.run()
    assert first.status == "finished"
    assert pool.status["outcomes"]["chat"]["aborted"] == 1
    assert pool.order == ["a"]


def test_a_planner_that_raises_costs_the_order_only():
    class Raises:
        name, nominal_s = "raises", 0.001

        def __call__(self, problem):
            raise RuntimeError("no plan")

    pool = ToyPool(slots=1)
    pool.engine.core.planner.policy = Raises()
    for name, tokens in (("a", 9), ("b", 2), ("c", 5)):
        pool.ask(name, tokens)
    pool.run()
    assert pool.order == ["a", "b", "c"]
    assert pool.status["plan"]["fallbacks"]["planner"] >= 1


def test_steps_are_timed_by_the_stamps():
    pool = ToyPool(slots=4)
    for name in "abcd":
        pool.ask(name, 20)
    pool.run()
    took_s = pool.engine.core.timer.samples()[1:, 3]
    assert took_s == pytest.approx(STEP_S, rel=1e-3)
    assert pool.engine.core.timer.samples()[1:, 1].tolist() == [4.0] * 19


def ask(pool, method, *said):
    """As the middleware asks."""
    core = PoolClient(pool.engine).engine_core
    return asyncio.run(core.call_utility_async(method, *said))


@pytest.mark.parametrize(("parts", "refused"), [(None, False), (["order", "slots"], True)])
def test_it_is_switched_as_vllm_is_but_decides_only_what_a_pool_can_do(parts, refused):
    pool = ToyPool()
    params = None if parts is None else {"parts": parts}
    answer = ask(pool, "lengthwise_configure", {"policy": "sa", "policy_params": params})
    if refused:
        assert "sa may decide order, limits on this engine, not slots" in answer["error"]
    else:
        assert answer["policy"] == "sa"
        assert tuple(answer["policy_params"]["parts"]) == PARTS
    assert ask(pool, "lengthwise_status")["policy"] == ("sjf" if refused else "sa")


@settings(max_examples=30)
@given(
    slots=st.integers(1, 4),
    asked=st.lists(st.tuples(st.integers(1, 12), st.integers(0, 3)), min_size=1, max_size=25),
    policy=st.sampled_from(["fcfs", "sjf", "feasible-edf"]),
)
def test_everybody_ends_once_and_no_more_run_than_there_are_handles(slots, asked, policy):
    pool, ended = ToyPool(slots=slots, policy=policy), 0
    for at, (tokens, fate) in enumerate(asked):
        request = pool.ask(f"r{at}", tokens, e2e_s=1.0 + tokens)
        if fate == 0:
            pool.turn()
        elif fate == 1 and request.request_id not in pool.engine.running:
            pool.engine.gave_up(request)
            pool.engine.over(request)
            ended += 1
        assert len(pool.engine.running) <= slots
    pool.run()
    assert len(pool.order) == len(set(pool.order)) == len(asked) - ended
    outcomes = pool.status["outcomes"].get("chat", {})
    assert outcomes.get("finished", 0) + outcomes.get("aborted", 0) == len(asked)
    assert pool.free == slots
