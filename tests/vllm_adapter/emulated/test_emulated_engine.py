"""vLLM's own engine core on the emulated device: every answer as long as it must be."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from lengthwise.scheduler.fleet.make_router import make_router
from lengthwise.scheduler.problem import Plan, Problem
from lengthwise.scheduler.profile import load_profile
from lengthwise.scheduler.serving.wire.answer_length import DEFAULT_LEVELS
from lengthwise.scheduler.vllm_adapter.emulated import fleet
from lengthwise.scheduler.vllm_adapter.emulated.emulated_front import EngineRequest, Front
from lengthwise.scheduler.vllm_adapter.emulated.player import Job, JobRequest
from lengthwise.scheduler.vllm_adapter.emulated.player_process import PlayerError
from lengthwise.scheduler.vllm_adapter.emulated.prompts import prompt_token_ids
from lengthwise.scheduler.vllm_adapter.emulated.warp import WarpClock
from lengthwise.scheduler.vllm_adapter.server.tiny import build_tiny_model
from lengthwise.scheduler.vllm_adapter.vllm_config import SCHEDULER_CLASS
from lengthwise.scheduler.vllm_adapter.worker.replay import write_replay_table

OURS = {
    "policy": "sa",
    "policy_params": {"iterations": 60},
    "lengths": "oracle",
    "refit_steps": 0,
}
STEP_TIME = {
    "base_s": 6e-3,
    "prefill_step_s": 1e-3,
    "prefill_token_s": 1e-5,
    "decode_seq_s": 1e-5,
    "context_token_s": 1e-8,
}

LEVELS = np.array(DEFAULT_LEVELS)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("emulated")
    build_tiny_model(made / "tiny")
    return made


def make_job(folder: Path, requests: list[JobRequest], settings=None, slots=48, kv=6144, **others):
    profile = {
        "name": "made-up",
        "provenance": "made up",
        "step_time": STEP_TIME,
        "capacity": {"max_num_seqs": slots, "kv_tokens": kv, "max_num_batched_tokens": 256},
        **others,
    }
    path = folder / f"profile-{slots}-{kv}-{'-'.join(others)}.json"
    path.write_text(json.dumps(profile))
    if settings is not None:
        settings = settings | {"profile": str(path)}
    return Job(str(path), str(folder / "tiny"), tuple(requests), settings)


def drawn(n: int, seed: int = 0, gap_s: float = 0.01, **slo: float) -> list[JobRequest]:
    """Requests whose prompts are cut into chunks of 256, with answers of 1, 2 and many tokens."""
    rng = np.random.default_rng(seed)
    requests = []
    for i in range(n):
        length = int(rng.choice([1, 2, rng.integers(3, 700)]))
        quantiles = {"pred_quantiles": [float(length)] * 12}
        tokens = int(rng.choice([1, 40, 700]))
        requests.append(JobRequest(gap_s * i, tokens, length, xargs=quantiles | slo))
    return requests


def check_lengths(outcome, job: Job) -> None:
    assert outcome.tokens == [request.output_tokens for request in job.requests]
    arrivals = np.array([request.arrival_s for request in job.requests])
    assert (np.array(outcome.first_s) > arrivals).all()
    assert (np.array(outcome.last_s) >= np.array(outcome.first_s)).all()


@pytest.mark.parametrize("is_async", [True, False])
@pytest.mark.parametrize("settings", [None, OURS])
def test_lengths_under_kv_pressure(player, folder, settings, is_async):
    job = replace(make_job(folder, drawn(60), settings), async_scheduling=is_async)
    outcome = player.run(job)
    check_lengths(outcome, job)
    assert outcome.preemptions > 0
    # the clock charges the host nothing, so steps take what the profile says and no more
    tokens = sum(r.prompt_tokens for r in job.requests)
    assert outcome.virtual_s >= tokens * STEP_TIME["prefill_token_s"]
    assert outcome.steps[0]["steps"] * STEP_TIME["base_s"] <= outcome.virtual_s


@pytest.mark.parametrize("is_async", [True, False])
@pytest.mark.parametrize("settings", [None, OURS])
def test_lengths_and_speed_with_speculation(player, folder, settings, is_async):
    requests = drawn(60)
    plain = make_job(folder, requests, settings)
    drafted = make_job(
        folder, requests, settings, speculation={"accepted_tokens": 2.4, "draft_tokens": 3}
    )
    jobs = [replace(job, async_scheduling=is_async) for job in (plain, drafted)]
    slow, fast = (player.run(job) for job in jobs)
    check_lengths(fast, jobs[1])
    assert fast.preemptions > 0
    assert fast.steps[0]["steps"] < 0.75 * slow.steps[0]["steps"]


def test_shared_beginnings_are_computed_once_where_the_profile_caches_them(player, folder):
    requests = [JobRequest(0.2 * i, 520, 40, f"p{i % 2}", 512) for i in range(20)]
    cold = player.run(make_job(folder, requests, kv=65536))
    job = make_job(folder, requests, kv=65536, prefix_cache={"block_tokens": 16})
    warm = player.run(job)
    check_lengths(warm, job)
    assert cold.prefill_tokens == 20 * 520
    assert warm.prefill_tokens == 2 * 520 + 18 * 8
    assert np.mean(warm.first_s) < np.mean(cold.first_s)


class TakesSlots:
    """Arrival order, and of those who run every third plan takes one's slot."""

    name, nominal_s = "takes-slots", 1e-3

    def __init__(self) -> None:
        self.plans = 0

    def __call__(self, problem: Problem) -> Plan:
        self.plans += 1
        taken = len(problem.running) > 0 and self.plans % 3 == 0
        rows = np.array([self.plans % len(problem.running)] if taken else [], dtype=np.int64)
        return Plan(np.arange(len(problem.waiting), dtype=np.int64), preempt=rows)


