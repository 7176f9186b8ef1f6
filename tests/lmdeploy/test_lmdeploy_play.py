"""LMDeploy's own loop, scheduler and pool in virtual time; skipped without its environment."""

import json
from dataclasses import replace

import numpy as np
import pytest
from lmdeploy_cases import STEP_TIME, random_workload, small_engine
from typer.testing import CliRunner

from lengthwise.data.errors import InputError
from lengthwise.scheduler.lmdeploy_adapter.lmdeploy_environment import VARIABLE, look_at
from lengthwise.scheduler.lmdeploy_adapter.lmdeploy_player import LmdeployPlayer
from lengthwise.scheduler.lmdeploy_adapter.play_messages import PoolTask, result_line
from lengthwise.scheduler.profile import PrefixCache, Speculation
from lengthwise.training.bench.results.result import BenchResult
from lengthwise.training.cli.app import app

pytestmark = pytest.mark.lmdeploy
SENDERS_S = 2e-3  # LMDeploy lets one reader of answers after another go, every 0.1 ms


def timeless(result):
    """The outcome without how long plans took here."""
    return result_line(replace(result, plan_s=[]))


def test_every_name_that_is_touched_is_there(lmdeploy_python):
    found = look_at(lmdeploy_python)
    assert [check for check in found if not check["ok"]] == []
    assert found[0]["detail"] == "0.18.0 (pinned: 0.18.0)"
    assert len(found) > 5


def test_one_request_alone_takes_its_steps(player):
    workload = random_workload(1, answers=(40, 41), prompts=(100, 101))
    result = player.play(PoolTask(workload, small_engine()))
    prefill_s = STEP_TIME.step_s(100, 0, 0)
    decode_s = sum(STEP_TIME.step_s(0, 1, 100 + i) for i in range(39))
    assert result.ttft_s(workload)[0] == pytest.approx(prefill_s, abs=SENDERS_S)
    assert result.e2e_s(workload)[0] == pytest.approx(prefill_s + decode_s, abs=SENDERS_S)


def test_a_prefill_and_a_decode_are_two_steps(player):
    """Where vLLM would put the second prompt and the first's token in one."""
    workload = replace(
        random_workload(2, answers=(30, 31), prompts=(100, 101)), arrival_s=np.array([0.0, 0.1])
    )
    result = player.play(PoolTask(workload, small_engine()))
    assert result.steps >= 2 + 30
    assert result.prefilled_tokens == 200
    assert (result.output_tokens == 30).all()


def test_a_run_depends_on_its_task_alone(player, lmdeploy_python):
    tasks = [
        PoolTask(random_workload(50, rate_rps=30.0), small_engine(), policy)
        for policy in (None, "sa")
    ]
    first = [timeless(player.play(task)) for task in tasks]
    player.play(PoolTask(random_workload(10, seed=5), small_engine(4), "sa"))
    another = LmdeployPlayer(lmdeploy_python)
    assert [timeless(player.play(task)) for task in tasks] == first
    assert [timeless(another.play(task)) for task in reversed(tasks)] == first[::-1]
    another.close()


def test_arrival_order_at_our_pool_is_its_own_pool(player):
    workload = random_workload(80, rate_rps=30.0)
    own = player.play(PoolTask(workload, small_engine()))
    ours = player.play(PoolTask(workload, small_engine(), "fcfs"))
    assert (own.admitted_s - workload.arrival_s).max() > 1.0
    for name in ("admitted_s", "first_token_s", "finish_s"):
        np.testing.assert_allclose(getattr(ours, name), getattr(own, name), atol=1e-3)


def test_an_order_at_the_pool_is_an_order_of_service(player):
    workload = random_workload(80, rate_rps=30.0, answers=(5, 400))
    own = player.play(PoolTask(workload, small_engine()))
    shortest = player.play(PoolTask(workload, small_engine(), "sjf"))
    planned = player.play(PoolTask(workload, small_engine(), "sa"))
    assert shortest.e2e_s(workload).mean() < 0.85 * own.e2e_s(workload).mean()
    assert planned.met(workload).mean() > own.met(workload).mean() + 0.1
    assert len(planned.plan_s) > 5


def test_answers_are_exact_when_memory_runs_out(player):
    workload = random_workload(40, rate_rps=40.0, prompts=(60, 250), answers=(100, 300))
    engine = small_engine(kv_tokens=32 * 64)
    result = player.play(PoolTask(workload, engine))
    np.testing.assert_array_equal(result.output_tokens, workload.output_tokens)
    assert result.preemptions > 0
    assert result.prefilled_tokens > workload.prompt_tokens.sum()


def test_long_prompts_go_in_chunks(player):
    workload = random_workload(12, rate_rps=5.0, prompts=(300, 1200))
    whole = player.play(PoolTask(workload, small_engine()))
    chunked = player.play(PoolTask(workload, small_engine(budget=256)))
    assert chunked.prefilled_tokens == whole.prefilled_tokens == workload.prompt_tokens.sum()
    assert chunked.steps > whole.steps
    np.testing.assert_array_equal(chunked.output_tokens, workload.output_tokens)


def test_shared_beginnings_are_computed_once(player, lmdeploy_python):
    n = 40
    columns = {"prefix_id": np.arange(n) % 2, "prefix_tokens": np.full(n, 256)}
    workload = random_workload(n, prompts=(300, 400), **columns)
    without = player.play(PoolTask(workload, small_engine(kv_tokens=8192)))
    cached = small_engine(kv_tokens=8192, prefix_cache=PrefixCache())
    task = PoolTask(workload, cached)
    result = player.play(task)
    assert without.prefilled_tokens >= workload.prompt_tokens.sum()
    assert result.prefilled_tokens < 0.7 * without.prefilled_tokens
    another = LmdeployPlayer(lmdeploy_python)
    assert timeless(another.play(task)) == timeless(result)
    another.close()


def test_what_it_cannot_serve_is_refused_in_a_line_and_the_next_is_served(player):
    workload = random_workload(4, prompts=(900, 901), answers=(100, 101))
    small = small_engine(kv_tokens=1024)
    with pytest.raises(InputError, match="1000 tokens is beyond LMDeploy's session length of 960"):
        player.play(PoolTask(workload, small))
    with pytest.raises(InputError, match="speculation"):
        player.play(PoolTask(workload, small_engine(speculation=Speculation(2.0))))
    assert player.play(PoolTask(workload, small_engine())).end_s > 0


@pytest.fixture
def here(tmp_path, lmdeploy_python, monkeypatch):
    monkeypatch.setenv("LENGTHWISE_HOME", str(tmp_path))
    monkeypatch.setenv(VARIABLE, str(lmdeploy_python.parents[1]))


def test_simulate_sets_it_beside_vllm(here):
    asked = [
        "simulate", "--source", "synthetic", "--requests", "60", "--seeds", "1", "--load", "2",
        "--policy", "fcfs,lmdeploy,lmdeploy+sa", "--lengths", "oracle", "--no-bound", "--json",
    ]  # fmt: skip
    done = CliRunner().invoke(app, asked)
    assert done.exit_code == 0, done.output
    document = BenchResult.model_validate_json(done.stdout.strip().splitlines()[-1])
    assert [arm.policy for arm in document.arms] == ["fcfs", "lmdeploy", "lmdeploy+sa"]
    assert all((arm.requests, arm.lost) == (60, 0) for arm in document.arms)
    assert "LMDeploy 0.18.0" in json.dumps(document.run)
