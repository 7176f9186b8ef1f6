"""What an emulated bench says of itself, and a warped one from workload file to document."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from lengthwise.data.errors import InputError
from lengthwise.data.slo import Slo
from lengthwise.data.workload import WorkloadRequest, write_workload
from lengthwise.scheduler.profile import load_profile
from lengthwise.scheduler.simulator.capacity import requests_needed
from lengthwise.scheduler.vllm_adapter.emulated.emulated_steps import (
    EmulatedStepLog,
    StepRow,
    StepSummary,
)
from lengthwise.scheduler.vllm_adapter.emulated.player_process import PlayerProcess
from lengthwise.scheduler.vllm_adapter.server.tiny import build_tiny_model
from lengthwise.training.bench.comparison.arms import parse_arms
from lengthwise.training.bench.comparison.bench_settings import BenchSettings
from lengthwise.training.bench.comparison.compare import compare
from lengthwise.training.bench.comparison.workload_source import open_workload
from lengthwise.training.bench.engines.emulated_servers import StepReader
from lengthwise.training.bench.results.emulation import (
    caution,
    emulation_of,
    profile_sha256,
    stream_interval,
    throughput_warning,
)
from lengthwise.training.bench.results.report import read_run, warnings, write_run
from lengthwise.training.bench.results.result import BenchResult
from lengthwise.training.bench.runners.fleet_runner import routed
from lengthwise.training.bench.runners.simulator_runner import lengths_of
from lengthwise.training.bench.runners.warped_runner import WarpedRunner, WarpSettings
from lengthwise.training.bench.session import tell_throughput
from lengthwise.training.bench.warped_session import measure_warped
from lengthwise.training.workspace import Workspace

DEVICE = "shape-few-slots"


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("cache")
    build_tiny_model(folder / "tiny")
    return folder


def requests_of(n: int, seed: int = 0) -> list[WorkloadRequest]:
    rng = np.random.default_rng(seed)
    return [
        WorkloadRequest(
            arrival_s=0.005 * i,
            prompt_tokens=int(rng.integers(20, 900)),
            output_tokens=int(rng.integers(1, 300)),
            slo=Slo(ttft_s=1.5, tpot_s=0.05, slo_class="chat") if i % 2 else Slo(e2e_s=4.0),
            prefix="system" if i % 3 == 0 else None,
            prefix_tokens=20 if i % 3 == 0 else None,
        )
        for i in range(n)
    ]


# -- what a run says of itself ---------------------------------------------------------------------


def test_the_worst_ratio_decides_and_an_invalid_run_says_so():
    profile = load_profile(DEVICE)
    good = StepSummary(900, 1, 1.001, 0.01)
    facts = emulation_of(profile, [good, StepSummary(100, 5, 1.019, 0.11)], load_average=3.0)
    assert (facts.steps, facts.late_steps, facts.step_ratio) == (1000, 6, 1.019)
    assert facts.over_5_percent == pytest.approx(0.02)
    assert facts.valid
    assert caution(facts) is None
    bad = emulation_of(profile, [good, StepSummary(9, 5, 1.021, 0.4)], load_average=8.6)
    assert not bad.valid
    assert "INVALID: steps took 1.021 times" in (caution(bad) or "")
    assert "load average 8.6" in (caution(bad) or "")


def test_the_hash_follows_the_profile():
    profile = load_profile(DEVICE)
    other = replace(profile, capacity=replace(profile.capacity, kv_tokens=1 << 16))
    assert profile_sha256(profile) == profile_sha256(load_profile(DEVICE))
    assert profile_sha256(profile) != profile_sha256(other)


@pytest.mark.parametrize(
    ("tokens_per_s", "args", "cores", "warns"),
    [
        (6_000, [], 2, False),
        (11_000, [], 2, True),
        (11_000, ["--stream-interval", "16"], 2, False),
        (11_000, ["--stream-interval=4"], 2, True),
        (20_000, ["--stream-interval=16"], 2, True),
        # two cores are the bound of all processes, one that of the API process
        (14_000, ["--stream-interval=16"], 1, True),
        (14_000, ["--stream-interval=16"], 4, False),
    ],
)
def test_too_many_tokens_for_this_machine_are_told_before(tokens_per_s, args, cores, warns):
    warning = throughput_warning(tokens_per_s, args, cores)
    assert (warning is not None) == warns
    if warning is not None:
        assert f"{tokens_per_s:,} tokens/s" in warning
        assert "--warp" in warning


def test_a_bench_says_before_a_start_what_the_device_makes(source):
    told: list[str] = []
    device = load_profile("shape-many-slots")
    tell_throughput(BenchSettings(parse_arms("fcfs:none")), source, device, 12.0, told.append)
    tokens = np.mean([request.output_tokens for request in source.sample(requests_needed(device))])
    assert f"12.00 requests/s, about {12 * tokens:,.0f} tokens/s, on {device.name}" in told[0]


def test_the_stream_interval_that_vllm_is_told():
    assert stream_interval([]) == 1
    assert stream_interval(["--stream-interval", "16", "--stream-interval=2"]) == 2
    assert stream_interval(["--stream-interval"]) == 1


# -- real servers on the device --------------------------------------------------------------------


def test_a_step_log_is_followed_run_by_run(tmp_path):
    reader = StepReader(tmp_path / "steps.jsonl")
    assert reader.new() == []
    log = EmulatedStepLog(tmp_path / "steps.jsonl")
    rows = [StepRow(float(i), 0.01, 0.01, 0, 1, 9, False) for i in range(3)]
    log.write(rows[0])
    assert reader.new() == rows[:1]
    log.write(rows[1])
    log.write(rows[2])
    assert reader.new() == rows[1:]
    assert reader.new() == []
    log.close()


# -- warped time -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def player() -> Iterator[PlayerProcess]:
    with PlayerProcess() as process:
        yield process


@pytest.fixture
def runner(player, cache):
    return make_runner(player, cache, DEVICE)


def make_runner(player, cache, device, **settings):
    return WarpedRunner(
        [player], device, load_profile(device), cache / "tiny", lengths_of(None),
        WarpSettings(**settings),
    )  # fmt: skip


@pytest.fixture
def source(tmp_path):
    write_workload(tmp_path / "w.jsonl", requests_of(90))
    return open_workload(str(tmp_path / "w.jsonl"))


def played(runner, source, **settings):
    settings = {"arms": parse_arms("fcfs:none,sa:oracle"), "workload": source.name} | settings
    outcome = compare(source, BenchSettings(**settings), runner, capacity_rps=4.0)
    return runner.judged(outcome)


def test_a_warped_bench_is_the_document_of_a_bench(runner, source, tmp_path):
    outcome = played(runner, source)
    result = outcome.result
    assert result.provenance == "emulated, warped"
    assert [arm.label for arm in result.arms] == ["stock", "fcfs:none", "sa:oracle"]
    assert all(arm.requests == 90 and arm.lost == 0 for arm in result.arms)
    assert all(d["length_mismatches"] == 0 for d in result.diagnostics.values())
    assert result.emulation is not None
    assert result.emulation.profile == DEVICE
    assert result.emulation.steps > 0
    stock, ours = result.arms[0], result.arms[2]
    assert stock.plan_ms_p99 is None
    assert ours.plan_ms_p99 is not None
    assert ours.plan_ms_p99 > 0
    # the records are the document's, and the page and files read back
    met = np.mean([r.met for r in outcome.records["sa:oracle"]])
    assert ours.attainment == pytest.approx(float(met))
    write_run(tmp_path / "run", result, outcome.records, outcome.queue)
    again, records, _ = read_run(tmp_path / "run")
    assert again == result
    assert len(records["stock"]) == 90
    assert "emulated in warped time" in (tmp_path / "run" / "report.html").read_text()
    assert BenchResult.model_validate_json(result.to_line()) == result


def test_draws_and_load_come_from_the_settings(runner, source):
    outcome = played(runner, source, load=0.5, repeats=2, arms=parse_arms("edf:oracle"))
    assert outcome.result.arms[0].requests == 180
    # a file's requests keep their pattern: 90 at 2 a second
    arrivals = [r.arrival_s for r in outcome.records["stock"] if r.repeat == 0]
    assert max(arrivals) == pytest.approx(89 / 2.0)


def test_routers_are_arms_and_stock_stands_behind_the_route(player, cache, source, tmp_path):
    routers = ("power-of-two", "gain")
    profiles = [load_profile(DEVICE), load_profile("tiny-cpu")]
    settings = WarpSettings(instances=3, route="prefix", routers=routers)
    device = f"{DEVICE}, tiny-cpu"
    runner = WarpedRunner(
        [player], device, profiles[0], cache / "tiny", lengths_of(None), settings
    )  # fmt: skip
    outcome = played(runner, source, arms=routed(parse_arms("feasible-edf:oracle"), routers))
    result = outcome.result
    assert [arm.label for arm in result.arms] == [
        "prefix/stock",
        "power-of-two/feasible-edf:oracle",
        "gain/feasible-edf:oracle",
    ]
    assert all((arm.requests, arm.lost) == (90, 0) for arm in result.arms)
    assert result.run["profile"] == device
    assert result.emulation is not None
    assert (result.emulation.profile, result.emulation.instances) == (device, 3)
    told = result.diagnostics["gain/feasible-edf:oracle"]["router"]
    assert (told["router"], told["unknown_rows"], told["errors"]) == ("gain", 0, 0)
    assert len(told["instances"]) == 3
    write_run(tmp_path / "run", result, outcome.records, outcome.queue)
    assert read_run(tmp_path / "run")[0] == result


def test_a_host_too_slow_for_its_steps_is_told(player, cache, source, tmp_path):
    fast = json.loads(load_profile(DEVICE).to_json())
    fast["step_time"] |= {"base_s": 1e-5, "decode_seq_s": 1e-7, "prefill_token_s": 1e-8,
                          "prefill_step_s": 0.0}  # fmt: skip
    path = tmp_path / "fast.json"
    path.write_text(json.dumps(fast))
    result = played(make_runner(player, cache, str(path)), source).result
    assert result.emulation is not None
    assert not result.emulation.valid
    assert any("INVALID" in text for text in warnings(result))


def test_what_the_engine_cannot_hold_is_refused_before_it_starts(runner):
    tokens = load_profile(DEVICE).capacity.kv_tokens
    request = WorkloadRequest(0.0, tokens, 10, Slo())
    with pytest.raises(InputError, match=f"a request of {tokens + 10} tokens does not fit"):
        runner.run(parse_arms("fcfs:none")[0], [request], 0)
    longer = WorkloadRequest(0.0, 32_000, 1_000, Slo())
    with pytest.raises(InputError, match="request 0 has 32000 prompt and 1000 output tokens"):
        runner.run(parse_arms("fcfs:none")[0], [longer], 0)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"instances": 0}, "instances must be above 0"),
        ({"max_wait_s": float("inf")}, "max_wait_s must be above 0"),
        ({"search_steps": -1}, "search_steps must not be negative"),
        ({"route": "random"}, "route must be one of least-outstanding, round-robin"),
        ({"host_factor": 101.0}, "host_factor must lie from 0 to 100"),
    ],
)
def test_senseless_settings_are_refused(values, words):
    with pytest.raises(InputError, match=words):
        WarpSettings(**values)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"emulate": None}, "needs an emulated device"),
        ({"model": "other"}, "has the model 'tiny' only"),
        ({"vllm_args": ("--seed", "1")}, "no server starts in warped time"),
        ({"emulate": "nowhere"}, "no profile 'nowhere'"),
        ({"profile": "nowhere"}, "no profile 'nowhere'"),
        ({"emulate": f"{DEVICE},tiny-cpu"}, "2 profiles need as many --instances, got 1"),
    ],
)
def test_a_session_refuses_what_warped_time_has_not(tmp_path, values, words):
    write_workload(tmp_path / "w.jsonl", requests_of(3))
    given = {
        "workload": str(tmp_path / "w.jsonl"),
        "arms": parse_arms("fcfs:none"),
        "emulate": DEVICE,
    }
    settings = BenchSettings(**(given | values))
    with pytest.raises(InputError, match=words):
        measure_warped(settings, WarpSettings(), workspace=Workspace(tmp_path))