def test_slots_taken_back_by_a_plan_lose_no_token(folder, tmp_path):
    requests = drawn(60)
    job = make_job(folder, requests, slots=4, kv=65536)
    lengths = {f"q{i}": r.output_tokens for i, r in enumerate(requests)}
    write_replay_table(tmp_path / "table.json", lengths)
    clock = WarpClock()
    with clock.installed():
        core = fleet.make_core(
            job.profile,
            job.model_dir,
            settings={"policy": "fcfs", "lengths": "none", "profile": job.profile},
            scheduler_cls=SCHEDULER_CLASS,
            replay_table=tmp_path / "table.json",
        )
        engine = fleet.Engine(core)
        core.scheduler.core.planner.policy = TakesSlots()
        prompts = prompt_token_ids(requests)
        router = make_router(
            "least-outstanding", LEVELS, policy="fcfs", rng=np.random.default_rng(0)
        )
        served = fleet.play(
            clock,
            [engine],
            [
                EngineRequest(f"q{i}", r.arrival_s, prompt, 2000)
                for i, (r, prompt) in enumerate(zip(requests, prompts, strict=True))
            ],
            Front(router, [engine], [load_profile(job.profile)], LEVELS),
        )
        status = engine.status()
        engine.close()
    assert {name: one.tokens for name, one in served.items()} == lengths
    assert status is not None
    assert status["queue"]["yields"] > 10
    assert status["plan"]["fallbacks"] == {}


def test_a_run_repeats_to_the_bit(player, folder):
    job = make_job(folder, drawn(40, slo_e2e_ms=900.0), OURS, slots=8)
    one, other = player.run(job), player.run(job)
    assert (one.first_s, one.last_s, one.preemptions) == (
        other.first_s,
        other.last_s,
        other.preemptions,
    )
    assert len(one.plan_s) == len(other.plan_s) > 0
    assert one.status[0]["plan"]["fallbacks"] == {}


def test_arrival_order_of_ours_is_the_stock_engine(player, folder):
    requests = drawn(50, slo_ttft_ms=300.0)
    stock = player.run(make_job(folder, requests, slots=8, kv=65536))
    ours = player.run(make_job(folder, requests, OURS | {"policy": "fcfs", "policy_params": {}},
                               slots=8, kv=65536))  # fmt: skip
    assert ours.tokens == stock.tokens
    # a plan takes its nominal tenth of a millisecond where stock takes none
    np.testing.assert_allclose(ours.last_s, stock.last_s, atol=1e-3)


def test_a_plan_changes_the_order(player, folder):
    requests = [
        JobRequest(0.0, 20, 300 if i < 20 else 5, xargs={
            "slo_e2e_ms": 60_000.0 if i < 20 else 1_500.0,
            "pred_quantiles": [300.0 if i < 20 else 5.0] * 12,
        })
        for i in range(40)
    ]  # fmt: skip
    stock = player.run(make_job(folder, requests, slots=4, kv=65536))
    ours = player.run(make_job(folder, requests, OURS | {"policy": "edf", "policy_params": {}},
                               slots=4, kv=65536))  # fmt: skip
    assert np.mean(stock.last_s[20:]) > 2 * np.mean(ours.last_s[20:])
    assert ours.status[0]["outcomes"]["default"]["met"] == 40


def test_engines_in_one_process_keep_their_own_time(player, folder):
    requests = drawn(60)
    one = player.run(make_job(folder, requests))
    job = replace(make_job(folder, requests), instances=3)
    three = player.run(job)
    turns = player.run(replace(job, route="round-robin"))
    check_lengths(three, job)
    assert set(three.engine) == {0, 1, 2}
    assert turns.engine == [(i + 1) % 3 for i in range(60)]
    assert np.mean(three.last_s) < np.mean(one.last_s)


def test_a_charged_host_is_slower_and_steps_say_so(player, folder):
    job = make_job(folder, drawn(30))
    free = player.run(job)
    slow = player.run(replace(job, host_factor=100.0))
    check_lengths(slow, job)
    assert slow.virtual_s > free.virtual_s
    # what the host would have cost is told in any case
    assert free.steps[0]["step_ratio"] >= 1.0
    assert free.host_cpu_ms_p99 >= free.host_cpu_ms_p50 > 0


def test_what_no_engine_can_hold_is_refused_and_the_process_lives_on(player, folder):
    too_long = make_job(folder, [JobRequest(0.0, 7000, 5)])
    with pytest.raises(PlayerError, match="prompt of 7000 tokens and an answer do not fit"):
        player.run(too_long)
    with pytest.raises(PlayerError, match="no profile 'nowhere'"):
        player.run(replace(too_long, profile="nowhere"))
    assert player.run(make_job(folder, drawn(3))).tokens == [r.output_tokens for r in drawn(3)]
