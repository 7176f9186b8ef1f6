"""LMDeploy's PyTorch engine on the CPU device gives transformers' tokens; skipped without it."""

import json
import os
import subprocess
from pathlib import Path

import pytest
from typer.testing import CliRunner

from lengthwise.data.slo import Slo
from lengthwise.data.workload import WorkloadRequest, write_workload
from lengthwise.scheduler.lmdeploy_adapter.lmdeploy_environment import VARIABLE
from lengthwise.scheduler.vllm_adapter.server.tiny import build_tiny_model
from lengthwise.training.bench.results.result import BenchResult
from lengthwise.training.cli.app import app

pytestmark = pytest.mark.lmdeploy
ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="session")
def tiny(tmp_path_factory):
    return build_tiny_model(tmp_path_factory.mktemp("tiny") / "tiny")


@pytest.mark.parametrize("case", ["batch", "chunks", "prefix", "memory"])
def test_greedy_tokens_are_those_of_transformers(lmdeploy_python, tiny, case):
    """One engine a process: LMDeploy's leaves its traces behind."""
    script = Path(__file__).with_name("cpu_generate.py")
    done = subprocess.run(
        [str(lmdeploy_python), str(script), str(tiny), case], capture_output=True, text=True,
        env=os.environ | {"PYTHONPATH": str(ROOT / "src"), "OMP_NUM_THREADS": "1"},
        timeout=500, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(done.stdout.strip().splitlines()[-1])
    assert found["got"] == found["expected"]
    assert (found["preempted"] > 0) == (case == "memory")
    assert (found["hit_rate"] > 0) == (case == "prefix")


def test_whoever_leaves_the_pool_takes_no_handle_along(lmdeploy_python):
    script = Path(__file__).with_name("pool_turns.py")
    done = subprocess.run(
        [str(lmdeploy_python), str(script)], capture_output=True, text=True,
        env=os.environ | {"PYTHONPATH": str(ROOT / "src")}, timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(done.stdout.strip().splitlines()[-1])
    assert found["cancelled_as_a_handle_comes"] == {
        "served": True, "left": True, "free": 1, "running": [], "waiting": [],
    }  # fmt: skip
    assert found["cancelled_with_a_handle"] == {"served": True, "free": 0, "running": ["c"]}
    assert found["woken"] == {
        "served": ["a", "b"], "then": ["a", "b", "c"], "free": 1, "dispatched": 0,
    }  # fmt: skip


def test_its_server_serves_both_orders_with_exact_lengths(lmdeploy_python, tmp_path, monkeypatch):
    """Over HTTP: its own pool and ours on the same requests."""
    monkeypatch.setenv("LENGTHWISE_HOME", str(tmp_path))
    monkeypatch.setenv(VARIABLE, str(lmdeploy_python.parents[1]))
    file = tmp_path / "short.jsonl"
    slo = Slo(e2e_s=5.0, slo_class="code")
    lengths = [3 + 7 * (i % 9) for i in range(40)]
    write_workload(
        file,
        [
            WorkloadRequest(0.02 * i, 4, n, slo, prompt=f"count to {n}")
            for i, n in enumerate(lengths)
        ],
    )
    asked = ["bench", "--engine", "lmdeploy", "--workload", str(file), "--arms", "sjf:oracle"]
    done = CliRunner().invoke(app, [*asked, "--capacity-rps", "5", "--json"])
    assert done.exit_code == 0, done.output
    document = BenchResult.model_validate_json(done.stdout.strip().splitlines()[-1])
    assert [arm.label for arm in document.arms] == ["stock", "sjf:oracle"]
    assert all((arm.requests, arm.lost) == (40, 0) for arm in document.arms)
    assert all(found["length_mismatches"] == 0 for found in document.diagnostics.values())
    assert document.engine.startswith("lmdeploy 0.18.0")
