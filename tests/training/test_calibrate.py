"""Calibration against a stub whose steps follow a known model."""

from __future__ import annotations

import json

import numpy as np
import pytest
from bench_stub import Stub, running
from hypothesis import given
from hypothesis import strategies as st

from lengthwise.data.slo import Slo
from lengthwise.data.workload import WorkloadRequest, write_workload
from lengthwise.scheduler.profile import PrefixCache, load_profile
from lengthwise.scheduler.simulator.capacity import saturated_tokens_per_s
from lengthwise.scheduler.step_time import StepTimeModel
from lengthwise.training.bench.comparison.workload_source import capacity_rps, open_workload
from lengthwise.training.bench.engines.calibrate import (
    calibrate_server,
    calibration_rows,
    concurrency_levels,
    write_profile,
)
from lengthwise.training.bench.engines.client import BenchError
from lengthwise.training.bench.engines.reply_rate import STEADY, fastest_seen_twice
from lengthwise.training.bench.engines.servers import BenchServers, ReplayIds

TRUE = StepTimeModel(0.002, 0.001, 2e-5, 3e-4, 0.0)


def logged_steps(n: int = 400) -> list[list[float]]:
    rng = np.random.default_rng(0)
    rows = []
    for _ in range(n):
        prefill = float(rng.integers(0, 2) * rng.integers(10, 500))
        seqs = float(rng.integers(1, 8))
        duration = TRUE.step_s(prefill, seqs, 100 * seqs) * rng.uniform(0.97, 1.03)
        rows.append([0.0, prefill, seqs, 100 * seqs, duration, seqs, 0])
    return rows


@pytest.fixture
def source(tmp_path):
    requests = [WorkloadRequest(0.1 * i, 9, 5 + i % 7, Slo(), "hello") for i in range(60)]
    write_workload(tmp_path / "w.jsonl", requests)
    return open_workload(str(tmp_path / "w.jsonl"))


@pytest.fixture
def servers(tmp_path):
    replay = ReplayIds.random(128, seed=1)
    lengths = {int(i): row + 1 for row, ids in enumerate(replay.ids) for i in ids}
    capacity = {"max_num_seqs": 8, "kv_tokens": 4096, "max_num_batched_tokens": 512}
    stub = Stub(ttft_s=0.01, itl_s=0.001, lengths=lengths, capacity=capacity, slots=8)
    stub.steps, stub.step_log = logged_steps(), tmp_path / "steps.jsonl"
    with running(stub) as ours:
        yield BenchServers(ours, None, "stub", 128, replay, (), stub.step_log)


def test_the_known_model_and_the_measured_capacity_come_back(servers, source, tmp_path):
    said = []
    done = calibrate_server(servers, source, name="stub", short=True, on_stage=said.append)
    fitted = done.profile.step_time
    assert fitted.base_s == pytest.approx(TRUE.base_s, rel=0.1)
    # the stub's context is 100 tokens a sequence, so the two share what a sequence takes
    a_sequence_s = fitted.decode_seq_s + 100 * fitted.context_token_s
    assert a_sequence_s == pytest.approx(TRUE.decode_seq_s, rel=0.1)
    assert fitted.prefill_token_s == pytest.approx(TRUE.prefill_token_s, rel=0.1)
    assert done.report["fit"]["median_error"] < 0.05
    assert done.profile.capacity.max_num_seqs == 8
    assert done.profile.prefix_cache == PrefixCache(32)
    assert "model stub" in done.profile.provenance
    assert said.count("saturated throughput") == len(done.report["measured_rps_each"]) >= 2
    assert len([stage for stage in said if "in flight" in stage]) == len(concurrency_levels(8))
    assert done.report["measured_rps"] == fastest_seen_twice(done.report["measured_rps_each"])
    # fcfs for the measurement, and the step log is switched off at the end
    assert servers.ours.configured[0]["policy"] == "fcfs"
    assert servers.ours.configured[-1] == {"log_steps": False}
    assert all(len(row) == 2 for row in calibration_rows(done))

    path = tmp_path / "profiles" / "stub.json"
    write_profile(done, path)
    loaded = load_profile(path)
    assert loaded == done.profile
    assert json.loads(path.read_text())["calibration"]["steps"] == 400
    # by its profile the engine carries what was measured
    assert capacity_rps(source, loaded) == pytest.approx(done.report["measured_rps"], rel=0.35)


@pytest.mark.parametrize(
    ("rates", "counts"),
    [
        # the machine was busy in one run, then in two
        ([12.5, 8.25, 12.0], 12.5),
        ([12.5, 8.25, 8.3, 12.0], 12.5),
        # answers that were held up on their way came all at once
        ([90.0, 12.5, 12.0, 12.4, 12.2], 12.5),
        ([12.5, 90.0, 12.0, 12.4, 12.2], 12.5),
        # no two agree: the middle
        ([90.0, 60.0, 30.0, 15.0, 5.0], 30.0),
    ],
)
def test_a_moment_in_which_the_machine_was_busy_is_told_and_does_not_count(
    rates, counts, servers, source, monkeypatch
):
    runs = iter(rates)

    async def saturate(*_):
        return next(runs)

    monkeypatch.setattr("lengthwise.training.bench.engines.calibrate.saturate", saturate)
    said = []
    done = calibrate_server(servers, source, name="stub", short=True, on_stage=said.append)
    assert done.report["measured_rps"] == counts
    assert done.report["measured_rps_each"] == rates
    each = ", ".join(f"{rate:.2f}" for rate in rates)
    told = f"other work disturbed the machine: {each} requests/s, took {counts:.2f}"
    assert said[-1] == told


@given(st.lists(st.floats(0.1, 1e4), min_size=2, max_size=6))
def test_a_rate_that_counts_was_seen_twice_and_none_above_it_was(rates):
    taken = fastest_seen_twice(rates)
    near = [r for r in rates if sum(STEADY * r <= other <= r for other in rates) > 1]
    assert taken == (max(near) if near else None)


def test_a_server_that_logs_nothing_or_fails_is_an_error(servers, source, tmp_path):
    servers.ours.steps = []
    with pytest.raises(BenchError, match="logged no steps"):
        calibrate_server(servers, source, name="stub", short=True)
    servers.ours.fail_ids = dict.fromkeys(servers.ours.lengths, "400")
    with pytest.raises(BenchError, match="calibration requests failed: HTTP 400"):
        calibrate_server(servers, source, name="stub", short=True)


def test_levels_end_at_the_engines_limit():
    assert concurrency_levels(32) == [1, 4, 16, 32]
    assert concurrency_levels(16) == [1, 4, 16]
    assert concurrency_levels(1) == [1]


def test_saturated_rate_leaves_the_burst_and_the_tail_out():
    # from 1.5 s to 3 s: three quarters of the first answer's later tokens and the second's first
    rate = saturated_tokens_per_s(np.array([1.0, 3.0]), np.array([3.0, 9.0]), np.array([101, 50]))
    assert rate == pytest.approx(76 / 1.5)
    with pytest.raises(ValueError, match="too short"):
        saturated_tokens_per_s(np.ones(2), np.full(2, 4.0), np.array([9, 9]))
