"""LMDeploy's PyTorch engine on the CPU device gives transformers' tokens; skipped without it."""

import json
import os
import subprocess
from pathlib import Path

import pytest

from lengthwise.scheduler.vllm_adapter.server.tiny import build_tiny_model

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
