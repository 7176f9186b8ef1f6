"""Is MLflow's tracking store reachable? Asked before MLflow is, which would retry for minutes.

Nothing here imports mlflow, so a command that only needs to say "the store is dead" is quick.
"""

from __future__ import annotations

import os
import socket
import sqlite3
from pathlib import Path
from urllib.parse import unquote, urlsplit, urlunsplit

from lengthwise.data.errors import InputError
from lengthwise.training.workspace import Workspace

URI_VARIABLE = "MLFLOW_TRACKING_URI"
CONNECT_TIMEOUT_S = 3.0
LOCK_TIMEOUT_S = 5.0
_PORTS = {"http": 80, "https": 443, "postgresql": 5432, "mysql": 3306, "mssql": 1433}
_SQLITE_MAGIC = b"SQLite format 3\x00"


class RegistryError(InputError):
    """The tracking store or a model named in it cannot be used; one line with what to do."""


def tracking_uri(workspace: Workspace) -> str:
    """``$MLFLOW_TRACKING_URI`` if set, else the workspace's SQLite database."""
    return os.environ.get(URI_VARIABLE) or f"sqlite:///{workspace.database}"


def sqlite_file(uri: str) -> Path | None:
    """The file behind a ``sqlite:`` URI; None for any other store."""
    parts = urlsplit(uri)
    if parts.scheme.split("+")[0] != "sqlite":
        return None
    # sqlite:///relative and sqlite:////absolute: the path keeps exactly one leading slash to drop
    return Path(unquote(parts.path)[1:])


def display(uri: str) -> str:
    """The URI without user and password, fit for messages."""
    parts = urlsplit(uri)
    if not parts.hostname or "@" not in parts.netloc:
        return uri
    return urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2]))


def check_store(uri: str, *, writing: bool) -> None:
    """Raise RegistryError unless the store behind ``uri`` answers, within seconds.

    ``writing`` also asks that a SQLite file can be created or locked for writing; reading asks
    that it exists.
    """
    parts = urlsplit(uri)
    scheme = parts.scheme.split("+")[0]
    if scheme in ("", "file"):
        raise RegistryError(
            f"tracking store {uri!r} is a plain directory, which MLflow no longer accepts; "
            f"unset {URI_VARIABLE} or use sqlite:///PATH/mlflow.db"
        )
    path = sqlite_file(uri)
    if path is not None:
        _check_sqlite(uri, path, writing=writing)
    elif parts.hostname and scheme in _PORTS:
        _check_host(uri, parts.hostname, parts.port or _PORTS[scheme])


def _check_host(uri: str, host: str, port: int) -> None:
    try:
        socket.create_connection((host, port), timeout=CONNECT_TIMEOUT_S).close()
    except OSError as error:
        raise RegistryError(
            f"tracking server {display(uri)} does not answer ({error}); start it, or unset "
            f"{URI_VARIABLE} to use the workspace's own database"
        ) from error


def _check_sqlite(uri: str, path: Path, *, writing: bool) -> None:
    if not path.exists():
        if not writing:
            raise RegistryError(
                f"tracking store {uri} does not exist yet; `lengthwise train --register` makes it"
            )
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise RegistryError(f"tracking store {uri} cannot be created: {error}") from error
        if not os.access(path.parent, os.W_OK):
            raise RegistryError(f"tracking store {uri} cannot be created: no right to write there")
        return
    try:
        with path.open("rb") as file:
            head = file.read(len(_SQLITE_MAGIC))
    except OSError as error:
        raise RegistryError(f"tracking store {uri} cannot be read: {error}") from error
    if head and head != _SQLITE_MAGIC:
        raise RegistryError(f"tracking store {uri} is not a SQLite database; move the file away")
    try:
        connection = sqlite3.connect(path, timeout=LOCK_TIMEOUT_S)
        try:
            connection.execute("BEGIN IMMEDIATE" if writing else "BEGIN")
            connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
            if writing:
                # the lock alone is given where no journal can be made: undone by the rollback
                connection.execute("CREATE TABLE lengthwise_probe (x)")
            connection.rollback()
        finally:
            connection.close()
    except sqlite3.OperationalError as error:
        raise RegistryError(
            f"tracking store {uri} cannot be used: {error}; close the program that holds it "
            "or check the rights on the file"
        ) from error
    except sqlite3.DatabaseError as error:
        raise RegistryError(
            f"tracking store {uri} is corrupt ({error}); restore a copy or move the file away"
        ) from error
