"""A small bench and a calibration against the real engine (the session's server)."""

from __future__ import annotations

import asyncio
import json
from dataclasses import replace

import pytest

from lengthwise.data.slo import Slo
from lengthwise.data.workload import WorkloadRequest, write_workload
from lengthwise.scheduler.profile import load_profile
from lengthwise.scheduler.vllm_adapter.worker.replay import write_replay_table
from lengthwise.training.bench.comparison.arms import parse_arms, server_status
from lengthwise.training.bench.comparison.bench_settings import BenchSettings
from lengthwise.training.bench.comparison.compare import compare
from lengthwise.training.bench.comparison.workload_source import open_workload
from lengthwise.training.bench.engines.calibrate import calibrate_server, write_profile
from lengthwise.training.bench.engines.generation import Generation
from lengthwise.training.bench.engines.servers import BenchServers, ReplayIds
from lengthwise.training.bench.results.result import BenchResult
from lengthwise.training.bench.runners.engine_runner import EngineRunner
from lengthwise.training.bench.runners.generated_runner import GeneratedRunner

pytestmark = pytest.mark.vllm

# beyond the ids other tests of this server replay
FIRST_ID = 1_000_000


@pytest.fixture(scope="module")
def servers(server):
    replay = ReplayIds(ReplayIds.random(512).ids + FIRST_ID)
    own = {str(i): row + 1 for row, ids in enumerate(replay.ids.tolist()) for i in ids}
    others = json.loads(server.replay_table.read_text())
    write_replay_table(server.replay_table, others | own)
    return BenchServers(server, None, "tiny", 512, replay, (), server.step_log)


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """Answers short enough for the small cache of the session's server."""
    chat, code = Slo(ttft_s=5.0, slo_class="chat"), Slo(e2e_s=20.0, slo_class="code")
    requests = [
        WorkloadRequest(
            0.02 * i, 12, 20 + (13 * i) % 60, (chat, code)[i % 2], f"Tell me about {i}."
        )
        for i in range(48)
    ]
    path = tmp_path_factory.mktemp("workload") / "small.jsonl"
    write_workload(path, requests)
    return open_workload(str(path))


def test_arms_run_on_the_engine_and_lose_nothing(servers, source):
    settings = BenchSettings(
        parse_arms("fcfs:none,sa:learned,feasible-edf:oracle"),
        load=3.0,
        requests=48,
    )
    outcome = compare(source, settings, EngineRunner(servers), capacity_rps=20.0)
    document = BenchResult.model_validate_json(outcome.result.to_line())
    assert {(arm.requests, arm.lost) for arm in document.arms} == {(48, 0)}
    for label, checks in document.diagnostics.items():
        assert checks["length_mismatches"] == 0, label
        assert checks["plan_fallbacks"] == 0, label
    # 48 requests at once for 8 slots: the queue was planned
    assert document.diagnostics["sa:learned"]["plans"] > 0
    status = asyncio.run(server_status(servers.ours.url))
    assert (status["policy"], status["lengths"]) == ("feasible-edf", "oracle")


def test_calibration_fits_the_engine(servers, source, tmp_path):
    done = calibrate_server(servers, source, name="live", short=True)
    write_profile(done, tmp_path / "live.json")
    profile = load_profile(tmp_path / "live.json")
    assert profile.capacity.max_num_seqs == 8
    assert profile.capacity.kv_tokens <= 6144
    step_s = profile.step_time.step_s(0, 8, 800)
    assert 1e-4 < step_s < 1.0
    assert 0.3 < profile.capacity_scale < 3.0


def test_the_model_ends_its_answers_where_nothing_is_forced(servers, source):
    """Random weights seldom end by themselves: most answers reach the users' limit.

    Greedy: a prompt of a request that samples from a seed must not come in pieces on a CPU.
    """
    free = replace(servers, generation=Generation(24, 0.0, 3))
    settings = BenchSettings(parse_arms("fcfs:none,sa:learned"), requests=16)
    outcome = compare(source, settings, GeneratedRunner(free, free.generation))
    document = BenchResult.model_validate_json(outcome.result.to_line())
    assert {(arm.requests, arm.lost) for arm in document.arms} == {(16, 0)}
    records = outcome.records["fcfs:none"]
    assert max(r.output_tokens for r in records) <= 24
    assert {r.output_tokens for r in records if r.cut} == {24}
    assert [r.target_tokens for r in records] == [r.output_tokens for r in records]
    assert document.run["same_length"]["sa:learned as fcfs:none"].split()[1:3] == ["of", "16,"]
