import os
import socket
import sqlite3
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy.engine import make_url

from lengthwise.data.errors import InputError
from lengthwise.data.sources.load import default_source
from lengthwise.training.registry.connection import _told, check_writable
from lengthwise.training.registry.store import RegistryError, check_store, tracking_uri
from lengthwise.training.registry.uri import display, scrubbed, sqlite_file
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


HIDDEN = "in $MLFLOW_TRACKING_URI"


@pytest.mark.parametrize(
    ("uri", "shown"),
    [
        ("postgresql://me:secret@db:5432/mlflow", "postgresql://db:5432/mlflow"),
        ("postgresql://mlflow:pa#ss@localhost:5432/mlflow", "postgresql://localhost:5432/mlflow"),
        ("postgresql://mlflow:12#ss@localhost/mlflow", "postgresql://localhost/mlflow"),
        ("postgresql+psycopg2://me:a%40b%2F@db/mlflow", "postgresql+psycopg2://db/mlflow"),
        ("mysql+pymysql://me:p/a?s@db/x", "mysql+pymysql://db/x"),
        ("postgresql://me:p@ss@db/x", HIDDEN),
        ("postgresql://me:p@ss:word@db/x", HIDDEN),
        ("postgresql://me:secret@db:port/x", HIDDEN),
        ("postgresql://db/x?password=secret", "postgresql://db/x"),
        ("postgresql:///x?host=/run/pg&user=me&password=secret", "postgresql:///x"),
        ("mssql+pyodbc:///?odbc_connect=DRIVER%3D%7B%7D%3BPWD%3Dsecret", "mssql+pyodbc:///"),
        ("http://me:secret@tracking:5000/x", "http://tracking:5000/x"),
        ("http://me:pa#ss@tracking:5000", HIDDEN),
        ("http://me:12#ss@tracking:5000", HIDDEN),
        ("https://me:x@secret#p@tracking:5000", HIDDEN),
        ("https://me:x@secret/p@tracking:5000", HIDDEN),
        ("https://me:x@secret?p@tracking:5000", HIDDEN),
        ("http://me:12/ss@tracking", HIDDEN),
        ("http://me:12?ss@tracking", HIDDEN),
        ("https://tracking/x?token=secret", "https://tracking/x"),
        ("http://tracking:5000", "http://tracking:5000"),
        ("databricks://profile", "databricks://profile"),
        ("databricks", "databricks"),
        ("sqlite:////srv/a@b/mlflow.db", "sqlite:////srv/a@b/mlflow.db"),
        ("sqlite:///mlruns/mlflow.db?timeout=3", "sqlite:///mlruns/mlflow.db"),
        ("me:secret@db", HIDDEN),
    ],
)
def test_a_uri_is_shown_only_where_its_password_was_found_and_cut(uri, shown, monkeypatch):
    assert display(uri) == shown
    said = f"could not connect to {uri}: password authentication failed"
    told = scrubbed(said, uri)
    for word in ("secret", "pa#ss", "12#ss", "a%40b", "p@ss", "ss@"):
        assert word not in (told or "")
    if shown == HIDDEN:
        assert told is None


passwords = st.text(st.sampled_from("ab1#?/@:%&=+ []!"), min_size=4, max_size=10)


@given(passwords, st.sampled_from(["postgresql", "mysql+pymysql", "http", "https"]))
def test_no_password_of_any_kind_is_shown(password, scheme):
    """Written as people write them, unquoted: at most pieces the parsers take for the address."""
    secret = f"Zq{password}qZ"
    uri = f"{scheme}://me:{secret}@localhost:5432/mlflow"
    for text in (display(uri), scrubbed(f"no such thing: {uri}", uri) or ""):
        assert secret not in text
        assert "Zq" not in text
        assert "qZ" not in text


def test_messages_show_no_password(monkeypatch):
    monkeypatch.setattr("lengthwise.training.registry.store.CONNECT_TIMEOUT_S", 0.2)
    for password in ("secret", "pa#ss", "12#ss", "p@ss"):
        with pytest.raises(RegistryError) as caught:
            check_store(f"postgresql://mlflow:{password}@127.0.0.1:1/mlflow", writing=True)
        assert password not in str(caught.value)


def test_what_a_proxy_leads_to_is_not_asked_for_directly(monkeypatch):
    uri = "http://tracking.invalid:5000"
    for name in ("http_proxy", "HTTP_PROXY", "no_proxy", "NO_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(RegistryError, match="does not answer"):
        check_store(uri, writing=True)
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    check_store(uri, writing=True)
    monkeypatch.setenv("no_proxy", "tracking.invalid")
    with pytest.raises(RegistryError, match="does not answer"):
        check_store(uri, writing=True)


@pytest.mark.parametrize("name", ["a b", "a#b", "a?b", "a%20b", "100%", "ü", "a@b", "a&b=c+d"])
def test_a_workspace_under_any_name(tmp_path, name, monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    workspace = Workspace(tmp_path / name)
    uri = tracking_uri(workspace)
    assert sqlite_file(uri) == workspace.database
    assert make_url(uri).database == str(workspace.database)
    check_store(uri, writing=True)
    assert workspace.mlruns.is_dir()


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


@pytest.mark.parametrize("name", ["MLFLOW_REGISTRY_URI", "HTTP_PROXY", "https_proxy"])
def test_no_password_of_any_variable_is_told(name, monkeypatch):
    for password in ("hidden", "x@hidden#y"):
        monkeypatch.setenv(name, f"http://me:{password}@127.0.0.1:9")
        said = f"request to http://me:{password}@127.0.0.1:9/api failed"
        told = str(_told(ValueError(said), "sqlite:///mlflow.db"))
        assert "hidden" not in told
        assert told.startswith("MLflow at sqlite:///mlflow.db: ")


@pytest.mark.parametrize("uri", ["sqlite://", "sqlite:///:memory:", "sqlite:///file:a?mode=memory"])
def test_a_store_that_would_end_with_the_process_is_not_written_to(uri, tmp_path, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    with pytest.raises(RegistryError, match="is in memory and would end with this process"):
        check_writable(Workspace(tmp_path))


def test_a_file_store_with_a_password_does_not_show_it():
    with pytest.raises(RegistryError, match="plain directory") as caught:
        check_store("file://me:hidden@srv/mlruns", writing=True)
    assert "hidden" not in str(caught.value)


def test_places_that_are_none_are_named_with_their_variable(tmp_path, monkeypatch):
    monkeypatch.setenv("LENGTHWISE_HOME", "~nobody-of-this-name/x")
    with pytest.raises(InputError, match="LENGTHWISE_HOME must name a folder, got '~nobody"):
        Workspace.current()
    monkeypatch.setenv("LENGTHWISE_DATA", str(tmp_path / "typo"))
    with pytest.raises(InputError, match="LENGTHWISE_DATA must name a folder, got "):
        default_source()
    gone = tmp_path / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    monkeypatch.delenv("LENGTHWISE_HOME")
    gone.rmdir()
    with pytest.raises(InputError, match="the current folder is gone"):
        Workspace.current()
