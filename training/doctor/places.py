"""The places that a server writes to, as ``lengthwise doctor`` finds them."""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

Status = Literal["ok", "warn", "fail"]
METRICS_VARIABLE = "PROMETHEUS_MULTIPROC_DIR"
CACHE_VARIABLE = "NUMBA_CACHE_DIR"
LOW_BYTES = 1 << 30  # a request log of a million rows with features is about as large


@dataclass(frozen=True, slots=True)
class Check:
    """One finding; ``advice`` says what to do and is empty where all is well."""

    name: str
    status: Status
    detail: str
    advice: str = ""


def why_not_writable(directory: Path) -> str | None:
    """What the system says to a file made in ``directory`` (or where it would be made); None: fine.

    Asks by doing: rights alone do not tell a read-only or a full disk.
    """
    place = directory
    while not place.exists() and place != place.parent:
        place = place.parent
    try:
        with tempfile.TemporaryFile(dir=place) as file:
            file.write(b"\0" * 4096)
            file.flush()
    except OSError as error:
        return f"{place}: {error.strerror}"
    return None


def metrics_dir() -> Check:
    """Where the processes of a server share their metrics: made by ``serve``, given elsewhere."""
    name, given = "metrics dir", os.environ.get(METRICS_VARIABLE)
    place = Path(given or tempfile.gettempdir())
    if reason := why_not_writable(place):
        return Check(name, "fail", reason, f"set {'TMPDIR' if not given else METRICS_VARIABLE}")
    if given and any(place.glob("*.db")):
        return Check(
            name,
            "warn",
            f"{place} holds the metrics of an earlier server",
            f"`lengthwise serve` takes a fresh one; else empty it, or unset {METRICS_VARIABLE}",
        )
    return Check(name, "ok", str(place))


def request_log(directory: Path) -> Check:
    """The folder given for the request log: writable, with room."""
    name = "request log"
    if reason := why_not_writable(directory):
        return Check(name, "fail", reason, "give a folder that the server may write to")
    place = directory
    while not place.exists():
        place = place.parent
    free = shutil.disk_usage(place).free
    detail = f"{directory}, {free / 1e9:.1f} GB free"
    if free < LOW_BYTES:
        return Check(name, "warn", detail, "free some space: rows that do not fit are dropped")
    return Check(name, "ok", detail)


def numba_cache() -> Check:
    """Whether compiled code can be kept; without it every start compiles anew."""
    name, advice = "numba cache", f"set {CACHE_VARIABLE} to a folder only the server may write to"
    try:
        from lengthwise.predictor.features.scan import scan
        from lengthwise.scheduler.plan.rollout.rollout import rollout
    except RuntimeError as error:
        return Check(name, "fail", str(error), advice)
    places = [Path(kernel.stats.cache_path or "") for kernel in (scan, rollout)]
    for place in places:
        if str(place) == ".":
            return Check(name, "warn", "compiled code is not kept: each start compiles", advice)
        if reason := why_not_writable(place):
            return Check(name, "warn", f"{reason}: each start compiles", advice)
    return Check(name, "ok", str(Path(os.path.commonpath(places))))


def port_free(port: int) -> Check:
    """Whether a server could listen there."""
    with contextlib.closing(socket.socket()) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError as error:
            return Check("port", "warn", f"{port}: {error.strerror}", "serve with --port OTHER")
    return Check("port", "ok", f"{port} is free")
