"""A plan's limits on vLLM's own bookkeeping: the prompts' tokens, their steps, and who runs."""

from __future__ import annotations

import numpy as np
import pytest
from engineless import make_request

from lengthwise.scheduler.problem import Plan


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
