"""``lengthwise doctor``: is what training and serving need there, and if not, what to do."""

from __future__ import annotations

import contextlib
import importlib.metadata
import json
import os
import platform
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from lengthwise.data.errors import InputError
from lengthwise.training import console
from lengthwise.training.doctor.places import (
    Check,
    metrics_dir,
    numba_cache,
    port_free,
    request_log,
)
from lengthwise.training.registry.store import check_store, display, sqlite_file, tracking_uri
from lengthwise.training.workspace import Workspace

if TYPE_CHECKING:
    from lengthwise.training.registry.models import ResolvedPredictor

DISTRIBUTION = "lengthwise"
_TRAIN = "lengthwise train --register"
_INSTALL = "make setup, or pip install -e ."


def run_checks(
    *,
    workspace: Workspace,
    model: str,
    port: int,
    log_dir: Path | None = None,
    steps: console.Steps | None = None,
) -> list[Check]:
    """Every check, in the order in which a stranger would have to mend things.

    ``log_dir`` is the folder that the request log is to go to, if there is to be one. ``steps``
    is told what is being looked at.
    """
    steps = steps or console.SilentSteps()
    checks: dict[str, Callable[[], Sequence[Check]]] = {
        "the installation": _installation,
        "vLLM: importing it to look at its hooks": _vllm,
        "LMDeploy: importing it in its own environment": lambda: _lmdeploy(workspace),
        "compiled code: importing it": lambda: [numba_cache()],
        "the workspace": lambda: _workspace(workspace),
        "the tracking store and its champion": lambda: _tracking(workspace),
        f"the model {model}": lambda: _model(model),
        "data": _data,
        "the metrics folder": lambda: [metrics_dir()],
        f"the port {port}": lambda: [port_free(port)],
    }
    if log_dir is not None:
        checks[f"the request log {log_dir}"] = lambda: [request_log(log_dir)]
    found: list[Check] = []
    for what, check in checks.items():
        steps.step(f"looking at {what}")
        found += check()
    return found


def failed(checks: Sequence[Check]) -> bool:
    """Whether any check stands in the way."""
    return any(check.status == "fail" for check in checks)


def _installation() -> list[Check]:
    """The distribution, its Python, and the packages that it asks for."""
    from packaging.specifiers import SpecifierSet

    own = installed(DISTRIBUTION)
    if own is None:
        return [Check("installation", "fail", f"{DISTRIBUTION} is not installed", _INSTALL)]
    wanted = importlib.metadata.metadata(DISTRIBUTION)["Requires-Python"]
    version = platform.python_version()
    good = SpecifierSet(wanted).contains(version, prereleases=True)
    advice = "" if good else f"use a Python {wanted}"
    return [
        Check("installation", "ok", f"{DISTRIBUTION} {own}"),
        Check("python", "ok" if good else "fail", f"{version} (needs {wanted})", advice),
        *_packages(),
    ]


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
        return [Check("packages", "fail", "; ".join(wrong), _INSTALL)]
    return [Check("packages", "ok", f"{len(core)} requirements met")]


def _vllm() -> list[Check]:
    """The engine against the supported range, and the hooks our scheduler stands on.

    Importing vLLM takes seconds. A version outside the range is a warning where the operator
    has said so, as at a server's start.
    """
    from lengthwise.scheduler.vllm_adapter import supported
    from lengthwise.scheduler.vllm_adapter.server import hooks

    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
    with contextlib.redirect_stdout(sys.stderr):
        version, *probed = hooks.probe()
    wanted = f"install a vLLM {supported.SUPPORTED_RANGE}: pip install 'lengthwise[vllm]'"
    checks = [Check(version.name, "ok", version.detail)]
    if not version.ok:
        try:
            supported.check_supported()
            checks = [Check(version.name, "warn", version.detail, wanted)]
        except InputError as error:
            finding, _, advice = str(error).partition(": ")
            checks = [Check(version.name, "fail", finding, advice)]
    return checks + [
        Check(c.name, "ok" if c.ok else "fail", c.detail, "" if c.ok else wanted) for c in probed
    ]


