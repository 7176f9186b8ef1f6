"""What a server was told, kept beside its request log, so that a judge can replay as it served."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

from lengthwise.data.errors import InputError
from lengthwise.data.files import read_object
from lengthwise.data.max_wait import MAX_WAIT_S
from lengthwise.data.slo import SloTable
from lengthwise.scheduler.policies.make import within_parts
from lengthwise.scheduler.profile import EngineProfile
from lengthwise.scheduler.vllm_adapter.server.tiny import TINY_NAME
from lengthwise.training.bench.session import DEFAULT_PROFILE, profile_path, read_profile
from lengthwise.training.workspace import Workspace

SERVED_FILE = "server.json"
LIMITS = frozenset({"max_num_seqs", "max_num_batched_tokens"})
_LMDEPLOYS = {  # names of the same
    "--max-batch-size": "max_num_seqs",
    "--max-prefill-token-num": "max_num_batched_tokens",
}
KEPT_SETTINGS = ("policy", "policy_params", "slo_table", "max_wait_s", "profile")


@dataclass(frozen=True, slots=True)
class Server:
    """What a replay must have in common with the server it stands for.

    ``chosen_by`` says by which rule of `server_of` the profile was taken.
    """

    profile: EngineProfile
    policy: str = "sa"
    policy_params: tuple[tuple[str, Any], ...] = ()
    slos: SloTable = field(default_factory=lambda: SloTable({}))
    max_wait_s: float = MAX_WAIT_S
    chosen_by: str = "as given"


def write_served(
    folder: Path, model: str, settings: Mapping[str, Any], engine_args: Sequence[str]
) -> None:
    """Keep what of a server's settings a replay needs in the folder of its request log."""
    folder.mkdir(parents=True, exist_ok=True)
    params, parts = settings["policy_params"], settings.get("plan_parts")
    decides = within_parts(settings["policy"], params, parts)
    document = {
        "model": model,
        "limits": limits_of(engine_args),
        "settings": {key: settings[key] for key in KEPT_SETTINGS} | {"policy_params": decides},
    }
    (folder / SERVED_FILE).write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")


def limits_of(engine_args: Sequence[str]) -> dict[str, int]:
    """The engine's limits among its own options: `--max-num-seqs 64` or with `=`."""
    words = [word for argument in engine_args for word in argument.split("=", 1)]
    options = {f"--{name.replace('_', '-')}": name for name in LIMITS} | _LMDEPLOYS
    return {
        options[word]: int(value)
        for word, value in pairwise(words)
        if word in options and value.isdecimal()
    }


def read_served(folder: Path) -> dict[str, Any] | None:
    """The document of `write_served`; None for a log without one.

    Raises:
        InputError: a file that is something else.
    """
    path = (folder.parent if folder.is_file() else folder) / SERVED_FILE
    if not path.is_file():
        return None
    document = read_object(path)
    try:
        settings = document["settings"]
        SloTable.from_dict(settings["slo_table"])
        kept = {key: settings[key] for key in KEPT_SETTINGS}
        limits = {
            name: int(document["limits"][name]) for name in LIMITS & document["limits"].keys()
        }
        if any(value < 1 for value in limits.values()):
            raise ValueError(f"limits must be at least 1, got {limits}")
        return {"model": str(document["model"]), "limits": limits, "settings": kept}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{path} is not what a server kept of itself: {error!r}") from error


def server_of(
    folder: Path | None,
    workspace: Workspace,
    *,
    profile: str | None = None,
    model: str | None = None,
    slo_table: Mapping[str, Any] | None = None,
) -> Server:
    """The server that wrote the log in `folder`, as far as it is known; options given win.

    Raises:
        InputError: no engine profile of the served model, or no telling which model it is.
    """
    served = (read_served(folder) if folder is not None else None) or {}
    settings = served.get("settings", {})
    if profile:
        name, chosen_by = profile, "as --profile says"
    elif settings.get("profile"):
        name, chosen_by = settings["profile"], "as the log's server was told"
    elif model:
        name, chosen_by = _of_model(workspace, model, "--model")
    elif served:
        name, chosen_by = _of_model(workspace, served["model"], "the log's server")
    else:
        name, chosen_by = _only_one(workspace)
    engine = read_profile(name)
    capacity = replace(engine.capacity, **served.get("limits", {}))
    table = slo_table if slo_table is not None else settings.get("slo_table", {})
    known = Server(
        replace(engine, capacity=capacity), slos=SloTable.from_dict(table), chosen_by=chosen_by
    )
    if not settings:
        return known
    return replace(
        known,
        policy=settings["policy"],
        policy_params=tuple(sorted(settings["policy_params"].items())),
        max_wait_s=settings["max_wait_s"],
    )


def _of_model(workspace: Workspace, model: str, whose: str) -> tuple[str, str]:
    """The profile of a served model, and why it is that."""
    path = profile_path(workspace, model)
    if path.is_file():
        return str(path), f"calibrated for {model}, the model of {whose}"
    if model == TINY_NAME:
        return DEFAULT_PROFILE, f"the shipped one of {model}"
    raise InputError(
        f"no engine profile of {model}, the served model: `lengthwise calibrate --model "
        f"{model}` makes one, or give --profile"
    )


def _only_one(workspace: Workspace) -> tuple[str, str]:
    """The profile where no model is known, and why: the only one that was calibrated, if any."""
    found = sorted((workspace.cache / "profiles").glob("*.json"))
    if len(found) > 1:
        names = ", ".join(path.stem for path in found)
        raise InputError(f"engines of several models are calibrated ({names}): give --model")
    if found:
        return str(found[0]), "the only one calibrated here"
    return DEFAULT_PROFILE, f"the shipped {DEFAULT_PROFILE}: none is calibrated here"
