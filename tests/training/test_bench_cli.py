"""The commands: one document on stdout, one line for bad input."""

from __future__ import annotations

import json

import pytest
from typer.testing import CliRunner

from lengthwise.data.slo import Slo
from lengthwise.data.workload import WorkloadRequest, write_workload
from lengthwise.training.bench.results.report import REPORT_FILE
from lengthwise.training.bench.results.result import BenchResult
from lengthwise.training.cli.app import app


@pytest.fixture
def invoke(workspace):
    return lambda *args: CliRunner().invoke(app, [str(a) for a in args])


@pytest.fixture
def workload_file(tmp_path):
    slo = Slo(e2e_s=5.0, slo_class="code")
    requests = [WorkloadRequest(0.05 * i, 20, 30 + i % 50, slo) for i in range(60)]
    write_workload(tmp_path / "w.jsonl", requests)
    return tmp_path / "w.jsonl"


def test_simulate_prints_one_document_and_nothing_else(invoke, workload_file):
    done = invoke(
        "simulate", "--workload", workload_file, "--policy", "fcfs,edf:oracle", "--lengths", "none",
        "--json",
    )  # fmt: skip
    assert done.exit_code == 0, done.output
    assert len(done.stdout.splitlines()) == 1
    document = BenchResult.model_validate_json(done.stdout)
    assert [arm.label for arm in document.arms] == ["fcfs:none", "edf:oracle"]
    # without --load a file keeps its own pace
    assert document.load is None
    assert max(arm.attainment for arm in document.arms) <= document.bound <= 1


def test_simulate_ends_with_the_document_after_the_table(invoke, workload_file, tmp_path):
    done = invoke(
        "simulate", "--workload", workload_file, "--load", 2, "--output", tmp_path / "out"
    )
    assert done.exit_code == 0, done.output
    lines = done.stdout.splitlines()
    assert json.loads(lines[-1])["load"] == 2
    assert "modeled, no engine ran" in done.stdout
    bound = json.loads(lines[-1])["bound"]
    assert [f"{100 * bound:.1f}"] == [
        row.split()[1] for row in lines if row.split()[:1] == ["bound"]
    ]
    without = invoke("simulate", "--workload", workload_file, "--no-bound", "--json")
    assert json.loads(without.stdout)["bound"] is None
    page = tmp_path / "out" / REPORT_FILE
    first = page.read_text(encoding="utf-8")
    page.unlink()
    again = invoke("report", tmp_path / "out")
    assert again.exit_code == 0
    assert page.read_text(encoding="utf-8") == first


def test_a_request_log_becomes_a_workload_that_is_played(invoke, tmp_path):
    rows = [
        {"request_id": f"r{i}", "status": "finished", "arrival_unix_s": 1e9 + i,
         "slo_class": "chat", "slo_e2e_ms": 9000.0, "prompt_tokens": 5, "output_tokens": 20}
        for i in range(30)
    ]  # fmt: skip
    rows += [rows[0] | {"status": "aborted"}, rows[1] | {"prompt_tokens": 0}]
    (tmp_path / "log").mkdir()
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    (tmp_path / "log" / "requests-1.jsonl").write_text(lines)
    made = tmp_path / "w.jsonl"
    done = invoke("data", "workload", tmp_path / "log", "--output", made)
    assert done.exit_code == 0, done.output
    first, *others = done.stdout.splitlines()
    assert first == f"30 requests in 29.0 s -> {made}"
    assert len(others) == 2
    assert all(line.startswith("Skipped 1 row: ") for line in others)
    document = json.loads(
        invoke(
            "data", "workload", tmp_path / "log", "--output", made, "--limit", 9, "--json"
        ).stdout
    )
    assert (document["requests"], document["span_s"]) == (9, 8.0)
    played = invoke("simulate", "--workload", made, "--lengths", "oracle", "--no-bound", "--json")
    assert [arm["requests"] for arm in json.loads(played.stdout)["arms"]] == [9, 9, 9]


