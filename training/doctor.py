"""``lengthwise doctor``: is what training and serving need there, and if not, what to do."""

from __future__ import annotations

import contextlib
import importlib.metadata
import os
import platform
import re
import socket
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from data.errors import InputError
from training.tracking_store import check_store, display, sqlite_file, tracking_uri
from training.workspace import Workspace

if TYPE_CHECKING:
    from training.registry import ResolvedPredictor

Status = Literal["ok", "warn", "fail"]
DISTRIBUTION = "lengthwise"


@dataclass(frozen=True, slots=True)
class Check:
    """One finding; ``advice`` says what to do and is empty where all is well."""

    name: str
    status: Status
    detail: str
    advice: str = ""


def run_checks(*, workspace: Workspace, model: str, port: int) -> list[Check]:
    """Every check, in the order in which a stranger would have to mend things."""
    checks: list[Callable[[], Sequence[Check]]] = [
        _python,
        _packages,
        _vllm,
        lambda: _workspace(workspace),
        lambda: _tracking(workspace),
        lambda: _model(model),
        _data,
        lambda: _port(port),
    ]
    return [found for check in checks for found in check()]


def failed(checks: Sequence[Check]) -> bool:
    """Whether any check stands in the way."""
    return any(check.status == "fail" for check in checks)


def _python() -> list[Check]:
    from packaging.specifiers import SpecifierSet

    wanted = importlib.metadata.metadata(DISTRIBUTION)["Requires-Python"]
    version = platform.python_version()
    good = SpecifierSet(wanted).contains(version, prereleases=True)
    advice = "" if good else f"use a Python {wanted}"
    return [Check("python", "ok" if good else "fail", f"{version} (needs {wanted})", advice)]


def _packages() -> list[Check]:
    """The core requirements of the distribution's own metadata against what is installed."""
    from packaging.requirements import Requirement

    wrong = []
    wanted = [Requirement(text) for text in importlib.metadata.requires(DISTRIBUTION) or ()]
    core = [r for r in wanted if r.marker is None]
    for requirement in core:
        version = installed(requirement.name)
        if version is None:
            wrong.append(f"{requirement.name} is missing")
        elif not requirement.specifier.contains(version, prereleases=True):
            wrong.append(f"{requirement.name} {version} is not {requirement.specifier}")
    if wrong:
        return [Check("packages", "fail", "; ".join(wrong), "make install, or pip install -e .")]
    return [Check("packages", "ok", f"{len(core)} requirements met")]


def _vllm() -> list[Check]:
    """The engine and the hooks our scheduler stands on; importing vLLM takes seconds."""
    from scheduler.vllm_adapter.capabilities import TESTED_VERSIONS, probe

    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
    with contextlib.redirect_stdout(sys.stderr):
        found = probe()
    advice = f"install a tested vLLM ({', '.join(TESTED_VERSIONS)}): make install"
    return [
        Check(c.name, "ok" if c.ok else "fail", c.detail, "" if c.ok else advice) for c in found
    ]


def installed(name: str) -> str | None:
    """The version of an installed distribution."""
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _workspace(workspace: Workspace) -> list[Check]:
    place = workspace.root
    while not place.exists():
        place = place.parent
    if os.access(place, os.W_OK):
        return [Check("workspace", "ok", str(workspace.root))]
    return [
        Check(
            "workspace", "fail", f"{workspace.root} is read-only", "set LENGTHWISE_HOME elsewhere"
        )
    ]


def _tracking(workspace: Workspace) -> list[Check]:
    from training import registry

    uri = tracking_uri(workspace)
    file = sqlite_file(uri)
    train = "lengthwise train --register"
    if file is not None and not file.exists():
        return [Check("tracking store", "warn", f"{display(uri)} does not exist yet", train)]
    try:
        check_store(uri, writing=True)
    except InputError as error:
        detail, _, advice = str(error).partition("; ")
        return [Check("tracking store", "fail", detail, advice)]
    checks = [Check("tracking store", "ok", display(uri))]
    try:
        found = registry.resolve_predictor(workspace=workspace)
        return [*checks, _predictor(found)]
    except InputError as error:
        return [*checks, Check("predictor", "warn", str(error), train)]


def _predictor(found: ResolvedPredictor) -> Check:
    from predictor.model import LengthPredictor

    predictor = LengthPredictor.load(found.directory)
    median = float(predictor.predict(["Write a haiku about rain."]).median()[0])
    source = predictor.card.get("source_label", "unknown")
    detail = f"{found.label}, trained on {source}; a haiku: {median:.0f} tokens"
    return Check("predictor", "ok", detail)


def _model(model: str) -> list[Check]:
    if model == "tiny":
        return [Check("model", "ok", "tiny, built in")]
    path = Path(model)
    if not path.exists() and re.fullmatch(r"[\w.-]+/[\w.-]+", model):
        return [Check("model", "warn", f"{model} will be looked up on the hub", "needs network")]
    missing = [
        what
        for what, names in (
            ("config.json", ("config.json",)),
            ("a tokenizer", ("tokenizer.json", "tokenizer.model", "tekken.json")),
        )
        if not any((path / name).is_file() for name in names)
    ]
    if missing:
        return [
            Check(
                "model", "fail", f"{model} lacks {' and '.join(missing)}", "give a model directory"
            )
        ]
    return [Check("model", "ok", str(path))]


def _data() -> list[Check]:
    from data.sources import available_packs

    packs = available_packs()
    if packs:
        return [Check("data", "ok", ", ".join(packs))]
    return [
        Check(
            "data", "warn", "no packs; training uses the built-in synthetic corpus",
            "set LENGTHWISE_DATA, or lengthwise data list",
        )
    ]  # fmt: skip


def _port(port: int) -> list[Check]:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError as error:
            return [Check("port", "warn", f"{port}: {error.strerror}", "serve with --port OTHER")]
    return [Check("port", "ok", f"{port} is free")]
