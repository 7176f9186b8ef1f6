"""Shared pieces: the tiny model's files, a small predictor, one server for the whole session."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from lengthwise.data.sources.synthetic.corpus import synthetic_table
from lengthwise.data.splits import split_table
from lengthwise.scheduler.vllm_adapter.server.tiny import build_tiny_model

# as the server has it, whose processes run sitecustomize.py from there
sys.path.insert(0, str(Path(__file__).parent / "faults"))
from injected_faults import Faults
from replayed_lengths import REPLAYED

SLO_TABLE = {
    "chat": {"ttft_ms": 3000.0, "tpot_ms": 200.0},
    "code": {"e2e_ms": 60000.0, "weight": 2.0},
    "gated": {},
}
# Only the class of the test of admission is ever turned away.
ADMISSION = {
    "mode": "shed",
    "max_share": 1.0,
    "per_class": {"chat": 0.0, "code": 0.0, "default": 0.0},
    "timeout_ms": 5000.0,
}


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Tests marked `chaos` run only where `-m` names them, whatever else it says."""
    if "chaos" in config.option.markexpr:
        return
    left_out = [item for item in items if item.get_closest_marker("chaos")]
    if left_out:
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if item not in left_out]


@pytest.fixture(scope="session")
def tiny_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_tiny_model(tmp_path_factory.mktemp("cache") / "tiny")


@pytest.fixture(scope="session")
def predictor_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from lengthwise.predictor.fitting.fit import fit_predictor

    parts = split_table(synthetic_table(300, seed=3))
    predictor = fit_predictor(
        parts["train"], parts["calibration"], blocks=("structure", "request"), n_estimators=10
    )
    directory = tmp_path_factory.mktemp("predictor")
    predictor.save(directory)
    return directory


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty workspace of our own, with no tracking server elsewhere."""
    monkeypatch.setenv("LENGTHWISE_HOME", str(tmp_path))
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    return tmp_path


@pytest.fixture
def engine(tiny_dir: Path) -> Callable[..., Any]:
    """Builds engines of vLLM's bookkeeping; shortest first, unless told otherwise."""
    from engineless import FakeEngine

    def build(
        ahead: int = 1, blocks: int = 1000, max_num_seqs: int = 4, **settings: Any
    ) -> FakeEngine:
        defaults = {"policy": "sjf", "plan_share": 1.0, "refit_steps": 0}
        return FakeEngine(
            tiny_dir, defaults | settings, ahead=ahead, blocks=blocks, max_num_seqs=max_num_seqs
        )

    return build


class LiveServer:
    """A running lengthwise server and the files it was given."""

    def __init__(self, url: str, root: Path, faults: Faults) -> None:
        self.url = url
        self.faults = faults
        self.log_dir = root / "log"
        self.replay_table = root / "replay.json"
        self.server_log = root / "server.log"
        self.step_log = root / "steps.jsonl"
        self.live_file = root / "live.json"


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory, predictor_dir: Path) -> Iterator[LiveServer]:
    """A lengthwise server on `tiny` whose KV cache holds fewer tokens than its slots may want."""
    from lengthwise.scheduler.serving.live import live_state, write_live
    from lengthwise.scheduler.serving.settings import AdmissionSettings, ServerSettings
    from lengthwise.scheduler.vllm_adapter.server.launch import launch_server
    from lengthwise.training.bench.engines.servers import free_port

    root = tmp_path_factory.mktemp("server")
    table = root / "replay.json"
    table.write_text(json.dumps(REPLAYED))
    faults = Faults(root / "faults.json")
    settings = ServerSettings(
        predictor_dir=str(predictor_dir),
        predictor_version="test/1",
        slo_table=SLO_TABLE,
        admission=AdmissionSettings.model_validate(ADMISSION),
        request_log=str(root / "log"),
        log_prompts=True,
        replay_table=str(table),
        allow_configure=True,
        step_log=str(root / "steps.jsonl"),
        live_file=str(root / "live.json"),
        live_poll_s=0.2,
    )
    write_live(root / "live.json", live_state(settings))
    with launch_server(
        "tiny",
        settings,
        free_port(),
        # Eager: compiling pays off in a bench, not here. 64 blocks of 32 tokens: a cache of 2,048.
        ["--enforce-eager", "--max-num-seqs", "8", "--block-size", "32",
         "--num-gpu-blocks-override", "64", "--max-model-len", "1536", "--enable-scale-out"],
        log_path=root / "server.log",
        cache_dir=tmp_path_factory.mktemp("cache"),
        env=faults.environment(),
    ) as handle:  # fmt: skip
        handle.wait_ready(480)
        yield LiveServer(handle.url, root, faults)