def _lmdeploy(workspace: Workspace) -> list[Check]:
    """The second engine, which nothing but its own arms needs: version, and every name touched."""
    from lengthwise.scheduler.lmdeploy_adapter import lmdeploy_environment as environment

    name = "lmdeploy"
    try:
        python = environment.environment_python(workspace.cache)
    except InputError:
        how = f"`{environment.MAKE}` brings it to `serve`, `bench` and `simulate`"
        return [Check(name, "ok", f"not set up, and not needed: {how}")]
    try:
        found = environment.look_at(python)
    except InputError as error:
        return [Check(name, "fail", str(error), environment.MAKE)]
    return [
        Check(
            c["name"], "ok" if c["ok"] else "fail", c["detail"], "" if c["ok"] else environment.MAKE
        )
        for c in found
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
    """The store, and the champion in it. One that can only be read serves, but learns nothing."""
    from lengthwise.training.registry import models as registry

    name, uri = "tracking store", tracking_uri(workspace)
    file = sqlite_file(uri)
    if file is not None and not file.exists():
        return [Check(name, "warn", f"{display(uri)} does not exist yet", _TRAIN)]
    store = Check(name, "ok", display(uri))
    try:
        check_store(uri, writing=True)
    except InputError as unwritable:
        detail, _, advice = str(unwritable).partition("; ")
        try:
            check_store(uri, writing=False)
        except InputError:
            return [Check(name, "fail", detail, advice)]
        store = Check(name, "warn", f"{detail}: serving works, training does not", advice)
    try:
        found = registry.resolve_predictor(workspace=workspace)
        return [store, _predictor(found), *_reader(found)]
    except InputError as error:
        return [store, Check("predictor", "warn", str(error), _TRAIN)]


def _predictor(found: ResolvedPredictor) -> Check:
    """Whether the champion loads and says something a plan can use."""
    import numpy as np

    from lengthwise.predictor.model import LengthPredictor

    try:
        predictor = LengthPredictor.load(found.directory)
        row = np.asarray(predictor.predict(["Write a haiku about rain."]).quantiles)[0]
        if not (np.isfinite(row).all() and (row >= 1.0).all() and (np.diff(row) >= 0.0).all()):
            raise InputError(f"predicts {row.round(1).tolist()}, which is no distribution")
    except Exception as error:  # whatever it is, a server would meet it too
        detail = f"{found.label}: {error if isinstance(error, InputError) else repr(error)}"
        return Check("predictor", "fail", detail, f"lengthwise promote --rollback, or {_TRAIN}")
    source = predictor.card.get("source_label", "unknown")
    median = float(np.interp(0.5, predictor.levels, row))
    detail = f"{found.label}, trained on {source}; a haiku: {median:.0f} tokens"
    return Check("predictor", "ok", detail)


def _reader(found: ResolvedPredictor) -> list[Check]:
    """Whether the champion's causal reader can be had, where it has one; without it serves too."""
    from lengthwise.predictor.model import LengthPredictor

    try:
        causal = LengthPredictor.load(found.directory).causal
    except InputError:  # told already
        return []
    if causal is None:
        return []
    reader = causal.reader
    of = f"{reader.model}, for {', '.join(reader.read_classes_)}"
    if reader.states() is None:
        advice = "install or restore it, or train without --reader; until then the rest predicts"
        return [Check("reader", "warn", f"{of}: {reader.fault_}", advice)]
    return [Check("reader", "ok", of)]


def _model(model: str) -> list[Check]:
    if model == "tiny":
        return [Check("model", "ok", "tiny, built in")]
    path = Path(model)
    if not path.exists() and re.fullmatch(r"[\w.-]+/[\w.-]+", model):
        return [Check("model", "warn", f"{model} will be looked up on the hub", "needs network")]
    advice = "give a directory that holds config.json, weights and a tokenizer"
    try:
        config = json.loads((path / "config.json").read_text(encoding="utf-8"))
        kinds = ", ".join(config["architectures"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        reason = f"{model}: config.json is no model's: {error!r}"
        return [Check("model", "fail", reason, advice)]
    weights = any(any(path.glob(f"*.{kind}")) for kind in ("safetensors", "bin", "gguf", "pt"))
    found = f"{model}: {kinds}"
    checks = [Check("model", "ok", found)]
    if not weights:
        checks = [Check("model", "warn", f"{found}, no weights", f"{advice} (or --load-format)")]
    return [*checks, _tokenizer(path)]


def _tokenizer(path: Path) -> Check:
    """Whether there is one and, in the common format, whether it reads text."""
    name, advice = "tokenizer", "put tokenizer.json beside the weights, or serve with --tokenizer"
    file = path / "tokenizer.json"
    if file.is_file():
        from tokenizers import Tokenizer

        try:
            count = len(Tokenizer.from_file(str(file)).encode("Name three rivers.").ids)
        except Exception as error:  # the library raises plain Exception
            return Check(name, "fail", f"{file}: {error}", advice)
        return Check(name, "ok", f"{file.name}; three words: {count} tokens")
    others = [n for n in ("tokenizer.model", "tekken.json", "vocab.json") if (path / n).is_file()]
    if not others:
        return Check(name, "fail", f"{path} has none", advice)
    return Check(name, "ok", others[0])


def _data() -> list[Check]:
    from lengthwise.data.sources.load import available_packs

    packs = available_packs()
    if packs:
        return [Check("data", "ok", ", ".join(packs))]
    return [
        Check(
            "data", "warn", "no packs; training uses the built-in synthetic corpus",
            "set LENGTHWISE_DATA, or lengthwise data list",
        )
    ]  # fmt: skip
