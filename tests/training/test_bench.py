"""A bench against two stub servers: arms, order, records, document."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import time
from dataclasses import replace

import numpy as np
import pytest
from bench_stub import Stub, running

from lengthwise.data.errors import InputError
from lengthwise.data.slo import Slo
from lengthwise.data.workload import WorkloadRequest, write_workload
from lengthwise.training.bench import session
from lengthwise.training.bench.comparison.arms import Arm, arm_order, parse_arms
from lengthwise.training.bench.comparison.bench_settings import BenchSettings
from lengthwise.training.bench.comparison.compare import compare
from lengthwise.training.bench.comparison.workload_source import open_workload
from lengthwise.training.bench.engines.client import BenchError
from lengthwise.training.bench.engines.servers import (
    BenchServers,
    ReplayIds,
    filler_ids,
    leaving_on_sigterm,
)
from lengthwise.training.bench.results.result import BenchResult
from lengthwise.training.bench.runners.engine_runner import EngineRunner

N = 24


@pytest.fixture
def source(tmp_path):
    slos = (Slo(e2e_s=1.0, slo_class="code"), Slo(ttft_s=1.0, slo_class="chat"))
    requests = [WorkloadRequest(i / 200, 9, 2 + i % 3, slos[i % 2]) for i in range(N)]
    path = tmp_path / "w.jsonl"
    write_workload(path, requests)
    return open_workload(str(path))


@pytest.fixture
def replay_table():
    return ReplayIds.random(64, seed=1)


@pytest.fixture
def servers(replay_table):
    lengths = {int(i): row + 1 for row, ids in enumerate(replay_table.ids) for i in ids}
    with (
        running(Stub(ttft_s=0.02, itl_s=0.002, lengths=lengths)) as ours,
        running(Stub(ttft_s=0.02, itl_s=0.002, lengths=lengths, slots=1)) as stock,
    ):
        yield BenchServers(ours, stock, "stub", 64, replay_table, ("--max-num-seqs", "1"))


def bench(servers, source, arms="sa:none,sa:oracle", **kwargs):
    settings = BenchSettings(parse_arms(arms), **({"load": None, "repeats": 2} | kwargs))
    return compare(source, settings, EngineRunner(servers), capacity_rps=10.0)


def test_a_runner_that_plays_two_workloads_records_what_was_predicted_of_each(
    servers, source, monkeypatch
):
    runner = EngineRunner(servers)
    monkeypatch.setattr(
        "lengthwise.training.bench.runners.engine_runner.predicted_tokens",
        lambda requests, predictor: np.array([r.output_tokens + 0.5 for r in requests]),
    )
    settings = BenchSettings(parse_arms("sa:learned"), load=None, repeats=1, seed=0)
    longer = replace(
        source,
        requests=tuple(replace(r, output_tokens=r.output_tokens + 1) for r in source.requests),
    )
    for played in (source, longer):
        ours = compare(played, settings, runner, capacity_rps=10.0).records["sa:learned"]
        assert len(ours) == N
        assert [r.predicted_tokens for r in ours] == [r.target_tokens + 0.5 for r in ours]


def test_an_arms_parameters_are_the_servers_while_it_is_loaded(servers, source):
    order = Arm("sa", "none", "order", (("parts", ("order",)),))
    settings = BenchSettings((order, Arm("sa", "none")), load=None, repeats=1)
    outcome = compare(source, settings, EngineRunner(servers), capacity_rps=10.0)
    told = [body["policy_params"] for body in servers.ours.configured]
    assert told == [{"parts": ["order"]}, None]
    assert [arm.label for arm in outcome.result.arms] == ["stock", "order", "sa:none"]


def test_a_bench_ends_in_a_valid_document_and_switches_only_our_server(servers, source):
    outcome = bench(servers, source)
    document = BenchResult.model_validate_json(outcome.result.to_line())
    assert document.provenance == "measured"
    assert [arm.label for arm in document.arms] == ["stock", "sa:none", "sa:oracle"]
    assert {(arm.requests, arm.lost) for arm in document.arms} == {(2 * N, 0)}
    assert {d["length_mismatches"] for d in document.diagnostics.values()} == {0}
    assert document.arms[0].plan_ms_p99 is None
    assert document.arms[1].plan_ms_p99 == pytest.approx(0.9)
    # stock has one slot and answers of 25 ms: the last of 24 waits for the others
    assert document.arms[0].mean_ttft_s > 1.5 * document.arms[1].mean_ttft_s
    assert document.run["vllm_args"] == "--max-num-seqs 1"
    assert document.engine.startswith("vllm")
    assert len(outcome.records["stock"]) == 2 * N
    switched = [(c["policy"], c["lengths"]) for c in servers.ours.configured]
    # repeat 1: stock, none, oracle; repeat 2, rotated: none, oracle, stock
    assert switched == [("sa", "none"), ("sa", "oracle")] * 2
    assert all(c["reset_stats"] for c in servers.ours.configured)
    assert servers.stock.configured == []


def test_only_the_oracle_arm_is_told_lengths_and_caches_do_not_carry_over(servers, source):
    bench(servers, source, repeats=1)
    sent = [b for b in servers.ours.bodies if b["cache_salt"] != "warm-up"]
    told = {b["cache_salt"] for b in sent if "osl" in b["vllm_xargs"]}
    assert told == {"sa:oracle-0"}
    assert {b["cache_salt"] for b in sent} == {"sa:oracle-0", "sa:none-0"}
    stock = [b for b in servers.stock.bodies if b["cache_salt"] != "warm-up"]
    assert not any("osl" in b["vllm_xargs"] for b in stock)
    assert {b["max_tokens"] for b in sent + stock} == {64}

    def without_salt(body: dict) -> str:
        return json.dumps({k: v for k, v in body.items() if k != "cache_salt"})

    ours = sorted(without_salt(b) for b in sent if b["cache_salt"] == "sa:none-0")
    assert ours == sorted(without_salt(b) for b in stock)


def test_failed_requests_are_lost_and_wrong_lengths_counted(servers, source, replay_table):
    first = replay_table.id_of(source.requests[0].output_tokens, 0)
    second = replay_table.id_of(source.requests[1].output_tokens, 1)
    servers.ours.fail_ids[first] = "400"
    servers.ours.lengths[second] = 9
    outcome = bench(servers, source, arms="sa:none", repeats=1)
    ids = [replay_table.id_of(r.output_tokens, i) for i, r in enumerate(source.requests)]
    same_id = ids.count(first)
    arm = outcome.result.arms[1]
    assert arm.lost == same_id >= 1
    assert arm.attainment <= 1 - same_id / N
    assert outcome.result.diagnostics["sa:none"]["length_mismatches"] >= 1
    assert "HTTP 400" in outcome.result.diagnostics["sa:none"]["first_error"]


def test_a_server_that_refuses_an_arm_stops_the_bench(servers, source):
    servers.ours.refuse = "fcfs"
    with pytest.raises(BenchError, match="not now"):
        bench(servers, source, arms="fcfs:none")


def test_order_of_arms_rotates():
    arms = parse_arms("sa:learned,sjf:class,fcfs:none")
    firsts = [arm_order(arms, k)[0].policy for k in range(4)]
    assert firsts == ["sa", "sjf", "fcfs", "sa"]
    assert set(arm_order(arms, 1)) == set(arms)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("magic:learned", "unknown policy 'magic': must be one of fcfs"),
        ("sa:magic", "unknown lengths 'magic'"),
        ("sa", "unknown lengths ''"),
        ("stock", "unknown policy 'stock'"),
        (" , ", "no arm"),
        ("sa:none,sa:none", "twice"),
    ],
)
def test_arms_are_checked(text, says):
    with pytest.raises(InputError, match=says):
        parse_arms(text)


def test_arms_may_take_their_lengths_from_a_default():
    assert parse_arms("sa,edf:none", default_lengths="class") == (
        Arm("sa", "class"),
        Arm("edf", "none"),
    )


@pytest.mark.parametrize(
    "bad",
    [{"load": 0.0}, {"load": -1.5}, {"load": float("nan")}, {"requests": 0}, {"repeats": 0}],
)
def test_settings_are_checked(bad):
    with pytest.raises(InputError, match=f"{next(iter(bad))} must be above 0"):
        BenchSettings(parse_arms("sa:none"), **bad)


def test_the_number_of_requests_follows_load_and_duration(source):
    arena = open_workload("paper", source="synthetic")
    settings = BenchSettings(parse_arms("sa:none"), load=1.5, duration_s=30.0)
    assert settings.count(arena, 8.0) == 360
    assert settings.times(arena) == 3
    assert settings.count(source, 8.0) == N  # no more than the file has
    assert settings.count(source, 0.2) == 9
    whole = BenchSettings(parse_arms("sa:none"), load=1.5)
    assert (whole.count(source, 0.01), whole.times(source)) == (N, 1)


def test_an_emulated_device_says_so(servers, source):
    settings = BenchSettings(parse_arms("sa:none"))
    outcome = compare(source, settings, EngineRunner(servers, provenance="emulated"))
    assert json.loads(outcome.result.to_line())["provenance"] == "emulated"


def test_replay_ids_tell_nothing_and_every_length_has_its_own(replay_table, tmp_path):
    table = json.loads(replay_table.write(tmp_path / "t.json").read_text())
    assert len(table) == replay_table.ids.size
    for length in (1, 17, 64):
        ids = {replay_table.id_of(length, turn) for turn in range(9)}
        assert {table[str(i)] for i in ids} == {length}
    lengths = np.array([table[str(i)] for i in range(len(table))])
    assert abs(np.corrcoef(np.arange(len(lengths)), lengths)[0, 1]) < 0.2
    with pytest.raises(InputError, match="output_tokens 65 is above 64"):
        replay_table.id_of(65, 0)


def test_filler_prompts_have_the_length_asked_and_differ():
    assert len(filler_ids(31, 1)) == 31
    assert filler_ids(31, 1) == filler_ids(31, 1) != filler_ids(31, 2)


def test_a_terminated_bench_leaves_its_context_managers():
    left = []

    def bench() -> None:
        with leaving_on_sigterm():
            try:
                os.kill(os.getpid(), signal.SIGTERM)
                time.sleep(5)
            finally:
                left.append("servers")

    with pytest.raises(SystemExit) as stopped:
        bench()
    assert stopped.value.code == 143
    assert left == ["servers"]
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


def test_a_measurement_from_settings_to_report_and_load_1_is_one_thing(
    servers, source, workspace, tmp_path, monkeypatch
):
    """The whole of `bench` but for real servers; `simulate` offers the same at the same load."""
    told = {}

    @contextlib.contextmanager
    def start(model, **kwargs):
        told.update(kwargs)
        yield servers

    monkeypatch.setattr(session, "start_servers", start)
    settings = BenchSettings(
        parse_arms("sa:none"),
        workload=str(tmp_path / "w.jsonl"),
        load=2.0,
        profile="tiny-cpu",
        max_wait_s=9.0,
        vllm_args=("--max-num-seqs", "1"),
    )
    said = []
    done = session.measure(settings, workspace=workspace, say=said.append)
    assert (told["max_wait_s"], told["vllm_args"]) == (9.0, ("--max-num-seqs", "1"))
    assert "plan_budget_ms" not in told  # the server's own
    result = done.outcome.result
    assert [(arm.label, arm.requests) for arm in result.arms] == [("stock", N), ("sa:none", N)]
    assert done.page.read_text().startswith("<!doctype html>")
    assert said[0].startswith("both servers are up")
    assert any("repeat 1/1" in line for line in said)

    modeled = session.run_modeled(settings, workspace=workspace, with_bound=False).result
    assert modeled.run["capacity_rps"] == result.run["capacity_rps"]
    assert modeled.run["offered_rps"] == pytest.approx(result.run["offered_rps"])
    assert modeled.run["offered_rps"] == pytest.approx(2 * modeled.run["capacity_rps"])
    assert (modeled.provenance, modeled.arms[0].max_wait_s is None) == ("modeled", False)
