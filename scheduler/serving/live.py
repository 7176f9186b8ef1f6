"""The live file: what a running server should serve, written by whoever manages it.

    {"predictor": {"directory": ..., "version": ...} | null,   null: as it is
     "shadow":    {"directory": ..., "version": ...} | null,   null: none
     "policy": "sa" | null, "policy_params": {},               null: as it is
     "slo_table": {"chat": {"ttft_ms": 500, "weight": 2}} | null}

Only who may write files on the server's machine chooses what is loaded; no request does.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Protocol

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from lengthwise.data.errors import InputError
from lengthwise.data.files import write_whole
from lengthwise.data.slo import SloTable
from lengthwise.scheduler.policies.make import check_policy
from lengthwise.scheduler.serving.settings import ServerSettings, VersionName, first_fault

_MOST_BYTES = 4 * 1024 * 1024


class LivePredictor(BaseModel):
    """A predictor's directory and what to call it (None: what its card says)."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    directory: str = Field(min_length=1)
    version: VersionName | None = None


class LiveState(BaseModel):
    """The live file's content."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    predictor: LivePredictor | None = None
    shadow: LivePredictor | None = None
    policy: str | None = None
    policy_params: dict[str, Any] = Field(default_factory=dict)
    slo_table: dict[str, Any] | None = None

    @model_validator(mode="after")
    def _fits(self) -> LiveState:
        if self.policy is not None or self.policy_params:
            check_policy(self.policy, self.policy_params)
        if self.slo_table is not None:
            SloTable.from_dict(self.slo_table)
        return self


def make_live(values: Any, where: str) -> LiveState:
    """A checked state; InputError says where, which key, and the rule."""
    try:
        return LiveState.model_validate(values)
    except ValidationError as error:
        raise InputError(f"{where}: {first_fault(error)}") from error


def live_state(settings: ServerSettings) -> LiveState:
    """What a server with these settings serves at its start."""
    predictor = None
    if settings.predictor_dir is not None:
        predictor = LivePredictor(
            directory=settings.predictor_dir, version=settings.predictor_version
        )
    return LiveState(
        predictor=predictor,
        policy=settings.policy,
        policy_params=settings.policy_params,
        slo_table=settings.slo_table,
    )


def read_live(path: Path | str) -> LiveState:
    """The file's content; InputError when it is missing, unreadable or breaks a rule."""
    try:
        if not Path(path).is_file():  # reading a pipe would wait for whoever writes to it
            why = "not a file" if Path(path).exists() else "no such file"
            raise InputError(f"cannot read live file {str(path)!r}: {why}")
        with Path(path).open("rb") as file:
            raw = file.read(_MOST_BYTES + 1)
    except OSError as error:
        raise InputError(f"cannot read live file {str(path)!r}: {error}") from error
    if len(raw) > _MOST_BYTES:
        raise InputError(f"live file {str(path)!r} must not exceed {_MOST_BYTES} bytes")
    try:
        values = json.loads(raw)
    except (ValueError, RecursionError) as error:
        raise InputError(f"live file {str(path)!r} is not JSON: {error}") from error
    return make_live(values, f"live file {str(path)!r}")


def write_live(path: Path | str, state: LiveState) -> None:
    """Put the state in the file at once: a reader sees the old content or the new, never half."""
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    write_whole(target, state.model_dump_json(indent=1))


class LiveKeeper(Protocol):
    """Who keeps a server's live file: called every ``poll_s`` seconds, and on SIGHUP."""

    poll_s: float

    def keep(self, live_file: Path, reread: bool) -> None:
        """Rewrite the file if need be; ``reread``: somebody asks for everything anew."""
        ...
