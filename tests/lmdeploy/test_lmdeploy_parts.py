"""What of the second engine's adapter runs without LMDeploy."""

import asyncio
import dataclasses
import json
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from lmdeploy_cases import random_workload, small_engine
from typer.testing import CliRunner

from lengthwise.data.errors import InputError
from lengthwise.scheduler.lmdeploy_adapter import lmdeploy_environment as environment
from lengthwise.scheduler.lmdeploy_adapter.lmdeploy_player import (
    LmdeployPlayer,
    is_lmdeploy,
    pool_policy,
    with_lmdeploy,
)
from lengthwise.scheduler.lmdeploy_adapter.play_messages import (
    PoolTask,
    read_result,
    read_task,
    result_line,
    task_line,
)
from lengthwise.scheduler.lmdeploy_adapter.pool_order import PoolOrder, answered, pool_policy_of
from lengthwise.scheduler.lmdeploy_adapter.virtual_clock import VirtualLoop
from lengthwise.scheduler.policies.make import POLICIES, make_policy
from lengthwise.scheduler.problem import Plan
from lengthwise.scheduler.profile import PrefixCache, Speculation
from lengthwise.scheduler.simulator import engine as e
from lengthwise.scheduler.simulator.instance import Course
from lengthwise.scheduler.simulator.run import simulate
from lengthwise.training.cli.app import app
from lengthwise.training.doctor import checks as doctor
from lengthwise.training.workspace import Workspace


def same(one, other):
    """Field by field, NaN as itself."""
    for field in dataclasses.fields(one):
        left, right = getattr(one, field.name), getattr(other, field.name)
        if isinstance(left, np.ndarray):
            np.testing.assert_array_equal(left, right, err_msg=field.name)
            assert left.dtype == right.dtype, field.name
        elif dataclasses.is_dataclass(left):
            same(left, right)
        else:
            assert left == right, field.name


# -- messages ---------------------------------------------------------------------------------


@pytest.mark.parametrize("prefixes", [False, True])
def test_a_task_is_the_same_on_the_other_side(prefixes):
    n, columns = 20, {}
    if prefixes:
        columns = {"prefix_id": np.arange(n) % 3, "prefix_tokens": np.full(n, 10)}
    parts = {"prefix_cache": PrefixCache(32), "speculation": Speculation(1.5)}
    task = PoolTask(
        random_workload(n, **columns), small_engine(**parts), "sa",
        {"parts": ("order", "limits"), "iterations": 3}, 7, None, 0.02, 60.0,
    )  # fmt: skip
    line = task_line(task)
    assert "\n" not in line
    same(task, read_task(line))


def test_an_outcome_is_the_same_on_the_other_side():
    workload = random_workload(30)
    result = simulate(workload, make_policy("sjf"), small_engine())
    result.first_token_s[3] = np.nan
    same(result, read_result(json.loads(result_line(result))))


# -- virtual time -----------------------------------------------------------------------------


def test_the_clock_jumps_to_the_next_timer():
    loop, seen = VirtualLoop(), []

    async def sleep(seconds):
        await asyncio.sleep(seconds)
        seen.append((seconds, loop.time()))

    async def all_of():
        await asyncio.gather(sleep(3600.0), sleep(0.25), sleep(10.0))

    loop.run_until_complete(all_of())
    loop.close()
    assert [seconds for seconds, _ in seen] == [0.25, 10.0, 3600.0]
    assert [at_s for _, at_s in seen] == pytest.approx([0.25, 10.0, 3600.0])


def test_nothing_left_to_happen_is_said_rather_than_waited_for():
    loop = VirtualLoop()
    with pytest.raises(RuntimeError, match="nothing is left"):
        loop.run_until_complete(asyncio.Event().wait())
    loop.close()


# -- the order at the pool --------------------------------------------------------------------


