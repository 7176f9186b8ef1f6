"""The comparison of arms on the same requests, whatever serves them.

Within a repeat every arm gets the same requests at the same times; repeats draw other requests and
rotate the order of the arms, so that a machine that slows down over minutes hurts all of them.
Who serves is the runner's business: the real engine (`engine_runner`), or the simulator
(`simulator_runner`).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from lengthwise.data.workload import WorkloadRequest
from lengthwise.training.bench.comparison.arms import Arm, arm_order
from lengthwise.training.bench.comparison.bench_settings import BenchSettings
from lengthwise.training.bench.comparison.workload_source import WorkloadSource, file_rate_rps
from lengthwise.training.bench.engines.client import QueueSample
from lengthwise.training.bench.results.provenance import utc_now
from lengthwise.training.bench.results.records import (
    RequestRecord,
    loaded_tokens_per_s,
    measured_duration_s,
    paired_difference,
    summarize_arm,
)
from lengthwise.training.bench.results.result import BenchResult, Provenance

Tick = Callable[[], None]


def no_tick() -> None:
    """Nobody watches."""


@dataclass(frozen=True, slots=True)
class PlanTimes:
    """How many plans a run took, what they cost, and how many fell back to arrival order."""

    count: int = 0
    ms_p50: float | None = None
    ms_p99: float | None = None
    fallbacks: int = 0


@dataclass(frozen=True, slots=True)
class Run:
    """One arm on one draw of the requests; records in the order of the requests."""

    repeat: int
    records: Sequence[RequestRecord]
    queue: Sequence[QueueSample] = ()
    plans: PlanTimes | None = None


class Runner(Protocol):
    """What serves the requests of a comparison.

    `engine` names it in the document, `base_arms` are always compared, first.
    """

    provenance: Provenance
    engine: str
    base_arms: tuple[Arm, ...]

    def start(self, source: WorkloadSource) -> None:
        """Get ready; called once, before the first run."""
        ...

    def run(
        self, arm: Arm, requests: Sequence[WorkloadRequest], repeat: int, tick: Tick = no_tick
    ) -> Run:
        """Serve `requests` by `arm`, from an idle engine to an idle one; `tick` as each ends."""
        ...

    def describe(self) -> dict[str, Any]:
        """What a reader must know of it, for the document's `run`."""
        ...


@dataclass(frozen=True, slots=True)
class Comparison:
    """The document, and the records and queue samples behind it, by arm label."""

    result: BenchResult
    records: dict[str, list[RequestRecord]]
    queue: dict[str, list[tuple[int, QueueSample]]]


def compare(
    source: WorkloadSource,
    settings: BenchSettings,
    runner: Runner,
    *,
    capacity_rps: float | None = None,
    predictor_label: str | None = None,
    run_info: dict[str, Any] | None = None,
    bound: Callable[[Sequence[WorkloadRequest]], float] | None = None,
    workers: int = 1,
    on_run: Callable[[str, int, int], Tick] | None = None,
    say: Callable[[str], None] = lambda text: None,
) -> Comparison:
    """Run every arm on the same requests, as often as the settings say; the first is the base.

    Args:
        source: of the requests.
        settings: arms, load, requests, repeats, seed.
        runner: what serves them.
        capacity_rps: requests/s that are load 1; needed where a load is set.
        predictor_label: the URI of the predictor that any arm uses.
        run_info: further provenance for the document.
        bound: the attainment no scheduler can exceed on some requests; None leaves it out.
        workers: how many runs at once, of a runner whose runs do not disturb each other.
        on_run: called with arm, repeat and number of requests as a run begins; returns the
            function to call as each answer ends.
        say: told one line as a run ends.

    Raises:
        InputError: a named workload without a load.
    """
    arms = (*runner.base_arms, *settings.arms)
    repeats = settings.times(source)
    began, stamp = time.perf_counter(), utc_now()
    draws = [draw(source, settings, repeat, capacity_rps) for repeat in range(repeats)]
    runner.start(source)
    bounds = [] if bound is None else [bound(requests) for requests in distinct(draws)]
    tasks = [(arm, repeat) for repeat in range(repeats) for arm in arm_order(arms, repeat)]

    def run(task: tuple[Arm, int]) -> Run:
        arm, repeat = task
        requests = draws[repeat]
        tick = on_run(arm.label, repeat, len(requests)) if on_run else no_tick
        done = runner.run(arm, requests, repeat, tick)
        say(run_line(arm, repeat, repeats, done.records))
        return done

    runs: dict[str, list[Run]] = {arm.label: [] for arm in arms}
    with ThreadPoolExecutor(workers) as pool:
        for (arm, _), done in zip(
            tasks, map(run, tasks) if workers == 1 else pool.map(run, tasks), strict=True
        ):
            runs[arm.label].append(done)
    records = {label: [r for one in own for r in one.records] for label, own in runs.items()}
    offered_rps = [file_rate_rps(requests) for requests in draws]
    mean_tokens = [float(np.mean([r.output_tokens for r in requests])) for requests in draws]
    base = arms[0].label
    result = BenchResult(
        provenance=runner.provenance,
        engine=runner.engine,
        workload=source.name,
        load=settings.load,
        predictor=predictor_label,
        source_label=source.source_label,
        arms=[
            summarize_runs(arm, records[arm.label], runs[arm.label], settings.seed) for arm in arms
        ],
        bound=min(1.0, float(np.mean(bounds))) if bounds else None,
        run={
            "stamp": stamp,
            **runner.describe(),
            "capacity_rps": capacity_rps,
            "offered_rps": float(np.mean(offered_rps)),
            "offered_output_tokens_per_s": float(np.mean(np.multiply(offered_rps, mean_tokens))),
            "arrivals": source.arrivals if source.table is not None else "file",
            "requests_in_file": len(source.requests) or None,
            "requests_per_repeat": len(draws[0]),
            "repeats": repeats,
            "first_seed": settings.seed,
            "duration_s": time.perf_counter() - began,
            "interval": "block bootstrap over arrival order, blocks of sqrt(n), pooled repeats",
            **(run_info or {}),
        },
        diagnostics={label: diagnose(records[label], own) for label, own in runs.items()},
        against_base={
            arm.label: {"base": base}
            | paired_difference(records[arm.label], records[base], seed=settings.seed)
            for arm in arms[1:]
        },
    )
    queue = {
        label: [(one.repeat, sample) for one in own for sample in one.queue]
        for label, own in runs.items()
    }
    return Comparison(result, records, queue)


