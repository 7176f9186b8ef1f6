"""URIs of tracking stores, taken apart as MLflow's libraries do it, and shown without passwords.

SQLAlchemy reads database URIs, requests those of the web; each takes a `#`, `?` or `@` in a
password in its own way. What neither can read, and what still holds an `@` when its user is cut
off, is never shown.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit, urlunsplit

UNSHOWN = "in $MLFLOW_TRACKING_URI"
_WEB = ("http", "https")
_PORTS = {"http": 80, "https": 443}
_LEAST_SECRET = 4
_SECRET = re.compile(r"pass|pwd|secret|token|key|credential|odbc_connect|sig", re.IGNORECASE)


def database_url(uri: str) -> Any | None:
    """The URI as SQLAlchemy reads it; None where it cannot, or where it names no database."""
    if "://" not in uri or uri.split("://", 1)[0].lower() in _WEB:
        return None
    from sqlalchemy.engine import make_url
    from sqlalchemy.exc import SQLAlchemyError

    try:
        return make_url(uri)
    except (SQLAlchemyError, ValueError, TypeError):
        return None


def sqlite_file(uri: str) -> Path | None:
    """The file behind a ``sqlite:`` URI; None for any other store, or one in memory."""
    if not uri.lower().startswith(("sqlite:", "sqlite+")):
        return None
    url = database_url(uri)
    name = None if url is None else url.database
    if not name or name == ":memory:" or "mode=memory" in uri:
        return None
    if name.startswith("file:"):  # SQLite's own URIs, with ?uri=true
        return Path(unquote(urlsplit(name).path))
    return Path(name)


def web_address(uri: str) -> tuple[str, int] | None:
    """(host, port) to which a request for a web URI connects; None by way of a proxy.

    None also for what requests would not read as it stands.
    """
    from requests import PreparedRequest, RequestException
    from requests.utils import get_environ_proxies, select_proxy

    try:
        prepared = PreparedRequest()
        prepared.prepare_url(uri, None)
        parts = urlsplit(str(prepared.url))
        host, port = parts.hostname, parts.port or _PORTS[parts.scheme]
        if select_proxy(prepared.url, get_environ_proxies(prepared.url)):
            return None
    except (RequestException, ValueError, KeyError):
        return None
    return (host, port) if host else None


def display(uri: str) -> str:
    """The URI without user, password and query, fit for messages; UNSHOWN where that is unsure."""
    if (path := sqlite_file(uri)) is not None:
        return f"sqlite:///{path}"
    if "://" not in uri:
        return UNSHOWN if "@" in uri else uri
    shown = _web_without_user(uri) if uri.split("://", 1)[0].lower() in _WEB else _cut(uri)
    return UNSHOWN if shown is None or "@" in shown else shown


def scrubbed(message: str, uri: str) -> str | None:
    """A library's message without the URI's secrets; None where they are not surely found."""
    secrets = _secrets(uri)
    if secrets is None:
        return None
    message = message.replace(uri, display(uri))
    for secret in sorted(secrets, key=len, reverse=True):
        if len(secret) < _LEAST_SECRET and secret in message:
            return None  # a word as short stands in many places
        message = message.replace(secret, "***")
    return message


def scrubbed_of_all(message: str, uris: Iterable[str]) -> str | None:
    """The message without the secrets of several URIs; None where one is not surely found."""
    told: str | None = message
    for uri in uris:
        told = None if told is None else scrubbed(told, uri)
    return told


def in_memory(uri: str) -> bool:
    """Whether a store is a SQLite database that ends with the process."""
    url = database_url(uri)
    sqlite = url is not None and url.get_backend_name() == "sqlite"
    return sqlite and sqlite_file(uri) is None


def _secrets(uri: str) -> set[str] | None:
    """What of a URI nobody may read; None where that is not sure."""
    if "@" not in uri and not _SECRET.search(uri.partition("?")[2]):
        return set()
    if display(uri) == UNSHOWN:
        return None
    url = database_url(uri)
    if url is None:
        parts = urlsplit(uri)
        found = [parts.password, parts.query]
    else:
        values = [v for k, v in url.query.items() if _SECRET.search(k)]
        found = [None if url.password is None else str(url.password), *map(str, values)]
    words = {word for word in found if word}
    raw = uri.partition("://")[2].rpartition("@")[0].partition(":")[2]
    return words | {unquote(word) for word in words} | ({raw} if raw else set())


def _web_without_user(uri: str) -> str | None:
    try:
        parts = urlsplit(uri)
        _ = parts.port  # where a password with a / or # ends up
    except ValueError:
        return None
    if not parts.hostname or "@" in uri.replace(parts.netloc, "", 1):
        return None  # an @ outside ends a password that began inside
    return urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, "", ""))


def _cut(uri: str) -> str | None:
    from sqlalchemy.engine import URL

    url = database_url(uri)
    if url is None:
        return None if "@" in uri or "?" in uri else uri
    if uri.count("@") > (url.username is not None):
        return None  # an @ that is no end of a user's name stands in a password
    shown = URL.create(url.drivername, host=url.host, port=url.port, database=url.database)
    return shown.render_as_string()
