"""Looking into and switching a running engine: the utility calls behind ``/lengthwise/``.

vLLM's client calls a method of ``EngineCore`` by name; ``attach`` puts ours there when the
scheduler module is imported, which happens inside the engine process. Arguments and results are
plain values, as msgpack needs.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from lengthwise.data.errors import InputError
from lengthwise.data.slo import SloTable
from lengthwise.predictor.serving.correction import OnlineCorrection
from lengthwise.scheduler.vllm_adapter.priors import load_priors
from lengthwise.scheduler.vllm_adapter.supported import versions
from lengthwise.scheduler.vllm_adapter.wire import (
    ADMIT_METHOD,
    CONFIGURE_METHOD,
    STATUS_METHOD,
    EngineRequest,
    parse_request,
)

if TYPE_CHECKING:
    from lengthwise.scheduler.vllm_adapter.engine.scheduler import LengthwiseScheduler


def attach() -> None:
    """Give ``EngineCore`` the utility methods; idempotent."""
    from vllm.v1.engine.core import EngineCore

    def status(core: Any) -> dict[str, Any]:
        return core.scheduler.lengthwise_status()

    def configure(core: Any, request: dict[str, Any]) -> dict[str, Any]:
        return core.scheduler.lengthwise_configure(request)

    def admit(core: Any, question: dict[str, Any]) -> dict[str, Any]:
        return core.scheduler.lengthwise_admit(question)

    setattr(EngineCore, STATUS_METHOD, status)
    setattr(EngineCore, ADMIT_METHOD, admit)
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
        "policy_version": planner.policy_version,
        "lengths": scheduler._intake.lengths,
        "predictor_dir": scheduler._predictor_dir,
        "versions": versions(),
        "queue": {
            "waiting": len(waiting),
            "recovering": scheduler.waiting.recovery_count,
            "running": len(scheduler.running),
            "by_class": by_class,
            "longest_wait_s": scheduler._longest_wait_s,
            "yields": scheduler._yields,
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
        "tenants": scheduler._outcomes.tenants.status(time.monotonic())
        | {"active": len(scheduler._table.tenants), "fair": settings.fair_tenants},
        "admission": {"mode": "off"}
        if scheduler._admission is None
        else scheduler._admission.status(),
        "length_correction": scheduler._intake.correction.learned(),
        "drift": scheduler._drift.status(),
        "request_log_dropped": scheduler._outcomes.dropped_rows,
        "tracked": len(scheduler._table),
    }


def engine_configure(scheduler: LengthwiseScheduler, body: dict[str, Any]) -> dict[str, Any]:
    """Apply a request whole or not at all; ``{"error": ...}`` says what was wrong."""
    planner, intake, settings = scheduler._planner, scheduler._intake, scheduler._settings
    priors = slos = policy = None
    try:
        request = parse_request(EngineRequest, body)
        if request.predictor_dir is not None:
            priors = load_priors(request.predictor_dir)
            if priors.levels.tolist() != scheduler._table.levels.tolist():
                raise InputError(
                    f"predictor {request.predictor_dir!r} has other quantile levels than the one "
                    "this server started with"
                )
        if request.slo_table is not None:
            slos = SloTable.from_dict(request.slo_table)
        if request.policy is not None:
            policy = planner.make(request.policy, request.policy_params)
        if request.log_steps is not None:
            if request.log_steps and settings.step_log is None:
                raise InputError("log_steps: this server was started without a step_log")
            scheduler._timer.set_log(settings.step_log if request.log_steps else None)
    except Exception as error:  # what is asked for may be odd in any way; serving goes on
        return {"error": str(error) if isinstance(error, ValueError | OSError) else repr(error)}
    if priors is not None:
        intake.switch_predictor(priors, request.predictor_version)
        scheduler._predictor_dir = request.predictor_dir
    if slos is not None:
        intake.switch_table(slos)
    if policy is not None:
        planner.use(policy)
    if request.lengths is not None:
        intake.lengths = request.lengths
    if request.reset_stats:
        planner.reset_stats()
        scheduler._outcomes.reset()
        intake.correction = OnlineCorrection()
        scheduler._longest_wait_s = 0.0
        scheduler._drift.reset()
    return {"policy": planner.policy.name, "lengths": intake.lengths}
