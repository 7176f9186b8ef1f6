import json
import shutil
import socket
import sqlite3
import time
from types import SimpleNamespace

import numpy as np
import pytest
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from typer.testing import CliRunner

from lengthwise.scheduler.vllm_adapter import supported
from lengthwise.scheduler.vllm_adapter.server import hooks
from lengthwise.training import console
from lengthwise.training.cli.app import app
from lengthwise.training.doctor import checks as doctor
from lengthwise.training.doctor import places
from lengthwise.training.registry import store
from lengthwise.training.registry.models import register


@pytest.fixture(autouse=True)
def engine(monkeypatch):
    """Stands in for importing vLLM, which its own tests do; set what it finds."""
    monkeypatch.delenv(supported.OVERRIDE_VARIABLE, raising=False)
    found = [hooks.Check("vllm", True, "0.32.0 (supported: >=0.28,<0.34)")]
    monkeypatch.setattr(hooks, "probe", lambda: found)
    return found


def checks(workspace, model="tiny", port=0, log_dir=None):
    found = doctor.run_checks(workspace=workspace, model=model, port=port, log_dir=log_dir)
    for check in found:
        assert bool(check.advice) == (check.status != "ok"), check
    return {c.name: c for c in found}


def test_a_ready_machine_has_nothing_to_mend(workspace, predictor_dir, tmp_path, monkeypatch):
    (tmp_path / "packs").mkdir()
    (tmp_path / "packs" / "gpt35.jsonl.gz").touch()
    monkeypatch.setenv("LENGTHWISE_DATA", str(tmp_path))
    register(predictor_dir, workspace=workspace)
    found = checks(workspace, log_dir=tmp_path / "log")
    assert {c.status for c in found.values()} == {"ok"}, found
    assert {"installation", "numba cache", "metrics dir", "request log", "port"} <= set(found)
    assert "models:/output-length/1, trained on synthetic" in found["predictor"].detail


def test_a_fresh_machine_is_told_what_to_do_but_may_go_on(tmp_path, monkeypatch):
    monkeypatch.delenv("LENGTHWISE_DATA", raising=False)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    found = checks(doctor.Workspace(tmp_path / "new"))
    assert found["tracking store"].advice == "lengthwise train --register"
    assert found["data"].status == "warn"
    assert not doctor.failed(list(found.values()))


def test_a_lost_hook_fails(workspace, engine):
    engine.append(hooks.Check("scheduler hooks", False, "missing: add_request"))
    found = checks(workspace)
    assert found["scheduler hooks"].status == "fail"
    assert ">=0.28,<0.34" in found["scheduler hooks"].advice


def test_a_vllm_outside_the_range_fails_unless_the_operator_says_so(workspace, engine, monkeypatch):
    engine[0] = hooks.Check("vllm", False, "0.40.0 (supported: >=0.28,<0.34)")
    monkeypatch.setattr(supported, "vllm_version", lambda: "0.40.0")
    found = checks(workspace)["vllm"]
    assert found.status == "fail"
    assert "0.40.0 is outside the supported range >=0.28,<0.34" in found.detail
    assert supported.OVERRIDE_VARIABLE in found.advice
    monkeypatch.setenv(supported.OVERRIDE_VARIABLE, "1")
    assert checks(workspace)["vllm"].status == "warn"
    monkeypatch.setattr(supported, "vllm_version", lambda: None)
    assert "pip install" in checks(workspace)["vllm"].advice


def test_a_dead_store_fails(workspace):
    workspace.database.write_text("not a database")
    found = checks(workspace)
    assert found["tracking store"].status == "fail"
    assert found["tracking store"].advice == "move the file away"


def test_a_locked_store_fails_and_one_that_can_be_read_is_a_warning(workspace, monkeypatch):
    monkeypatch.setattr(store, "LOCK_TIMEOUT_S", 0.05)
    other = sqlite3.connect(workspace.database, isolation_level=None)
    other.execute("BEGIN EXCLUSIVE")
    locked = checks(workspace)["tracking store"]
    assert locked.status == "fail"
    assert "locked" in locked.detail
    assert "close the program" in locked.advice
    other.execute("ROLLBACK")
    other.execute("BEGIN IMMEDIATE")
    readable = checks(workspace)["tracking store"]
    assert readable.status == "warn"
    assert "serving works" in readable.detail
    other.close()


def test_a_broken_champion_fails(workspace, predictor_dir, tmp_path):
    broken = tmp_path / "broken"
    shutil.copytree(predictor_dir, broken)
    register(broken, workspace=workspace)
    for card in workspace.root.rglob("card.json"):
        card.write_text("{half")
    found = checks(workspace)["predictor"]
    assert found.status == "fail"
    assert "not JSON" in found.detail
    assert "promote --rollback" in found.advice