class Backwards:
    """The last to come is the first to go; so many may run."""

    name = "backwards"
    nominal_s = 0.0

    def __init__(self, most=None, patience_s=None):
        self.most, self.patience_s = most, patience_s
        self.told = []

    def __call__(self, problem):
        order = np.argsort(-problem.waiting.arrival_s, kind="stable")
        plan = Plan(order, max_running=self.most)
        if self.patience_s is None:
            return plan
        latest_start_s = problem.waiting.arrival_s + self.patience_s
        return dataclasses.replace(plan, latest_start_s=latest_start_s)

    def warm_up(self):
        pass

    def finished(self, arrival_s, met):
        self.told.append((arrival_s, met))

    def status(self):
        return {}


def order_of(policy, slots=3, n=12):
    course = Course(random_workload(n))
    return PoolOrder(course, policy, small_engine(slots)), course


def test_a_handle_goes_to_whom_the_plan_names():
    order, _ = order_of(Backwards(), slots=1)
    order.arrive(0, 0.0)
    assert order.admit(0.0, 1) == [0]
    for row in (1, 2):
        order.arrive(row, 0.1 * row)
        assert order.admit(0.1 * row, 0) == []
    order.leave(0)
    assert order.admit(1.0, 1) == [2]


def test_who_is_past_the_plans_latest_start_goes_behind():
    order, course = order_of(Backwards(patience_s=1.0), slots=1)
    order.arrive(0, 0.0)
    assert order.admit(0.0, 1) == [0]
    for row in (1, 2, 3):
        order.arrive(row, 0.1)
    assert order.admit(0.1, 0) == []
    arrivals_s = course.workload.arrival_s
    by_arrival = sorted((1, 2, 3), key=lambda row: arrivals_s[row])
    assert order.waiting == by_arrival[::-1]
    order._gate._not_before_s = np.inf  # no other plan
    order.admit(arrivals_s[by_arrival[1]] + 1.0 + 1e-6, 0)
    assert order.waiting == [by_arrival[2], *by_arrival[:2]]


def test_a_plan_may_keep_handles_back_until_nobody_waits():
    order, _ = order_of(Backwards(most=2))
    for row in range(4):
        order.arrive(row, 0.0)
    assert len(order.admit(0.0, 3)) == 2
    assert order.admit(0.1, 1) == []
    for row in list(order.running):
        order.leave(row)
    assert len(order.admit(0.2, 3)) == 2  # the last two wait no longer
    order.arrive(4, 0.3)
    order.policy.most = None
    assert order.admit(0.3, 1) == [4]


def test_outcomes_are_told_before_the_next_plan():
    policy = Backwards()
    order, course = order_of(policy, slots=1)
    order.arrive(0, 0.0)
    order.admit(0.0, 1)
    answered(course, 0, int(course.workload.output_tokens[0]), 0.5)
    order.leave(0)
    order.arrive(1, 1.0)
    order.admit(1.0, 1)
    assert policy.told == [(course.workload.arrival_s[0], True)]


def test_answers_move_a_row_from_prompt_to_end():
    course = Course(random_workload(3))
    tokens = int(course.workload.output_tokens[1])
    answered(course, 1, 1, 2.0)
    assert course.state[1, e.LEFT] == 0
    assert course.times[1, e.FIRST] == 2.0
    answered(course, 1, tokens - 1, 4.0)
    assert course.times[1, e.FINISH] == 4.0
    assert np.isnan(course.times[0]).all()


@settings(max_examples=40, deadline=None)
@given(
    events=st.lists(st.integers(0, 2), min_size=1, max_size=60),
    slots=st.integers(1, 4),
    name=st.sampled_from(["fcfs", "sjf", "feasible-edf"]),
)
def test_nobody_is_lost_and_never_more_run_than_there_are_slots(events, slots, name):
    order, _ = order_of(make_policy(name), slots, n=60)
    arrived = ended = 0
    for at, event in enumerate(events):
        if event and order.running:
            order.leave(order.running[0])
            ended += 1
        else:
            order.arrive(arrived, 0.1 * at)
            arrived += 1
        order.admit(0.1 * at, slots - len(order.running))
        assert len(order.running) <= slots
        assert len(order.running) + len(order.waiting) + ended == arrived
        assert not (order.waiting and len(order.running) < slots)


