"""`lengthwise bench`: stock vLLM and our arms on the same requests, on the real engine.

Within a repeat every arm gets the same requests at the same times; repeats draw other requests and
rotate the order of the arms, so that a machine that slows down over minutes hurts all of them.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from lengthwise.data.errors import InputError
from lengthwise.data.workload import WorkloadRequest
from lengthwise.scheduler.vllm_adapter.emulated.steps import StepSummary, summarize_steps
from lengthwise.training.bench.arms import STOCK, Arm, arm_order, configure, server_status
from lengthwise.training.bench.client import BenchError, QueueSample, ReplayLog, replay, wait_idle
from lengthwise.training.bench.emulation import emulation_of, load_average
from lengthwise.training.bench.provenance import describe_machine, utc_now
from lengthwise.training.bench.records import (
    RequestRecord,
    loaded_tokens_per_s,
    measured_duration_s,
    paired_difference,
    summarize_arm,
)
from lengthwise.training.bench.result import BenchResult
from lengthwise.training.bench.servers import BenchServers, warm_up
from lengthwise.training.bench.workload import WorkloadSource, file_rate_rps, length_rows

if TYPE_CHECKING:
    from lengthwise.predictor.model import LengthPredictor


STOCK_ARM = Arm(STOCK, "none")
DEFAULT_DURATION_S = 60.0


@dataclass(frozen=True, slots=True)
class BenchSettings:
    """What to run. Give `requests` or `duration_s`; `load` is a multiple of `capacity_rps`.

    `load` None replays a workload file at its own pace.
    """

    arms: tuple[Arm, ...]
    capacity_rps: float
    load: float | None = 1.5
    requests: int | None = None
    duration_s: float | None = None
    repeats: int = 3
    seed: int = 0
    timeout_s: float = 600.0

    def __post_init__(self) -> None:
        positive = {
            "load": self.load,
            "capacity": self.capacity_rps,
            "requests": self.requests,
            "duration": self.duration_s,
            "repeats": self.repeats,
            "timeout": self.timeout_s,
        }
        for name, value in positive.items():
            if value is not None and not (value > 0 and math.isfinite(value)):
                raise InputError(f"{name} must be above 0, got {value:g}")

    def count(self, source: WorkloadSource) -> int:
        """Requests per repeat."""
        if self.requests is not None:
            return self.requests
        if self.load is None:
            return len(source.requests)
        seconds = self.duration_s or DEFAULT_DURATION_S
        return max(1, round(self.load * self.capacity_rps * seconds))


@dataclass(slots=True)
class ArmLog:
    """Everything seen of one arm, over all repeats."""

    records: list[RequestRecord] = field(default_factory=list)
    queue: list[tuple[int, QueueSample]] = field(default_factory=list)
    plans: list[dict[str, Any]] = field(default_factory=list)
    steps: list[StepSummary] = field(default_factory=list)  # a run, where they are emulated


@dataclass(frozen=True, slots=True)
class BenchOutcome:
    """The document, and the records and queue samples behind it, by arm label."""

    result: BenchResult
    records: dict[str, list[RequestRecord]]
    queue: dict[str, list[tuple[int, QueueSample]]]


def run_bench(
    servers: BenchServers,
    source: WorkloadSource,
    settings: BenchSettings,
    *,
    predictor: LengthPredictor | None = None,
    predictor_label: str | None = None,
    run_info: dict[str, Any] | None = None,
    on_run: Callable[[str, int, int], Callable[[], None]] | None = None,
    say: Callable[[str], None] = lambda text: None,
) -> BenchOutcome:
    """Measure stock (where it is up) and every arm, `repeats` times.

    Args:
        servers: running servers.
        source: of the requests.
        settings: arms, load, repeats.
        predictor: the one our server uses; only to record what it said (predicted against true).
        predictor_label: its URI.
        run_info: further provenance for the document.
        on_run: called with arm, repeat and number of requests as a run begins; returns the
            function to call as each answer ends.
        say: told one line as a run ends.
    """
    arms = settings.arms if servers.stock is None else (STOCK_ARM, *settings.arms)
    logs = {arm.label: ArmLog() for arm in arms}
    started = time.perf_counter()
    stamp = utc_now()
    warm = source.sample(24)
    for server in (servers.ours, servers.stock):
        if server is not None:
            asyncio.run(warm_up(servers, server.url, warm))
    limits = asyncio.run(server_status(servers.ours.url)).get("capacity")
    offered_rps, offered_tokens_per_s = [], []
    for repeat in range(settings.repeats):
        requests = draw(source, settings, repeat)
        offered_rps.append(file_rate_rps(requests))
        mean_tokens = float(np.mean([r.output_tokens for r in requests]))
        offered_tokens_per_s.append(offered_rps[-1] * mean_tokens)
        predicted = predicted_tokens(requests, predictor)
        for arm in arm_order(arms, repeat):
            tick = on_run(arm.label, repeat, len(requests)) if on_run else lambda: None
            steps = None if servers.emulated is None else servers.emulated.steps_of(arm.is_stock)
            if steps is not None:
                steps.new()
            log, status = asyncio.run(run_arm(servers, arm, requests, repeat, settings, tick))
            if steps is not None:
                logs[arm.label].steps.append(summarize_steps(steps.new()))
            told = predicted if arm.lengths == "learned" else None
            records = to_records(requests, log, repeat, told)
            logs[arm.label].records += records
            say(run_line(arm, repeat, settings.repeats, records))
            logs[arm.label].queue += [(repeat, s) for s in log.queue]
            if status is not None:
                logs[arm.label].plans.append(status.get("plan") or {})
    result = BenchResult(
        provenance="measured" if servers.emulated is None else "emulated",
        emulation=None
        if servers.emulated is None
        else emulation_of(
            servers.emulated.profile,
            [summary for log in logs.values() for summary in log.steps],
            load_average=load_average(),
        ),
        workload=source.name,
        load=settings.load,
        predictor=predictor_label,
        source_label=source.source_label,
        arms=[summarize_log(arm, logs[arm.label], settings.seed) for arm in arms],
        run={
            "stamp": stamp,
            "model": servers.model,
            "vllm_args": " ".join(servers.vllm_args),
            "engine_limits": limits,
            "machine": describe_machine(),
            "capacity_rps": settings.capacity_rps,
            "offered_rps": float(np.mean(offered_rps)),
            "offered_output_tokens_per_s": float(np.mean(offered_tokens_per_s)),
            "arrivals": source.arrivals if source.table is not None else "file",
            "requests_per_repeat": settings.count(source),
            "repeats": settings.repeats,
            "first_seed": settings.seed,
            "duration_s": time.perf_counter() - started,
            "interval": "block bootstrap over arrival order, blocks of sqrt(n), pooled repeats",
            **(run_info or {}),
        },
        diagnostics={label: diagnose(log) for label, log in logs.items()},
        against_base={
            arm.label: {"base": arms[0].label}
            | paired_difference(
                logs[arm.label].records, logs[arms[0].label].records, seed=settings.seed
            )
            for arm in arms[1:]
        },
    )
    return BenchOutcome(
        result,
        {label: log.records for label, log in logs.items()},
        {label: log.queue for label, log in logs.items()},
    )


def draw(source: WorkloadSource, settings: BenchSettings, repeat: int) -> list[WorkloadRequest]:
    """The requests of one repeat, the same for every arm."""
    n = settings.count(source)
    if settings.load is None:
        return list(source.requests[:n])
    return source.draw(n, settings.load * settings.capacity_rps, settings.seed + repeat)


async def run_arm(
    servers: BenchServers,
    arm: Arm,
    requests: Sequence[WorkloadRequest],
    repeat: int,
    settings: BenchSettings,
    tick: Callable[[], None],
) -> tuple[ReplayLog, dict[str, Any] | None]:
    """One run of one arm, from an idle server to an idle server."""
    server = servers.stock if arm.is_stock else servers.ours
    if server is None:
        raise BenchError("no stock server is up")
    for other in (servers.stock, servers.ours):
        if other is not None:
            await wait_idle(other.url)
    if not arm.is_stock:
        await configure(server.url, arm)
    calls = servers.calls(
        requests, salt=f"{arm.label}-{repeat}", tell_length=arm.lengths == "oracle"
    )
    log = await replay(server.url, calls, timeout_s=settings.timeout_s, on_done=tick)
    await wait_idle(server.url)
    return log, None if arm.is_stock else await server_status(server.url)


def run_line(arm: Arm, repeat: int, repeats: int, records: Sequence[RequestRecord]) -> str:
    """One finished run in one line."""
    met = sum(r.met for r in records)
    lost = sum(not r.ok for r in records)
    return (
        f"{arm.label}, repeat {repeat + 1}/{repeats}: {met} of {len(records)} met their SLO, "
        f"{lost} lost, {measured_duration_s(records):.0f} s"
    )


def predicted_tokens(
    requests: Sequence[WorkloadRequest], predictor: LengthPredictor | None
) -> np.ndarray | None:
    """Median predictions (n,) for the report."""
    if predictor is None:
        return None
    rows, levels = length_rows(requests, "learned", predictor)
    return rows[:, int(np.argmin(np.abs(levels - 0.5)))]


def to_records(
    requests: Sequence[WorkloadRequest],
    log: ReplayLog,
    repeat: int,
    predicted: np.ndarray | None,
) -> list[RequestRecord]:
    """One record a request."""
    return [
        RequestRecord(
            index=i,
            repeat=repeat,
            slo=request.slo,
            arrival_s=request.arrival_s,
            send_s=reply.send_s,
            prompt_tokens=reply.prompt_tokens or request.prompt_tokens,
            target_tokens=request.output_tokens,
            output_tokens=reply.output_tokens,
            ttft_s=reply.ttft_s,
            e2e_s=reply.e2e_s,
            error=reply.error,
            predicted_tokens=None if predicted is None else float(predicted[i]),
        )
        for i, (request, reply) in enumerate(zip(requests, log.replies, strict=True))
    ]


def summarize_log(arm: Arm, log: ArmLog, seed: int) -> dict[str, Any]:
    """The arm's entry: over repeats the mean of the median plan times and the worst p99."""
    p50 = [float(p["ms_p50"]) for p in log.plans if "ms_p50" in p]
    p99 = [float(p["ms_p99"]) for p in log.plans if "ms_p99" in p]
    return summarize_arm(
        arm.policy,
        arm.lengths,
        log.records,
        plan_ms_p50=float(np.mean(p50)) if p50 else None,
        plan_ms_p99=max(p99) if p99 else None,
        seed=seed,
    )