def test_a_champion_that_predicts_nonsense_fails(workspace, predictor_dir, monkeypatch):
    from lengthwise.predictor.model import LengthPredictor

    nonsense = SimpleNamespace(quantiles=np.full((1, 12), np.nan))
    monkeypatch.setattr(LengthPredictor, "predict", lambda *args: nonsense)
    register(predictor_dir, workspace=workspace)
    assert "no distribution" in checks(workspace)["predictor"].detail


def test_old_and_missing_packages_are_named(workspace, monkeypatch):
    versions = {"numpy": "1.0", "mlflow": None}
    real = doctor.installed
    monkeypatch.setattr(doctor, "installed", lambda name: versions.get(name, real(name)))
    detail = checks(workspace)["packages"].detail
    assert "numpy 1.0 is not" in detail
    assert "mlflow is missing" in detail


def test_models_and_tokenizers(workspace, tmp_path):
    assert checks(workspace, model=str(tmp_path))["model"].status == "fail"
    (tmp_path / "config.json").write_text('{"architectures": ["LlamaForCausalLM"]}')
    found = checks(workspace, model=str(tmp_path))
    assert (found["model"].status, found["tokenizer"].status) == ("warn", "fail")
    (tmp_path / "model.safetensors").touch()
    (tmp_path / "tokenizer.json").write_text("{}")
    found = checks(workspace, model=str(tmp_path))
    assert (found["model"].status, found["tokenizer"].status) == ("ok", "fail")
    Tokenizer(WordLevel({"?": 0}, unk_token="?")).save(str(tmp_path / "tokenizer.json"))
    assert "1 tokens" in checks(workspace, model=str(tmp_path))["tokenizer"].detail
    assert checks(workspace, model="org/model")["model"].status == "warn"
    assert checks(workspace, model="no such model")["model"].status == "fail"


def test_places_a_server_cannot_write_to(workspace, tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("PROMETHEUS_MULTIPROC_DIR", str(tmp_path / "file" / "metrics"))
    found = checks(workspace, log_dir=tmp_path / "file")
    assert found["metrics dir"].status == found["request log"].status == "fail"
    assert "file: Not a directory" in found["request log"].detail
    monkeypatch.setenv("PROMETHEUS_MULTIPROC_DIR", str(tmp_path))
    (tmp_path / "counter_1.db").touch()
    assert "earlier server" in checks(workspace)["metrics dir"].detail
    monkeypatch.setattr(places, "LOW_BYTES", 1 << 60)
    assert checks(workspace, log_dir=tmp_path)["request log"].status == "warn"


def test_without_a_place_for_compiled_code_each_start_compiles(monkeypatch):
    monkeypatch.setattr(places, "why_not_writable", lambda place: "read-only file system")
    found = places.numba_cache()
    assert found.status == "warn"
    assert "NUMBA_CACHE_DIR" in found.advice


def test_a_taken_port_is_told(workspace):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        found = checks(workspace, port=taken.getsockname()[1])
    assert found["port"].status == "warn"


def test_the_command_exits_by_what_it_found(workspace, engine):
    runner = CliRunner()
    fine = runner.invoke(app, ["doctor", "--json", "--port", "65000"])
    assert fine.exit_code == 0
    assert json.loads(fine.stdout)["ok"] is True
    engine.append(hooks.Check("waiting queue", False, "missing: prepend_request"))
    broken = runner.invoke(app, ["doctor"])
    assert broken.exit_code == 1
    assert "fail waiting queue" in broken.stdout


def test_it_says_what_it_looks_at_before_it_looks(workspace, monkeypatch, tmp_path):
    told = []

    class Told:
        def step(self, description, total=None):
            told.append(description)

        def advance(self, amount=1):
            raise AssertionError("nothing is counted")

    for name in ("_installation", "_vllm", "_lmdeploy", "_workspace", "_tracking", "_model"):
        genuine = getattr(doctor, name)

        def looked(*args, name=name, genuine=genuine):
            told.append(name)
            return genuine(*args)

        monkeypatch.setattr(doctor, name, looked)
    doctor.run_checks(
        workspace=workspace, model="tiny", port=0, log_dir=tmp_path / "log", steps=Told()
    )
    named = [what for what in told if what.startswith("_")]
    assert len(named) == 6
    assert all(told[told.index(what) - 1].startswith("looking at ") for what in named)
    assert len(told) - len(named) == 11


def test_where_nobody_sees_bars_a_slow_look_is_told_in_a_line(workspace, monkeypatch):
    monkeypatch.setattr(console, "TOLD_EVERY_S", 0.01)
    monkeypatch.setattr(hooks, "probe", lambda: time.sleep(0.2) or [hooks.Check("vllm", True, "")])
    done = CliRunner().invoke(app, ["doctor", "--port", "65000"])
    assert any("looking at vLLM" in line for line in done.stderr.splitlines())
    assert "looking at" not in done.stdout
