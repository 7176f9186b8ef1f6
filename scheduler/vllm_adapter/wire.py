"""What the API process and the engine process say to each other, and what both hold it to.

Names of utility calls and their bodies, quantiles and tenants as they travel in ``vllm_xargs``,
what an admission question is answered with. Nothing here runs in one process only.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
from pydantic import BaseModel, ConfigDict, ValidationError

from lengthwise.data.arrays import FloatArray
from lengthwise.data.errors import InputError, shown
from lengthwise.scheduler.vllm_adapter.settings import Lengths, first_fault

STATUS_METHOD = "lengthwise_status"
CONFIGURE_METHOD = "lengthwise_configure"
ADMIT_METHOD = "lengthwise_admit"

DEFAULT_LEVELS = (0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99)
MAX_TOKENS_LIMIT = 10_000_000

DOWNGRADED = "downgraded"  # what admission control made of a request's objectives
CLIENT_LENGTH = "osl"  # the version of a length that the client gave

TENANT_HEADER = "x-tenant"
_NAME = re.compile(r"[A-Za-z0-9_.:-]{1,64}")


@dataclass(frozen=True, slots=True)
class Prediction:
    """What is attached to a request: quantiles in tokens on the predictor's levels."""

    quantiles: list[float]
    version: str | None
    features: list[float] | None = None
    contract: str | None = None


@dataclass(frozen=True, slots=True)
class Answer:
    """The engine's verdict; ``retry_after_s`` where the request is to be shed."""

    action: str = "admit"
    retry_after_s: float | None = None


def clipped(quantiles: list[float], max_tokens: int | None) -> list[float]:
    """Quantiles in tokens, rounded to hundredths for the wire, at least 1, at most the limit."""
    most = math.inf if max_tokens is None else max(1, max_tokens)
    return [max(1.0, min(round(value, 2), most)) for value in quantiles]


def check_quantiles(values: Any, count: int) -> FloatArray | None:
    """A prediction off the wire as ``(q,)`` non-decreasing tokens >= 1; None when malformed."""
    if not isinstance(values, list | tuple) or len(values) != count:
        return None
    try:
        row = np.asarray(values, dtype=np.float64)
    except (TypeError, ValueError):
        return None
    if not np.isfinite(row).all() or row[0] < 1 or row[-1] > MAX_TOKENS_LIMIT:
        return None
    return row if bool((np.diff(row) >= 0).all()) else None


def clip_to_max_tokens(quantiles: FloatArray, max_tokens: int | None) -> FloatArray:
    """An answer cannot be longer than the client allows."""
    return quantiles if not max_tokens else np.minimum(quantiles, float(max(1, max_tokens)))


def parse_tenant(xargs: Mapping[str, Any], headers: Mapping[str, str]) -> str | None:
    """The tenant's name, or None; InputError for one that breaks the rule."""
    name = headers.get(TENANT_HEADER)
    if name is None:
        name = xargs.get("tenant")
    if name is not None and not is_tenant(name):
        raise InputError(f"tenant must be 1-64 letters, digits or _.:-, got {shown(name)}")
    return name


def is_tenant(name: Any) -> bool:
    """Whether this may be a tenant's name."""
    return isinstance(name, str) and _NAME.fullmatch(name) is not None


class ConfigureRequest(BaseModel):
    """Body of ``POST /lengthwise/configure``; what is absent stays as it is.

    ``log_steps`` writes steps to the file of the server's own setting ``step_log``, or stops it.
    """

    model_config = ConfigDict(extra="forbid")

    policy: str | None = None
    lengths: Lengths | None = None
    log_steps: bool | None = None
    reset_stats: bool = False


class EngineRequest(ConfigureRequest):
    """What the API process may tell the engine: no client can name these paths and tables.

    ``predictor_dir`` (with its label ``predictor_version``) is another predictor, of
    the same levels.
    """

    predictor_dir: str | None = None
    predictor_version: str | None = None
    policy_params: dict[str, Any] | None = None
    slo_table: dict[str, dict[str, float]] | None = None


_Request = TypeVar("_Request", bound=ConfigureRequest)


def parse_request(kind: type[_Request], body: Any) -> _Request:
    """A checked request of this kind; InputError names the key and the rule."""
    try:
        return kind.model_validate(body)
    except ValidationError as error:
        raise InputError(first_fault(error)) from error