def diagnose(log: ArmLog) -> dict[str, Any]:
    """What a reader needs to trust the arm's figures."""
    lag_ms = 1e3 * np.array([r.send_lag_s for r in log.records])
    repeats = sorted({r.repeat for r in log.records})
    waiting = [s.waiting for _, s in log.queue]
    return {
        "send_lag_ms_p99": float(np.quantile(lag_ms, 0.99)),
        "send_lag_ms_max": float(lag_ms.max()),
        "length_mismatches": sum(r.ok and r.output_tokens != r.target_tokens for r in log.records),
        "loaded_tokens_per_s": loaded_tokens_per_s(log.records),
        "mean_queue": float(np.mean(waiting)) if waiting else None,
        "max_queue": max(waiting, default=None),
        "plans": sum(int(p.get("count", 0)) for p in log.plans),
        "plan_fallbacks": sum(sum((p.get("fallbacks") or {}).values()) for p in log.plans),
        "attainment_by_repeat": [
            round(float(np.mean([r.met for r in log.records if r.repeat == k])), 4) for k in repeats
        ],
        **_step_figures(log.steps),
        "first_error": next((r.error for r in log.records if r.error), None),
    }


def _step_figures(runs: Sequence[StepSummary]) -> dict[str, Any]:
    if not runs:
        return {}
    ratios = [s.step_ratio for s in runs if s.step_ratio is not None]
    return {
        "steps": sum(s.steps for s in runs),
        "step_ratio": max(ratios, default=None),
        "late_steps": sum(s.late_steps for s in runs),
    }
