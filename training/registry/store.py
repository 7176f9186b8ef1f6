"""Is MLflow's tracking store reachable? Asked before MLflow is, which would retry for minutes.

Nothing here imports mlflow, so a command that only needs to say "the store is dead" is quick.
"""

from __future__ import annotations

import os
import socket
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lengthwise.data.errors import InputError
from lengthwise.training.registry.uri import (
    UNSHOWN,
    database_url,
    display,
    in_memory,
    sqlite_file,
    web_address,
)
from lengthwise.training.workspace import Workspace

URI_VARIABLE = "MLFLOW_TRACKING_URI"
CONNECT_TIMEOUT_S = 3.0
LOCK_TIMEOUT_S = 5.0
SETUP_TIMEOUT_S = 300.0  # of another process's making of a new store, on a busy machine
_PORTS = {"postgresql": 5432, "mysql": 3306, "mssql": 1433}
_SQLITE_MAGIC = b"SQLite format 3\x00"


class RegistryError(InputError):
    """The tracking store or a model named in it cannot be used; one line with what to do."""


def tracking_uri(workspace: Workspace) -> str:
    """``$MLFLOW_TRACKING_URI`` if set, else the workspace's SQLite database."""
    return os.environ.get(URI_VARIABLE) or _sqlite_uri(workspace.database)


@contextmanager
def setup_lock(uri: str) -> Iterator[None]:
    """Held while a SQLite store is looked at and opened: one process makes it, the others wait.

    Where no lock can be kept (a store that may only be read) there is none. RegistryError when
    another process holds it for SETUP_TIMEOUT_S.
    """
    path = sqlite_file(uri)
    if path is None or not path.parent.is_dir() or not os.access(path.parent, os.W_OK):
        yield
        return
    from filelock import FileLock, Timeout

    lock = FileLock(path.with_name(f"{path.name}.lock"), timeout=SETUP_TIMEOUT_S)
    try:
        lock.acquire()
    except Timeout as error:
        raise RegistryError(
            f"tracking store {display(uri)} is being set up by another process for more than "
            f"{SETUP_TIMEOUT_S:g} s; end it, or remove {lock.lock_file}"
        ) from error
    except OSError:  # a file system without locks
        yield
        return
    try:
        yield
    finally:
        lock.release()


def make_folder(uri: str) -> None:
    """Make the folder of a SQLite store that is to be written; RegistryError where it cannot be."""
    path = sqlite_file(uri)
    if path is None:
        if in_memory(uri):
            raise RegistryError(
                f"tracking store {display(uri)} is in memory and would end with this process; "
                "use sqlite:///PATH/mlflow.db"
            )
        return
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RegistryError(f"tracking store {display(uri)} cannot be created: {error}") from error


def check_store(uri: str, *, writing: bool) -> None:
    """Raise RegistryError unless the store behind ``uri`` answers, within seconds.

    ``writing`` also asks that a SQLite file can be created or locked for writing; reading asks
    that it exists. What MLflow's own libraries cannot take apart, or reach by a way of their own
    (a proxy, a socket file), is not asked here.
    """
    scheme = uri.split(":", 1)[0].lower() if ":" in uri else ""
    if scheme in ("", "file") and uri != "databricks":
        shown = display(uri) if "@" in uri else uri
        raise RegistryError(
            f"tracking store {shown!r} is a plain directory, which MLflow no longer accepts; "
            f"unset {URI_VARIABLE} or use sqlite:///PATH/mlflow.db"
        )
    if scheme in ("http", "https"):
        address = web_address(uri)
        if address is not None:
            _check_host(uri, *address)
        return
    path = sqlite_file(uri)
    if path is not None:
        _check_sqlite(uri, path, writing=writing)
        return
    url = database_url(uri)
    port = None if url is None else _PORTS.get(url.get_backend_name())
    if url is not None and url.host and port and "," not in url.host:
        _check_host(uri, url.host, url.port or port)


def _sqlite_uri(path: Path) -> str:
    plain = f"sqlite:///{path}"
    if not set(str(path)) & set("%?"):
        return plain
    from sqlalchemy.engine import URL, make_url

    # its driver named: of "sqlite:///" MLflow makes the folder as written, quotes and all
    driver = "sqlite+pysqlite"
    url = URL.create(driver, database=str(path)).render_as_string(hide_password=False)
    # versions differ in what of a path they quote
    return url if make_url(url).database == str(path) else plain


def _check_host(uri: str, host: str, port: int) -> None:
    try:
        socket.create_connection((host, port), timeout=CONNECT_TIMEOUT_S).close()
    except OSError as error:
        shown = display(uri)
        where = "" if shown == UNSHOWN else f" ({error})"
        raise RegistryError(
            f"tracking server {shown} does not answer{where}; start it, or unset "
            f"{URI_VARIABLE} to use the workspace's own database"
        ) from error


def _check_sqlite(uri: str, path: Path, *, writing: bool) -> None:
    shown = display(uri)
    if not path.exists():
        if not writing:
            raise RegistryError(
                f"tracking store {shown} does not exist yet; `lengthwise train --register` makes it"
            )
        make_folder(uri)
        if not os.access(path.parent, os.W_OK):
            raise RegistryError(
                f"tracking store {shown} cannot be created: no right to write there"
            )
        return
    try:
        with path.open("rb") as file:
            head = file.read(len(_SQLITE_MAGIC))
    except OSError as error:
        raise RegistryError(f"tracking store {shown} cannot be read: {error}") from error
    if head and head != _SQLITE_MAGIC:
        raise RegistryError(f"tracking store {shown} is not a SQLite database; move the file away")
    try:
        _probe(path, writing=writing)
    except sqlite3.OperationalError as error:
        raise RegistryError(
            f"tracking store {shown} cannot be used: {error}; close the program that holds it "
            "or check the rights on the file"
        ) from error
    except sqlite3.DatabaseError as error:
        raise RegistryError(
            f"tracking store {shown} is corrupt ({error}); restore a copy or move the file away"
        ) from error


def _probe(path: Path, *, writing: bool) -> None:
    connection: Any = sqlite3.connect(path, timeout=LOCK_TIMEOUT_S)
    try:
        connection.execute("BEGIN IMMEDIATE" if writing else "BEGIN")
        connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
        if writing:
            # the lock alone is given where no journal can be made: undone by the rollback
            connection.execute("CREATE TABLE lengthwise_probe (x)")
        connection.rollback()
    finally:
        connection.close()
