"""What is refused before any model loads: a broken table, artifact or store is one line."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import sqlite3
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner

pytestmark = pytest.mark.vllm


def command(*args: object):
    """Our command line in this process; what it printed, and its exit code."""
    from lengthwise.training.cli.app import app

    return CliRunner().invoke(app, [str(arg) for arg in args])


def refused(*args: object) -> str:
    """The one line of a command that must be refused."""
    done = command(*args)
    assert done.exit_code == 2, done.output
    lines = done.stderr.strip().splitlines()
    assert len(lines) == 1, done.stderr
    assert lines[0].startswith("lengthwise: error: ")
    return lines[0]


@pytest.mark.parametrize(
    ("table", "named"),
    [
        ({"chat": {"tftt_ms": 3000}}, "tftt_ms"),
        ({"chat": {"ttft_ms": "soon"}}, "soon"),
        ({"chat": 3000}, "chat"),
        ([1], "object"),
    ],
)
def test_a_malformed_slo_table_is_refused_with_its_key(home, table, named):
    path = home / "slo.json"
    path.write_text(json.dumps(table))
    assert named in refused("serve", "tiny", "--predictor", "none", "--slo-table", path)


@pytest.mark.parametrize("name", ["card.json", "features.npz", "estimator"])
def test_a_corrupted_artifact_is_refused_before_the_model_loads(home, predictor_dir, name):
    broken = home / "broken"
    shutil.copytree(predictor_dir, broken)
    found = broken / name
    victim = max(found.rglob("*"), key=lambda f: f.stat().st_size) if found.is_dir() else found
    victim.write_bytes(victim.read_bytes()[: victim.stat().st_size // 2])
    assert "broken" in refused("serve", "tiny", "--predictor", broken)


@pytest.fixture
def store(home, monkeypatch):
    """A home with a database; the faults below are found before MLflow is asked anything."""
    from lengthwise.training.workspace import Workspace

    monkeypatch.setattr("lengthwise.training.registry.store.LOCK_TIMEOUT_S", 0.3)
    workspace = Workspace(home)
    workspace.mlruns.mkdir()
    with contextlib.closing(sqlite3.connect(workspace.database)) as database:
        database.execute("CREATE TABLE experiments (name)")
    return workspace


@contextlib.contextmanager
def locked(database: Path) -> Iterator[None]:
    holder = sqlite3.connect(database, check_same_thread=False)
    holder.execute("BEGIN EXCLUSIVE")
    try:
        yield
    finally:
        holder.rollback()
        holder.close()


@contextlib.contextmanager
def read_only(folder: Path) -> Iterator[None]:
    """For everybody: rights do not stop root, a read-only mount does."""
    if os.geteuid():
        folder.chmod(0o500)
        for file in folder.glob("*.db*"):
            file.chmod(0o400)
        yield
        folder.chmod(0o700)
        for file in folder.glob("*.db*"):
            file.chmod(0o600)
        return
    bind = ["mount", "--bind", str(folder), str(folder)]
    if subprocess.run(bind, capture_output=True).returncode:
        pytest.skip("mounting is not allowed here")
    try:
        subprocess.run(["mount", "-o", "remount,ro,bind", str(folder)], check=True)
        yield
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def writers(predictor_dir, home):
    """The commands that write to the store."""
    rows = home / "rows.jsonl"
    rows.write_text(json.dumps({"prompt": "hi", "response": "ho"}) + "\n")
    return [
        ("register", predictor_dir),
        ("train", "--input", rows, "--register"),
        ("promote", "--workload", "mixed", "--source", "synthetic"),
    ]


def test_a_locked_store_is_one_line(store, predictor_dir, tmp_path):
    commands = [*writers(predictor_dir, tmp_path), ("serve", "tiny"), ("compare",)]
    with locked(store.database):
        for arguments in commands:
            assert "locked" in refused(*arguments), arguments


def test_a_read_only_store_is_one_line_for_writers(store, predictor_dir, tmp_path):
    commands = writers(predictor_dir, tmp_path)
    with read_only(store.mlruns):
        for arguments in commands:
            assert "cannot be used: attempt to write a readonly" in refused(*arguments), arguments


def test_a_missing_store_is_one_line_for_readers(home):
    for arguments in (("promote", "--dry-run"), ("compare",)):
        assert "does not exist yet" in refused(*arguments), arguments
    assert not (home / "mlruns").exists()


@pytest.mark.chaos
def test_a_real_store_read_only_or_locked_halfway(predictor_dir, tmp_path, monkeypatch, home):
    """Reading goes on; a lock that falls after our look at the store is one line too."""
    from lengthwise.training.cli.serving.serve_inputs import find_predictor
    from lengthwise.training.registry.models import register
    from lengthwise.training.workspace import Workspace

    workspace = Workspace(home)
    register(predictor_dir, workspace=workspace)
    with read_only(workspace.mlruns):
        found = find_predictor("models:/output-length@champion", workspace, print)
    assert found is not None
    assert found.version == 1
    monkeypatch.setattr(
        "lengthwise.training.registry.connection.check_store", lambda uri, writing: None
    )
    with locked(workspace.database):
        assert "locked" in refused("register", predictor_dir)