def draw(
    source: WorkloadSource, settings: BenchSettings, repeat: int, capacity_rps: float | None
) -> list[WorkloadRequest]:
    """The requests of one repeat, the same for every arm."""
    n = settings.count(source, capacity_rps)
    if settings.load is None and source.table is None:
        return list(source.requests[:n])
    return source.draw(n, settings.rate_rps(source, capacity_rps), settings.seed + repeat)


def distinct(draws: Sequence[list[WorkloadRequest]]) -> list[list[WorkloadRequest]]:
    """The draws that differ: those of a file are all the same."""
    return [requests for i, requests in enumerate(draws) if requests not in draws[:i]]


def run_line(arm: Arm, repeat: int, repeats: int, records: Sequence[RequestRecord]) -> str:
    """One finished run in one line."""
    met = sum(r.met for r in records)
    lost = sum(not r.ok for r in records)
    return (
        f"{arm.label}, repeat {repeat + 1}/{repeats}: {met} of {len(records)} met their SLO, "
        f"{lost} lost, {measured_duration_s(records):.0f} s"
    )


def summarize_runs(
    arm: Arm, records: Sequence[RequestRecord], runs: Sequence[Run], seed: int
) -> dict[str, Any]:
    """The arm's entry: over repeats the mean of the median plan times and the worst p99."""
    plans = [run.plans for run in runs if run.plans is not None]
    p50 = [p.ms_p50 for p in plans if p.ms_p50 is not None]
    p99 = [p.ms_p99 for p in plans if p.ms_p99 is not None]
    entry = summarize_arm(
        arm.policy,
        arm.lengths,
        records,
        plan_ms_p50=float(np.mean(p50)) if p50 else None,
        plan_ms_p99=max(p99) if p99 else None,
        seed=seed,
    )
    return entry | {"name": arm.name, "router": arm.router}


def diagnose(records: Sequence[RequestRecord], runs: Sequence[Run]) -> dict[str, Any]:
    """What a reader needs to trust the arm's figures."""
    lag_ms = 1e3 * np.array([r.send_lag_s for r in records])
    waiting = [sample.waiting for run in runs for sample in run.queue]
    plans = [run.plans for run in runs if run.plans is not None]
    return {
        "send_lag_ms_p99": float(np.quantile(lag_ms, 0.99)),
        "send_lag_ms_max": float(lag_ms.max()),
        "length_mismatches": sum(r.ok and r.output_tokens != r.target_tokens for r in records),
        "cut_at_max_tokens": sum(r.cut for r in records),
        "loaded_tokens_per_s": loaded_tokens_per_s(records),
        "mean_queue": float(np.mean(waiting)) if waiting else None,
        "max_queue": max(waiting, default=None),
        "plans": sum(p.count for p in plans),
        "plan_fallbacks": sum(p.fallbacks for p in plans),
        "attainment_by_repeat": [
            round(float(np.mean([r.met for r in run.records])), 4) for run in runs
        ],
        "first_error": next((r.error for r in records if r.error), None),
    }
