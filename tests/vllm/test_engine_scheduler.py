"""The scheduler class on vLLM's own bookkeeping, without an engine."""

from __future__ import annotations

import time
from types import SimpleNamespace

import numpy as np
import pytest
from engineless import FakeEngine, make_request
from toy_engine import QUANTILES, scaled
from vllm.v1.core.sched.interface import PauseState
from vllm.v1.engine import FinishReason
from vllm.v1.request import RequestStatus

from lengthwise.data.request_log import STATUSES, read_request_log
from lengthwise.scheduler.problem import Plan
from lengthwise.scheduler.vllm_adapter.engine.observed.sequence_outcome import ANSWERED
from lengthwise.scheduler.vllm_adapter.engine.scheduler import _STATUS, _accepted, outcome_status


@pytest.fixture
def engine(tiny_dir):
    def build(ahead=1, blocks=1000, max_num_seqs=4, **settings):
        defaults = {"policy": "sjf", "plan_share": 1.0, "refit_steps": 0}
        return FakeEngine(
            tiny_dir, defaults | settings, ahead=ahead, blocks=blocks, max_num_seqs=max_num_seqs
        )

    return build


def test_the_plan_decides_who_is_admitted_next(engine):
    fake = engine(max_num_seqs=1)
    for name, factor in (("long", 50), ("middle", 5), ("short", 1)):
        fake.add(make_request(name, pred_quantiles=scaled(factor)))
    fake.run()
    assert fake.admitted == ["short", "middle", "long"]


@pytest.mark.parametrize("ahead", [1, 2])
def test_nothing_is_lost_under_preemption(engine, ahead):
    """12 blocks hold 192 tokens; four answers of 90 tokens want 4 x 98."""
    fake = engine(blocks=13, ahead=ahead)
    for i in range(10):
        fake.add(make_request(f"r{i}", pred_quantiles=QUANTILES), output_tokens=90)
    fake.run()
    assert fake.preemptions > 0
    assert set(fake.finished) == {f"r{i}" for i in range(10)}
    assert set(fake.tokens.values()) == {90}
    status = fake.scheduler.lengthwise_status()
    assert status["tracked"] == 0
    assert status["queue"]["waiting"] == 0
    assert status["outcomes"]["default"]["finished"] == 10
    assert status["plan"]["fallbacks"] == {}


class Yielding:
    """Whoever's deadline has passed gives up its slot and stands last."""

    name = "yielding"

    def __call__(self, problem):
        waiting, running = problem.waiting, problem.running
        late = waiting.arrival_s + waiting.e2e_s < problem.now_s
        lost = running.arrival_s + running.e2e_s < problem.now_s
        return Plan(np.argsort(late, kind="stable"), preempt=np.flatnonzero(lost))


@pytest.mark.parametrize("ahead", [1, 2])
def test_slots_that_a_plan_takes_back_lose_no_token(engine, ahead):
    """Four long answers were to end within 100 ms; what comes later has time."""
    fake = engine(ahead=ahead)
    fake.scheduler.core.planner.policy = Yielding()
    for i in range(4):
        fake.add(make_request(f"late{i}", pred_quantiles=scaled(40), slo_e2e_ms=100), 400)
    fake.step()
    time.sleep(0.15)
    for i in range(6):
        fake.add(make_request(f"quick{i}", pred_quantiles=QUANTILES, slo_e2e_ms=600_000), 20)
    fake.run()
    status = fake.scheduler.lengthwise_status()
    assert status["queue"]["yields"] >= 4
    assert status["plan"]["fallbacks"] == {}
    assert {fake.tokens[f"late{i}"] for i in range(4)} == {400}
    assert {fake.tokens[f"quick{i}"] for i in range(6)} == {20}
    assert all(name.startswith("quick") for name in list(fake.finished)[:6])


def test_where_vllm_cannot_drop_what_is_in_flight_no_slot_is_taken(engine):
    fake = engine()
    fake.scheduler.core.planner.policy = Yielding()
    fake.scheduler.core.may_yield = False
    for i in range(4):
        fake.add(make_request(f"late{i}", pred_quantiles=scaled(40), slo_e2e_ms=50), 60)
    fake.step()
    time.sleep(0.06)
    for i in range(6):
        fake.add(make_request(f"quick{i}", pred_quantiles=QUANTILES, slo_e2e_ms=3000), 20)
    fake.run()
    assert fake.scheduler.lengthwise_status()["queue"]["yields"] == 0
    assert len(fake.finished) == 10