def test_simulate_takes_processes_and_a_plan_budget(invoke, workload_file):
    args = ["simulate", "--workload", workload_file, "--policy", "fcfs,sa", "--lengths", "oracle"]
    one, two = (invoke(*args, "--jobs", n, "--no-bound", "--json") for n in (1, 2))
    figures = [json.loads(done.stdout)["arms"] for done in (one, two)]
    assert [a["attainment"] for a in figures[0]] == [a["attainment"] for a in figures[1]]
    assert [a["mean_e2e_s"] for a in figures[0]] == [a["mean_e2e_s"] for a in figures[1]]
    timed = invoke(*args, "--plan-budget-ms", 2, "--no-bound", "--json")
    assert json.loads(timed.stdout)["run"]["plan_budget_ms"] == 2
    assert json.loads(one.stdout)["run"]["plan_budget_ms"] is None


def test_report_of_several_runs_compares_request_by_request(invoke, workload_file, tmp_path):
    runs = [tmp_path / "one", tmp_path / "two"]
    for run, load in zip(runs, (3, 5), strict=True):
        args = ["--policy", "fcfs,edf:oracle,sjf:oracle", "--load", load, "--output", run]
        assert invoke("simulate", "--workload", workload_file, *args, "--no-bound").exit_code == 0
    done = invoke("report", *runs, "--arm", "sjf:oracle")
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["arm"] == "sjf:oracle"
    assert [(d["run"], d["other"], d["requests"]) for d in found["differences"]] == [
        ("one", "fcfs:class", 60), ("one", "edf:oracle", 60),
        ("two", "fcfs:class", 60), ("two", "edf:oracle", 60),
        ("all together", "fcfs:class", 120), ("all together", "edf:oracle", 120),
    ]  # fmt: skip
    points = [d["points"] for d in found["differences"] if d["other"] == "fcfs:class"]
    assert points[2] == pytest.approx((points[0] + points[1]) / 2)
    documents = [json.loads((run / "result.json").read_text()) for run in runs]
    attained = {arm["policy"]: arm["attainment"] for arm in documents[0]["arms"]}
    assert points[0] == pytest.approx(100 * (attained["sjf"] - attained["fcfs"]))
    unknown = invoke("report", *runs, "--arm", "llf:none")
    assert (unknown.exit_code, unknown.stdout) == (2, "")
    assert "one has no arm 'llf:none': it has fcfs:class, edf:oracle, sjf:oracle" in unknown.stderr


BAD = {
    "unknown workload 'nope'": ["simulate", "--workload", "nope"],
    "unknown policy 'nope': must be one of fcfs": ["simulate", "--policy", "nope"],
    "unknown lengths 'nope'": ["simulate", "--lengths", "nope"],
    "no profile 'nope'": ["simulate", "--profile", "nope"],
    "load must be above 0, got 0": ["simulate", "--load", "0", "--source", "synthetic"],
    "load must be above 0, got -2": ["bench", "--load", "-2", "--source", "synthetic"],
    "requests must be above 0, got 0": ["bench", "--requests", "0", "--source", "synthetic"],
    "repeats must be above 0, got 0": ["bench", "--repeats", "0", "--source", "synthetic"],
    "unknown policy 'x'": ["bench", "--arms", "x:learned"],
    "--router gain: goes with --warp": ["bench", "--router", "gain"],
    "unknown router 'nope'": [
        "bench",
        "--emulate",
        "tiny-cpu",
        "--warp",
        "--instances",
        "2",
        "--router",
        "nope",
    ],
    "unknown arrivals 'x'": ["bench", "--arrivals", "x"],
    "predictor 'nope' is neither": ["bench", "--predictor", "nope", "--source", "synthetic"],
    "unexpected argument 'stray'": ["bench", "stray"],
    "calibrate takes a real engine's times": ["calibrate", "--emulate", "tiny-cpu"],
    "and no --emulate": ["calibrate", "--emulate=tiny-cpu"],
    "minutes must be above 0": ["demo", "--minutes", "0"],
    "cannot read": ["report", "nowhere"],
}


@pytest.mark.parametrize("says", BAD)
def test_bad_input_is_one_line_and_exit_2(invoke, says):
    done = invoke(*BAD[says])
    assert done.exit_code == 2
    assert says in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert done.stdout == ""


def test_an_unsorted_workload_names_the_line(invoke, tmp_path):
    path = tmp_path / "unsorted.jsonl"
    rows = [{"arrival_s": at, "prompt_tokens": 5, "output_tokens": 5} for at in (1.0, 0.5)]
    path.write_text("\n".join(json.dumps(r) for r in rows))
    for command in ("simulate", "bench"):
        done = invoke(command, "--workload", path)
        assert done.exit_code == 2
        assert "unsorted.jsonl:2: arrival_s must not decrease" in done.stderr