def test_sa_may_not_decide_what_a_pool_cannot_carry_out():
    assert pool_policy_of("sa").settings.parts == ("order", "limits")
    with pytest.raises(ValueError, match="not prefill"):
        pool_policy_of("sa", parts=("order", "prefill"))


def test_the_names_of_its_arms():
    names = with_lmdeploy(POLICIES)
    assert {"lmdeploy", "lmdeploy+sa", "sa"} <= set(names)
    assert (pool_policy("lmdeploy"), pool_policy("lmdeploy+sa-paper")) == (None, "sa-paper")
    assert [is_lmdeploy(name) for name in ("lmdeploy", "lmdeploy+sa", "sa")] == [True, True, False]


# -- an environment that is not there, or not right -------------------------------------------


def environment_of(folder, script):
    python = folder / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.write_text(f"#!/bin/sh\n{script}\n")
    python.chmod(0o755)
    return python


def test_without_its_environment_simulate_says_so_in_a_line(tmp_path, monkeypatch):
    monkeypatch.setenv("LENGTHWISE_HOME", str(tmp_path))
    monkeypatch.delenv(environment.VARIABLE, raising=False)
    asked = [
        "simulate",
        "--source",
        "synthetic",
        "--requests",
        "20",
        "--policy",
        "fcfs,lmdeploy+sa",
    ]
    done = CliRunner().invoke(app, asked)
    assert done.exit_code != 0
    assert "`make lmdeploy`" in done.output
    assert "Traceback" not in done.output


def test_its_arms_are_for_one_instance(tmp_path, monkeypatch):
    monkeypatch.setenv("LENGTHWISE_HOME", str(tmp_path))
    asked = ["simulate", "--source", "synthetic", "--instances", "2", "--policy", "lmdeploy"]
    assert "one instance" in CliRunner().invoke(app, asked).output


def test_another_version_is_named(tmp_path):
    python = environment_of(tmp_path, """echo '{"version": "0.17.0"}'""")
    with pytest.raises(InputError, match=r"LMDeploy 0\.17\.0, not 0\.18\.0: `make lmdeploy`"):
        LmdeployPlayer(python)


def test_a_process_that_dies_at_its_start_is_a_line(tmp_path):
    python = environment_of(tmp_path, "echo 'No module named lmdeploy' >&2; exit 3")
    with pytest.raises(InputError, match="ended with 3 \\(No module named lmdeploy\\)"):
        LmdeployPlayer(python)


def test_a_process_that_dies_over_a_task_is_a_line(tmp_path):
    python = environment_of(tmp_path, """echo '{"version": "0.18.0"}'; read task; kill -9 $$""")
    player = LmdeployPlayer(python)
    with pytest.raises(InputError, match="ended with -9"):
        player.play(PoolTask(random_workload(5), small_engine()))
    player.close()


def lmdeploy_checks(folder, monkeypatch):
    monkeypatch.delenv(environment.VARIABLE, raising=False)
    return doctor._lmdeploy(Workspace(folder))


def test_the_doctor_knows_absent_broken_and_changed(tmp_path, monkeypatch):
    assert [c.status for c in lmdeploy_checks(tmp_path, monkeypatch)] == ["ok"]
    cache = tmp_path / ".lengthwise" / "lmdeploy"
    python = environment_of(cache, "echo 'no torch' >&2; exit 1")
    (broken,) = lmdeploy_checks(tmp_path, monkeypatch)
    assert (broken.status, broken.advice) == ("fail", "make lmdeploy")
    assert "no torch" in broken.detail
    said = SimpleNamespace(name="lmdeploy", ok=False, detail="0.17.0 (pinned: 0.18.0)")
    python.write_text(f"#!/bin/sh\necho '{json.dumps([vars(said)])}'\n")
    (changed,) = lmdeploy_checks(tmp_path, monkeypatch)
    assert (changed.status, changed.detail) == ("fail", said.detail)