def test_a_pooling_request_has_no_sampling_parameters(engine):
    request = make_request("pooling")
    request.sampling_params = None
    scheduler = engine().scheduler
    scheduler.add_request(request)
    tracked = scheduler.core.table.get("pooling")
    assert tracked.slo.is_best_effort
    assert tracked.length_source == "prior"


def test_outcomes_reach_the_request_log(engine, tmp_path, predictor_dir):
    fake = engine(request_log=str(tmp_path / "log"), predictor_dir=str(predictor_dir))
    fake.add(
        make_request(
            "met", slo_e2e_ms=60_000, slo_class="code", pred_quantiles=QUANTILES,
            pred_version="v9", tenant="t1", lw_text_id="t-0",
        ),
        output_tokens=5,
    )  # fmt: skip
    fake.add(make_request("late", slo_ttft_ms=1, arrival_time=time.time() - 5))
    fake.add(make_request("capped", max_tokens=3), output_tokens=50)
    fake.add(make_request("aborted", slo_e2e_ms=1000), output_tokens=500)
    for _ in range(8):
        fake.step()
    fake.abort("aborted")
    fake.run()
    fake.scheduler.core.outcomes.close()
    rows = read_request_log(tmp_path / "log").set_index("request_id")
    assert rows["status"].to_dict() == {
        "met": "finished", "late": "finished", "capped": "length", "aborted": "aborted",
    }  # fmt: skip
    met = rows.loc["met"]
    assert met["met"] == True  # noqa: E712 (numpy and Python booleans)
    assert (met["output_tokens"], met["slo_class"], met["predictor"]) == (5, "code", "v9")
    assert (met["predicted_tokens"], met["tenant"], met["text_id"]) == (20.0, "t1", "t-0")
    assert 0 <= met["ttft_s"] <= met["e2e_s"]
    assert rows.loc["late"]["met"] == False  # noqa: E712
    assert rows.loc["late"]["ttft_s"] >= 5
    assert rows.loc["capped"]["output_tokens"] == 3


def test_steps_are_timed_with_what_they_did(engine):
    fake = engine()
    fake.add(make_request("a", prompt_tokens=20), output_tokens=6)
    fake.run()
    samples = fake.scheduler.core.timer.samples()
    assert samples[0, :3].tolist() == [20, 0, 0]
    assert (samples[1:, 0] == 0).all()
    assert (samples[1:, 1] == 1).all()
    assert samples[1:, 2].tolist() == [21, 22, 23, 24, 25]
    assert (samples[:, 3] > 0).all()


def test_accepted_drafts_are_counted(engine):
    """Two of three sequences had drafts: one token and three came of them."""
    fake = engine()
    output = SimpleNamespace(
        req_id_to_index={"a": 0, "b": 1, "c": 2}, sampled_token_ids=[[7], [7, 7, 7], [7]]
    )
    assert _accepted({"a": [-1, -1], "b": [-1, -1], "gone": [-1]}, output) == (4, 2)
    assert fake.scheduler.lengthwise_status()["step_time"]["tokens_per_step"] == 1.0


class Limiting:
    """Arrival order, under limits."""

    name = "limiting"

    def __init__(self, **limits):
        self.limits = limits

    def __call__(self, problem):
        return Plan(np.arange(len(problem.waiting)), **self.limits)


def test_a_plans_prefill_limit_holds_at_every_step_and_ends_with_the_queue(engine):
    """Two decode, each taking a token, while prompts of 200 tokens come in by pieces of 32."""
    fake = engine()
    for name in ("a", "b"):
        fake.add(make_request(name), output_tokens=60)
    fake.step()
    own = fake.scheduler.max_num_scheduled_tokens
    fake.scheduler.core.planner.policy = Limiting(max_prefill_tokens=32)
    for name in ("x", "y", "z"):
        fake.add(make_request(name, prompt_tokens=200), output_tokens=3)
    budgets, taken = [], []
    while fake.scheduler.waiting:
        fake.step()
        if not fake.scheduler.waiting:
            break
        budgets.append(fake.scheduler.max_num_scheduled_tokens)
        taken.append(fake.scheduler.core.timer.samples()[-1, 0])
    assert len(budgets) > 8
    assert set(budgets) <= {2 + 32, 3 + 32}
    assert max(taken) == 32
    fake.run()
    assert fake.scheduler.max_num_scheduled_tokens == own
    assert set(fake.finished) == {"a", "b", "x", "y", "z"}
    assert fake.tokens["x"] == 3


