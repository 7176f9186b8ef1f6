"""What a lengthwise server is told at its start, shared by its API and engine processes."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from lengthwise.data.errors import InputError, shown
from lengthwise.data.files import read_object, write_whole
from lengthwise.data.max_wait import MAX_WAIT_S
from lengthwise.data.slo import SloTable
from lengthwise.scheduler.fleet.make_router import ROUTERS

# Every process of a server finds its settings through this variable.
SETTINGS_VARIABLE = "LENGTHWISE_SERVER_CONFIG"

# Below vLLM's own logger, so that our lines appear in its server's log in its format; another
# engine's launcher gives it a handler.
LOGGER_NAME = "vllm.lengthwise"

DEFAULT_PROFILE = "tiny-cpu"
NO_ROUTER = "none"  # the engine's own balancing chooses among several instances

_LONGEST_KEY = 60  # that an error gives back as it is

Lengths = Literal["learned", "class", "oracle", "none"]
VersionName = Annotated[str, Field(max_length=1024, pattern="")]
"""What a predictor is called: valid UTF-8, as it becomes a metric's label and travels with every
request."""


class AdmissionSettings(BaseModel):
    """Admission control: ``scheduler.admission.AdmissionRule``, and how long a verdict may take.

    A request whose verdict takes longer than ``timeout_ms`` is admitted.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    mode: Literal["off", "shed", "downgrade"] = "off"
    threshold: float = Field(default=0.05, ge=0, le=1)
    max_share: float = Field(default=0.3, ge=0, le=1)
    per_class: dict[str, Annotated[float, Field(ge=0, le=1)]] = Field(default_factory=dict)
    window: int = Field(default=200, ge=1, le=1_000_000)
    timeout_ms: float = Field(default=80.0, gt=0, le=10_000)


class ServerSettings(BaseModel):
    """One server's settings; a JSON file on disk. Unknown keys and bad values raise InputError.

    ``plan_budget_ms`` is what a plan's search may take of a core, ``plan_share`` the largest share
    of one that planning may, beside the engine's loop or, with ``plan_in_thread`` off, in it;
    ``log_features`` and ``log_prompts`` say what of the input goes to the request log,
    ``request_log_max_mb`` and ``request_log_max_age_days`` how much of it is kept. ``log_steps``
    writes ``step_log`` from the start. Bodies beyond ``max_body_bytes`` are refused (None: as the
    server itself would). ``live_file`` (see ``live.py``) is looked at every ``live_poll_s``.
    ``fair_tenants`` has an effect while more than one tenant has requests; a tenant not in
    ``tenant_weights`` weighs 1.
    ``plan_parts`` are the parts of a plan that the engine can carry out (None: all).
    ``length_residual``: learned lengths are mended by what answers tell of prompts' features.
    A predictor's causal reader (``api.reader_desk``) reads no prompt that would wait longer than
    ``reader_budget_ms``, 0: none. ``router`` chooses among several instances, where there are such.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    predictor_dir: str | None = None
    predictor_version: VersionName | None = None
    lengths: Lengths = "learned"
    policy: str = "sa"
    policy_params: dict[str, Any] = Field(default_factory=dict)
    plan_parts: tuple[str, ...] | None = None
    plan_budget_ms: float = Field(default=20.0, gt=0, le=1000)
    plan_share: float = Field(default=0.1, gt=0, le=1)
    plan_in_thread: bool = True
    max_wait_s: float = Field(default=MAX_WAIT_S, gt=0)
    slo_table: dict[str, dict[str, float]] = Field(default_factory=dict)
    profile: str | None = None
    refit_steps: int = Field(default=2000, ge=0)
    request_log: str | None = None
    request_log_max_mb: float = Field(default=4096.0, gt=0, le=1e9)
    request_log_max_age_days: float | None = Field(default=None, gt=0, le=36_500)
    log_prompts: bool = False
    log_features: bool = True
    length_residual: bool = True
    replay_table: str | None = None
    step_log: str | None = None
    log_steps: bool = False
    live_file: str | None = None
    live_poll_s: float = Field(default=5.0, gt=0, le=3600)
    allow_configure: bool = False
    seed: int = Field(default=0, ge=0)
    predict_timeout_ms: float = Field(default=1000.0, gt=0)
    shadow_timeout_ms: float = Field(default=20.0, gt=0)
    reader_budget_ms: float = Field(default=2000.0, ge=0, le=600_000)
    max_body_bytes: int | None = Field(default=None, gt=0)
    fair_tenants: bool = True
    tenant_weights: dict[str, Annotated[float, Field(gt=0, le=1e6)]] = Field(default_factory=dict)
    admission: AdmissionSettings = Field(default_factory=AdmissionSettings)
    router: str = "gain"

    @property
    def slos(self) -> SloTable:
        """The SLO table as ``lengthwise.data.slo`` reads it."""
        return SloTable.from_dict(self.slo_table)

    @property
    def logs_features(self) -> bool:
        """Whether the request log keeps what a predictor read of a prompt."""
        return self.request_log is not None and self.log_features

    @property
    def needs_features(self) -> bool:
        """Whether the engine process is told what a predictor read of a prompt."""
        return self.length_residual or self.logs_features

    def write(self, path: Path | str) -> Path:
        """Write the settings as JSON; return the path."""
        target = Path(path)
        target.parent.mkdir(parents=True, exist_ok=True)
        write_whole(target, self.model_dump_json(indent=1))
        return target


def make_settings(values: Mapping[str, Any]) -> ServerSettings:
    """Settings from plain values; InputError names the first bad key, its value and the rule."""
    try:
        settings = ServerSettings.model_validate(dict(values))
    except ValidationError as error:
        raise InputError(f"server setting {first_fault(error)}") from error
    SloTable.from_dict(settings.slo_table)
    if settings.router not in (*ROUTERS, NO_ROUTER):
        known = ", ".join((*ROUTERS, NO_ROUTER))
        raise InputError(f"server setting router: must be one of {known}, got {settings.router!r}")
    if settings.log_steps and settings.step_log is None:
        raise InputError("server setting log_steps: needs step_log, the file to write to")
    return settings


def first_fault(error: ValidationError) -> str:
    """One line for the first thing pydantic found: key, rule, value."""
    first = error.errors()[0]
    if not first["loc"] and first["type"] == "value_error":  # a rule over several, which says it
        return str(first["ctx"]["error"])
    key = ".".join(str(part) for part in first["loc"])
    if not key.isprintable() or len(key) > _LONGEST_KEY:  # whoever sent it chose it
        key = shown(key, _LONGEST_KEY)
    if first["type"] == "extra_forbidden":
        return f"{key}: no such key, got {shown(first['input'])}"
    return f"{key or '?'}: {first['msg']}, got {shown(first['input'])}"


def read_settings(path: Path | str) -> ServerSettings:
    """Read a settings file; InputError when it is missing or wrong."""
    return make_settings(read_object(path, "server settings"))


def settings_from_environment() -> ServerSettings:
    """The settings in the file named by the environment, else the defaults."""
    path = os.environ.get(SETTINGS_VARIABLE)
    return read_settings(path) if path else ServerSettings()
