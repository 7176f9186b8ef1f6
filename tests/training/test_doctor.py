import json
import socket

import pytest
from typer.testing import CliRunner

from scheduler.vllm_adapter import capabilities
from training import doctor
from training.cli import app
from training.registry import register


@pytest.fixture(autouse=True)
def engine(monkeypatch):
    """Stands in for importing vLLM, which its own tests do; set what it finds."""
    found = [capabilities.Check("vllm", True, "0.32.0 (tested)")]
    monkeypatch.setattr(capabilities, "probe", lambda: found)
    return found


def checks(workspace, model="tiny", port=0):
    return {c.name: c for c in doctor.run_checks(workspace=workspace, model=model, port=port)}


def test_a_ready_machine_has_nothing_to_mend(workspace, predictor_dir, tmp_path, monkeypatch):
    (tmp_path / "packs").mkdir()
    (tmp_path / "packs" / "gpt35.jsonl.gz").touch()
    monkeypatch.setenv("LENGTHWISE_DATA", str(tmp_path))
    register(predictor_dir, workspace=workspace)
    found = checks(workspace)
    assert {c.status for c in found.values()} == {"ok"}, found
    assert not any(c.advice for c in found.values())
    assert "models:/output-length/1, trained on synthetic" in found["predictor"].detail


def test_a_fresh_machine_is_told_what_to_do_but_may_go_on(tmp_path, monkeypatch):
    monkeypatch.delenv("LENGTHWISE_DATA", raising=False)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    found = checks(doctor.Workspace(tmp_path / "new"))
    assert found["tracking store"].advice == "lengthwise train --register"
    assert found["data"].status == "warn"
    assert not doctor.failed(list(found.values()))


def test_a_lost_hook_fails(workspace, engine):
    engine.append(capabilities.Check("scheduler hooks", False, "missing: add_request"))
    found = checks(workspace)
    assert found["scheduler hooks"].status == "fail"
    assert "0.32" in found["scheduler hooks"].advice


def test_a_dead_store_fails(workspace):
    workspace.database.write_text("not a database")
    found = checks(workspace)
    assert found["tracking store"].status == "fail"
    assert found["tracking store"].advice == "move the file away"


def test_old_and_missing_packages_are_named(workspace, monkeypatch):
    versions = {"numpy": "1.0", "mlflow": None}
    real = doctor.installed
    monkeypatch.setattr(doctor, "installed", lambda name: versions.get(name, real(name)))
    detail = checks(workspace)["packages"].detail
    assert "numpy 1.0 is not" in detail
    assert "mlflow is missing" in detail


def test_models(workspace, tmp_path):
    assert checks(workspace, model=str(tmp_path))["model"].detail.endswith(
        "lacks config.json and a tokenizer"
    )
    for name in ("config.json", "tokenizer.json"):
        (tmp_path / name).write_text("{}")
    assert checks(workspace, model=str(tmp_path))["model"].status == "ok"
    assert checks(workspace, model="org/model")["model"].status == "warn"
    assert checks(workspace, model="no such model")["model"].status == "fail"


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
    engine.append(capabilities.Check("waiting queue", False, "missing: prepend_request"))
    broken = runner.invoke(app, ["doctor"])
    assert broken.exit_code == 1
    assert "fail waiting queue" in broken.stdout