def test_prompts_that_go_in_one_piece_are_not_limited(engine):
    """As under ``--no-enable-chunked-prefill``, where vLLM admits whole prompts only."""
    fake = engine()
    fake.scheduler._in_pieces = False
    fake.add(make_request("a"), output_tokens=60)
    fake.step()
    own = fake.scheduler.max_num_scheduled_tokens
    fake.scheduler.core.planner.policy = Limiting(max_prefill_tokens=32)
    fake.add(make_request("x", prompt_tokens=200), output_tokens=3)
    while fake.scheduler.waiting:
        fake.step()
        assert fake.scheduler.max_num_scheduled_tokens == own
    assert 200 in fake.scheduler.core.timer.samples()[:, 0]


def test_a_prefill_limit_of_nothing_still_lets_a_prompt_through(engine):
    fake = engine(max_num_seqs=2)
    fake.scheduler.core.planner.policy = Limiting(max_prefill_tokens=0)
    for i in range(4):
        fake.add(make_request(f"r{i}", prompt_tokens=100), output_tokens=3)
    fake.run()
    assert len(fake.finished) == 4
    assert (fake.scheduler.core.timer.samples()[:, 0] <= 100).all()
    assert 16 in fake.scheduler.core.timer.samples()[:, 0]


@pytest.mark.parametrize("ahead", [1, 2])
def test_prompts_are_computed_in_every_nth_step_while_anybody_decodes(engine, ahead):
    fake = engine(ahead=ahead, max_num_seqs=4)
    fake.scheduler.core.planner.policy = Limiting(prefill_period=5)
    for i in range(12):
        fake.add(make_request(f"r{i}", prompt_tokens=30), output_tokens=7 + i)
    while fake.scheduler.waiting:
        fake.step()
    rows = fake.scheduler.core.timer.samples()
    beside = np.flatnonzero((rows[:, 0] > 0) & (rows[:, 1] > 0))  # prompts while others decode
    last = [np.flatnonzero(rows[:step, 0] > 0)[-1] for step in beside]
    assert len(beside) > 1
    assert (beside - last >= 5).all()
    fake.run()
    assert len(fake.finished) == 12
    assert {fake.tokens[f"r{i}"] - i for i in range(12)} == {7}
    fake.add(make_request("later"), output_tokens=2)
    fake.run()
    assert not fake.scheduler.core.decisions.in_force.rests(0)


def test_a_plans_batch_limit_holds_and_ends_with_the_queue(engine):
    fake = engine()
    fake.scheduler.core.planner.policy = Limiting(max_running=2)
    for i in range(9):
        fake.add(make_request(f"r{i}"), output_tokens=3 + i)
    most = 0
    while fake.scheduler.waiting:
        fake.step()
        most = max(most, len(fake.scheduler.running))
    assert most == 2
    fake.run()
    for name in ("x", "y", "z"):
        fake.add(make_request(name), output_tokens=3)
    assert fake.scheduler._slots() == 4
    fake.run()
    assert len(fake.finished) == 12


@pytest.mark.parametrize("limit", [1, 2, 4])
@pytest.mark.parametrize("sessions", [1, 2, 3])
def test_sessions_that_wait_for_input_take_nothing_of_a_plans_limit(engine, sessions, limit):
    """vLLM counts them as running: under a limit no larger than their number nobody came in."""
    fake = engine()
    for i in range(sessions):
        fake.add(make_request(f"s{i}", resumable=True), output_tokens=2)
    for _ in range(4):
        fake.step()
    assert fake.scheduler.num_waiting_for_streaming_input == sessions
    seen = []

    class Watching(Limiting):
        def __call__(self, problem):
            seen.append(problem.capacity.max_num_seqs)
            return super().__call__(problem)

    fake.scheduler.core.planner.policy = Watching(max_running=limit)
    for i in range(5):
        fake.add(make_request(f"r{i}"), output_tokens=3)
    most = 0
    for _ in range(40):
        fake.step()
        most = max(most, len(fake.scheduler.running))
    assert set(fake.finished) == {f"r{i}" for i in range(5)} | {f"s{i}" for i in range(sessions)}
    assert most == min(limit, 4 - sessions)
    assert set(seen) == {4 - sessions}


