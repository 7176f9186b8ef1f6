"""What the engine process knows, as plain values for the status endpoint."""

from __future__ import annotations

from typing import Any

from lengthwise.scheduler.serving.engine.core import Core


def core_status(core: Core, now_s: float) -> dict[str, Any]:
    """Of each part what it says of itself."""
    planner = core.planner
    return {
        "policy": planner.policy.name,
        "policy_version": planner.policy_version,
        "policy_params": dict(planner.policy_params),
        "lengths": core.intake.lengths,
        "predictor_dir": core.intake.predictor_dir,
        "versions": dict(core.versions),
        "queue": _queue_status(core),
        "capacity": planner.capacity_status(),
        "prefix_cache": ({"block_tokens": core.block_tokens} if core.caches_prefixes else None),
        "plan": planner.status(now_s) | core.decisions.status(now_s),
        "step_time": planner.fitted.to_dict()
        | {"steps": core.timer.steps, "refits": core.refit.adopted}
        | {"measured_over_modelled": planner.step_clock.ratio}
        | {"tokens_per_step": core.tokens_per_step.mean}
        | {"cached_share": core.cached_share.mean},
        "outcomes": core.outcomes.by_class(),
        "tenants": core.outcomes.tenants.status(now_s)
        | {"active": len(core.table.tenants), "fair": core.settings.fair_tenants},
        "without_text": core.intake.without_text,
        "reestimates": dict(core.reestimates.counts),
        "length_correction": core.intake.online.correction.learned(),
        "length_residual": core.length_fits.status(core.intake.online),
        "drift": core.drift.status(),
        "request_log_dropped": core.outcomes.dropped_rows,
        "tracked": len(core.table),
    }


def _queue_status(core: Core) -> dict[str, Any]:
    by_class: dict[str, int] = {}
    for request in core.queue:
        tracked = core.table.get(request.request_id)
        name = tracked.slo.slo_class if tracked else "unknown"
        by_class[name] = by_class.get(name, 0) + 1
    return {
        "waiting": len(core.queue),
        "recovering": core.queue.recovery_count,
        "paused": core.decisions.paused,
        "max_running": min(core.slots, core.decisions.in_force.max_running or core.slots),
        "running": core.running_count,
        "by_class": by_class,
        "longest_wait_s": core.progress.longest_wait_s,
        "yields": core.yields,
        "max_wait_s": core.settings.max_wait_s,
    }
