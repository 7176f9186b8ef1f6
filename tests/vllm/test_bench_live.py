"""A small bench and a calibration against the real engine (the session's server)."""

from __future__ import annotations

import asyncio
import json

import pytest
from conftest import REPLAYED

from scheduler.profile import load_profile
from training.bench import BenchSettings, run_bench
from training.bench_arms import parse_arms, server_status
from training.bench_servers import BenchServers, ReplayTable
from training.bench_workload import open_workload
from training.calibrate import calibrate_server, write_profile
from training.result import BenchResult

pytestmark = pytest.mark.vllm

# beyond the ids other tests of this server replay
FIRST_ID = 1_000_000


@pytest.fixture(scope="module")
def servers(server):
    replay = ReplayTable(ReplayTable.random(1024).ids + FIRST_ID)
    own = {str(i): row + 1 for row, ids in enumerate(replay.ids.tolist()) for i in ids}
    server.replay_table.write_text(json.dumps(REPLAYED | own))
    return BenchServers(server, None, "tiny", 1024, replay, ())


def test_arms_run_on_the_engine_and_lose_nothing(servers):
    source = open_workload("paper", source="synthetic")
    settings = BenchSettings(
        parse_arms("fcfs:none,sa:learned,feasible-edf:oracle"),
        capacity_rps=20.0,
        requests=24,
        repeats=1,
    )
    outcome = run_bench(servers, source, settings)
    document = BenchResult.model_validate_json(outcome.result.to_line())
    assert {(arm.requests, arm.lost) for arm in document.arms} == {(24, 0)}
    for label, checks in document.diagnostics.items():
        assert checks["length_mismatches"] == 0, label
        assert checks["plan_fallbacks"] == 0, label
    # 24 requests at once for 8 slots: the queue was planned
    assert document.diagnostics["sa:learned"]["plans"] > 0
    status = asyncio.run(server_status(servers.ours.url))
    assert (status["policy"], status["lengths"]) == ("feasible-edf", "oracle")


def test_calibration_fits_the_engine(servers, tmp_path):
    source = open_workload("paper", source="synthetic")
    done = calibrate_server(servers, source, directory=tmp_path, name="live", short=True)
    write_profile(done, tmp_path / "live.json")
    profile = load_profile(tmp_path / "live.json")
    assert profile.capacity.max_num_seqs == 8
    assert profile.capacity.kv_tokens <= 6144
    step_s = profile.step_time.step_s(0, 8, 800)
    assert 1e-4 < step_s < 1.0
    assert 0.3 < profile.capacity_scale < 3.0
