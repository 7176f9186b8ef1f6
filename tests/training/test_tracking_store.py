import os
import socket
import sqlite3
import time

import pytest

from lengthwise.training.registry.store import (
    RegistryError,
    check_store,
    display,
    sqlite_file,
    tracking_uri,
)
from lengthwise.training.workspace import Workspace


def test_the_default_store_is_the_workspaces_database(tmp_path, monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    workspace = Workspace(tmp_path)
    assert sqlite_file(tracking_uri(workspace)) == tmp_path / "mlruns" / "mlflow.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://tracking:5000")
    assert tracking_uri(workspace) == "http://tracking:5000"


def test_a_missing_database_can_be_written_but_not_read(tmp_path):
    uri = f"sqlite:///{tmp_path}/new/mlflow.db"
    check_store(uri, writing=True)
    assert (tmp_path / "new").is_dir()
    with pytest.raises(RegistryError, match="does not exist yet"):
        check_store(uri, writing=False)


def test_a_dead_server_is_told_within_seconds():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
    start = time.monotonic()
    with pytest.raises(RegistryError, match=f"127.0.0.1:{port} does not answer"):
        check_store(f"http://127.0.0.1:{port}", writing=True)
    assert time.monotonic() - start < 5


def test_messages_show_no_password():
    assert display("postgresql://me:secret@db:5432/mlflow") == "postgresql://db:5432/mlflow"
    with pytest.raises(RegistryError) as caught:
        check_store("postgresql://me:secret@127.0.0.1:1/mlflow", writing=True)
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize("uri", ["./mlruns", "file:///srv/mlruns"])
def test_a_file_store_is_refused_with_the_way_out(uri):
    with pytest.raises(RegistryError, match="sqlite:///"):
        check_store(uri, writing=True)


def test_a_file_that_is_no_database_is_refused(tmp_path):
    path = tmp_path / "mlflow.db"
    path.write_text("not a database at all")
    with pytest.raises(RegistryError, match="is not a SQLite database"):
        check_store(f"sqlite:///{path}", writing=False)


def test_a_truncated_database_is_corrupt(tmp_path, empty_store):
    path = tmp_path / "mlflow.db"
    path.write_bytes(empty_store.read_bytes()[:5000])
    with pytest.raises(RegistryError, match="corrupt"):
        check_store(f"sqlite:///{path}", writing=True)


def test_a_locked_database_is_told_within_seconds(tmp_path, empty_store, monkeypatch):
    monkeypatch.setattr("lengthwise.training.registry.store.LOCK_TIMEOUT_S", 0.2)
    path = tmp_path / "mlflow.db"
    path.write_bytes(empty_store.read_bytes())
    holder = sqlite3.connect(path)
    holder.execute("BEGIN EXCLUSIVE")
    try:
        with pytest.raises(RegistryError, match="locked"):
            check_store(f"sqlite:///{path}", writing=True)
    finally:
        holder.rollback()
        holder.close()
    check_store(f"sqlite:///{path}", writing=True)


def test_new_run_directories_never_collide(tmp_path):
    workspace = Workspace(tmp_path)
    made = {workspace.new_run_dir("train") for _ in range(20)}
    assert len(made) == 20
    assert all(path.parent == tmp_path / "runs" for path in made)


def test_the_workspace_follows_the_environment(tmp_path, monkeypatch):
    monkeypatch.setenv("LENGTHWISE_HOME", str(tmp_path))
    assert Workspace.current().root == tmp_path
    monkeypatch.delenv("LENGTHWISE_HOME")
    monkeypatch.chdir(os.sep)
    assert str(Workspace.current().root) == os.sep
