"""vLLM's own words kept: ways to finish, priorities, pauses."""

from __future__ import annotations

import numpy as np
import pytest
from engineless import FakeEngine, make_request
from packaging.version import Version
from toy_engine import QUANTILES, scaled
from vllm.v1.core.sched.interface import PauseState
from vllm.v1.engine import FinishReason
from vllm.v1.request import RequestStatus

from lengthwise.data.request_log import STATUSES, read_request_log
from lengthwise.scheduler.problem import Plan
from lengthwise.scheduler.serving.engine.observed.sequence_outcome import ANSWERED
from lengthwise.scheduler.vllm_adapter.engine.scheduler import _STATUS, outcome_status
from lengthwise.scheduler.vllm_adapter.supported import vllm_version

# -- ways to finish ----------------------------------------------------------------------------


def test_every_way_to_finish_that_vllm_knows_is_mapped():
    assert {str(reason) for reason in FinishReason} <= _STATUS.keys()
    ends = [status for status in RequestStatus if RequestStatus.is_finished(status)]
    assert len(ends) >= 5
    for status in ends:
        assert outcome_status(status) in STATUSES
        assert outcome_status(status) != "otherwise"
    assert outcome_status(RequestStatus.FINISHED_ERROR) == "failed"


@pytest.mark.parametrize(
    ("reason", "status", "met", "learned"),
    [
        ("repetition", "repetition", True, False),
        ("some-reason-of-tomorrow", "otherwise", True, False),
        (None, "otherwise", True, False),
        ("stop", "finished", True, True),
        ("length", "length", True, True),
        ("error", "failed", False, False),
        ("abort", "aborted", None, False),
    ],
)
def test_how_an_answer_ended_is_booked(engine, tmp_path, monkeypatch, reason, status, met, learned):
    """Judged by its times wherever there is an answer; learned from where its length says much."""
    monkeypatch.setattr(RequestStatus, "get_finished_reason", staticmethod(lambda status: reason))
    fake = engine(request_log=str(tmp_path))
    notes = []
    monkeypatch.setattr(fake.scheduler.core.intake, "note_length", lambda *a, **k: notes.append(a))
    fake.add(make_request("r", slo_e2e_ms=60_000, pred_quantiles=QUANTILES))
    fake.run()
    fake.scheduler.core.close()
    row = read_request_log(tmp_path).iloc[0]
    assert (row["status"], row["met"]) == (status, met)
    outcomes = fake.scheduler.lengthwise_status()["outcomes"]["default"]
    assert outcomes[status] == 1
    assert outcomes.get("met", 0) == (met is True)
    assert bool(notes) == learned
    assert (status in ANSWERED) == (met is True)


class Taking:
    """Whoever runs gives up its slot to whoever waits."""

    name = "taking"
    nominal_s = 0.001

    def __call__(self, problem):
        runs = np.arange(min(1, len(problem.running)))
        return Plan(np.arange(len(problem.waiting)), preempt=runs, max_running=1)


# -- priorities --------------------------------------------------------------------------------


def test_vllms_priority_goes_before_the_plan(tiny_dir):
    """As stock: the smaller number first; the plan, shortest first, decides among equals."""
    settings = {"policy": "sjf", "plan_share": 1.0, "refit_steps": 0}
    asked = [("a", 9, 1), ("b", 1, 20), ("c", 1, 5), ("d", 0, 30), ("e", 9, 0.5), ("f", -3, 25)]
    admitted = {}
    for policy in ("fcfs", "priority"):
        fake = FakeEngine(tiny_dir, settings, max_num_seqs=1, scheduling_policy=policy)
        for name, priority, factor in asked:
            fake.add(make_request(name, priority=priority, pred_quantiles=scaled(factor)))
        fake.run()
        admitted[policy] = "".join(fake.admitted)
        assert fake.scheduler.lengthwise_status()["plan"]["fallbacks"] == {}
    assert admitted["priority"] == "fdcbea"
    assert admitted["fcfs"] == "eacbfd"


def test_no_plan_takes_a_slot_for_a_later_number(tiny_dir):
    settings = {"policy": "fcfs", "plan_share": 1.0, "refit_steps": 0}
    fake = FakeEngine(tiny_dir, settings, max_num_seqs=1, scheduling_policy="priority")
    fake.scheduler.core.planner.policy = Taking()
    fake.add(make_request("first", priority=1), output_tokens=30)
    fake.step()
    fake.add(make_request("later", priority=2), output_tokens=30)
    for _ in range(5):
        fake.step()
    assert fake.scheduler.lengthwise_status()["queue"]["yields"] == 0
    fake.add(make_request("sooner", priority=0), output_tokens=30)
    fake.step()
    assert fake.scheduler.lengthwise_status()["queue"]["yields"] == 1
    fake.run()
    assert fake.admitted == ["first", "sooner", "later"]
    assert set(fake.tokens.values()) == {30}


# -- pauses ------------------------------------------------------------------------------------


@pytest.mark.parametrize("state", [PauseState.PAUSED_NEW, PauseState.PAUSED_ALL])
def test_a_pause_of_an_engine_at_rest_is_told_at_once_and_so_is_its_end(tiny_dir, state):
    """A router sends nothing to one that drains, which then takes no step to say otherwise."""
    scheduler = FakeEngine(tiny_dir).scheduler
    for paused in (True, False):
        scheduler.set_pause_state(state if paused else PauseState.UNPAUSED)
        assert scheduler.lengthwise_status()["queue"]["paused"] is paused
        assert scheduler.lengthwise_load()["draining"] is paused


@pytest.mark.parametrize("ahead", [1, 2])
def test_a_pause_that_waits_is_over_when_every_answer_that_began_is_whole(tiny_dir, ahead):
    """vLLM's `mode=wait`: nobody new, who runs runs on, and so do those a plan made wait."""
    settings = {"policy": "fcfs", "plan_share": 1.0, "refit_steps": 0}
    fake = FakeEngine(tiny_dir, settings, max_num_seqs=2, ahead=ahead)
    scheduler = fake.scheduler
    scheduler.core.planner.policy = Taking()
    for name in "ab":
        fake.add(make_request(name), output_tokens=60)
    for _ in range(8):
        fake.step()
    fake.add(make_request("c"), output_tokens=60)
    for _ in range(8):
        fake.step()
    began = {name for name, tokens in fake.tokens.items() if tokens}
    assert scheduler.lengthwise_status()["queue"]["yields"] > 0
    scheduler.set_pause_state(PauseState.PAUSED_NEW)
    fake.add(make_request("new"), output_tokens=60)
    for _ in range(1000):
        if not scheduler.get_num_unfinished_requests():
            break
        fake.step()
    queue = scheduler.lengthwise_status()["queue"]
    assert (queue["paused"], queue["max_running"]) == (True, 2)
    if Version(vllm_version()) >= Version("0.32"):  # who holds memory is admitted meanwhile
        assert {name for name, tokens in fake.tokens.items() if tokens == 60} == began
    assert "new" not in fake.tokens
    scheduler.set_pause_state(PauseState.UNPAUSED)
    fake.run()
    assert set(fake.tokens.values()) == {60}
    assert set(fake.tokens) == {"a", "b", "c", "new"}