def test_a_session_goes_on_under_a_plans_limit(engine):
    fake = engine()
    fake.add(make_request("s", resumable=True), output_tokens=2)
    for _ in range(4):
        fake.step()
    fake.scheduler.core.planner.policy = Limiting(max_running=1)
    fake.add(make_request("runs"), output_tokens=30)
    for i in range(2):
        fake.add(make_request(f"r{i}"), output_tokens=30)
    fake.step()
    turns = fake.tokens["s"]
    fake.scheduler.add_request(make_request("s", resumable=True))
    fake.step()
    fake.step()
    assert fake.tokens["s"] > turns
    assert "runs" not in fake.finished
    fake.scheduler.add_request(make_request("s"))  # the end of the input
    fake.run()
    assert {"runs", "r0", "r1", "s"} <= set(fake.finished)
    assert fake.scheduler.lengthwise_status()["plan"]["fallbacks"].keys() <= {"no-prediction"}


@pytest.mark.parametrize("ahead", [1, 2])
def test_planned_in_a_thread_everything_is_served_whole(engine, ahead):
    fake = engine(policy="sa", plan_in_thread=True, blocks=60, ahead=ahead)
    for i in range(40):
        fake.add(
            make_request(f"r{i}", slo_e2e_ms=200 + 100 * (i % 9), pred_quantiles=scaled(1 + i % 3)),
            output_tokens=3 + i,
        )
    fake.run()
    assert {fake.tokens[f"r{i}"] for i in range(40)} == set(range(3, 43))
    status = fake.scheduler.lengthwise_status()
    assert status["plan"]["fallbacks"] == {}
    assert status["tracked"] == 0


@pytest.mark.parametrize(
    ("part", "method"),
    [
        ("intake", "track"),
        ("planner", "plan_now"),
        ("timer", "end"),
        ("refit", "poll"),
        ("outcomes", "record"),
        ("table", "arrays"),
    ],
)
def test_a_fault_in_anything_we_add_is_counted_and_serving_goes_on(engine, part, method):
    def broken(*args, **kwargs):
        raise RuntimeError("broken")

    fake = engine(max_num_seqs=2)
    setattr(getattr(fake.scheduler.core, part), method, broken)
    for i in range(6):
        fake.add(make_request(f"r{i}"), output_tokens=3)
    fake.run()
    assert len(fake.finished) == 6
    assert set(fake.tokens.values()) == {3}
    assert sum(fake.scheduler.lengthwise_status()["plan"]["fallbacks"].values()) > 0
    assert len(fake.scheduler.waiting) == 0


# -- vLLM's vocabulary -------------------------------------------------------------------------


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


def test_a_length_bounded_from_below_is_not_planned_shorter(engine):
    fake = engine()
    fake.add(make_request("long", max_tokens=400, min_tokens=300, pred_quantiles=QUANTILES))
    fake.add(make_request("free", max_tokens=40, pred_quantiles=QUANTILES))
    table = fake.scheduler.core.table
    assert table.get("long").quantiles.tolist() == [300.0] * len(QUANTILES)
    assert table.get("free").quantiles.max() == 40


# -- pauses ------------------------------------------------------------------------------------


class Taking:
    """Whoever runs gives up its slot to whoever waits."""

    name = "taking"
    nominal_s = 0.001

    def __call__(self, problem):
        runs = np.arange(min(1, len(problem.running)))
        return Plan(np.arange(len(problem.waiting)), preempt=runs, max_running=1)


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
    if hasattr(scheduler, "kv_holding_waiting"):
        assert {name for name, tokens in fake.tokens.items() if tokens == 60} == began
    assert "new" not in fake.tokens
    scheduler.set_pause_state(PauseState.UNPAUSED)
    fake.run()
    assert set(fake.tokens.values()) == {60}
    assert set(fake.tokens) == {"a", "b", "c", "new"}
