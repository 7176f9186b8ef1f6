"""`lengthwise simulate`: policies on the modelled engine, same result document as `bench`."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from lengthwise.data.errors import InputError
from lengthwise.data.workload import WorkloadRequest
from lengthwise.scheduler.policies.make import make_policy
from lengthwise.scheduler.profile import EngineProfile
from lengthwise.scheduler.simulator.bound import attainment_bound
from lengthwise.scheduler.simulator.run import simulate
from lengthwise.scheduler.simulator.workload import SimResult
from lengthwise.training.bench.arms import Arm
from lengthwise.training.bench.client import QueueSample
from lengthwise.training.bench.provenance import utc_now
from lengthwise.training.bench.records import RequestRecord, paired_difference, summarize_arm
from lengthwise.training.bench.result import BenchResult
from lengthwise.training.bench.workload import WorkloadSource, capacity_rps, length_rows, to_sim

if TYPE_CHECKING:
    from lengthwise.predictor.model import LengthPredictor


MEDIAN = 0.5


@dataclass(frozen=True, slots=True)
class SimulateSettings:
    """What to simulate. `load` in multiples of capacity; None keeps a file's own arrivals."""

    arms: tuple[Arm, ...]
    load: float | None
    requests: int
    seeds: int = 1
    seed: int = 0
    budget_s: float = 0.001
    max_wait_s: float = 120.0
    arrival_rate_rps: float | None = None
    with_bound: bool = False


@dataclass(frozen=True, slots=True)
class SimulateOutcome:
    """The document, and the records and queue samples behind it, by arm label."""

    result: BenchResult
    records: dict[str, list[RequestRecord]]
    queue: dict[str, list[tuple[int, QueueSample]]]


def run_simulation(
    source: WorkloadSource,
    profile: EngineProfile,
    settings: SimulateSettings,
    *,
    predictor: LengthPredictor | None = None,
    predictor_label: str | None = None,
    on_step: Callable[[str], None] = lambda label: None,
) -> SimulateOutcome:
    """Run every arm on the same requests, `seeds` times with other draws of them.

    With `with_bound` the document says what no scheduler can exceed, the mean over the draws.

    Raises:
        InputError: a load that is not positive, `learned` without a predictor.
    """
    if settings.load is not None and not settings.load > 0:
        raise InputError(f"load must be above 0, got {settings.load:g}")
    capacity = capacity_rps(source, profile)
    records: dict[str, list[RequestRecord]] = {arm.label: [] for arm in settings.arms}
    queue: dict[str, list[tuple[int, QueueSample]]] = {arm.label: [] for arm in settings.arms}
    plan_s: dict[str, list[float]] = {arm.label: [] for arm in settings.arms}
    bounds: list[float] = []
    rate_rps = None if settings.load is None else settings.load * capacity
    for repeat in range(settings.seeds):
        seed = settings.seed + repeat
        requests = (
            list(source.requests[: settings.requests])
            if rate_rps is None
            else source.draw(settings.requests, rate_rps, seed)
        )
        if settings.with_bound:
            bounds.append(attainment_bound(to_sim(requests), profile))
            on_step("bound")
        for arm in settings.arms:
            quantiles, levels = length_rows(requests, arm.lengths, predictor)
            policy = make_policy(arm.policy, budget_s=settings.budget_s, seed=arm_seed(arm, seed))
            outcome = simulate(
                to_sim(requests, quantiles, levels),
                policy,
                profile,
                max_wait_s=settings.max_wait_s,
            )
            predicted = None
            if arm.lengths == "learned":
                predicted = quantiles[:, int(np.argmin(np.abs(levels - MEDIAN)))]
            records[arm.label] += to_records(requests, outcome, repeat, predicted)
            queue[arm.label] += queue_samples(requests, outcome, repeat)
            plan_s[arm.label] += list(outcome.plan_s)
            on_step(arm.label)
    arms = []
    for arm in settings.arms:
        times_ms = 1e3 * np.asarray(plan_s[arm.label])
        p50, p99 = np.quantile(times_ms, [0.5, 0.99]) if len(times_ms) else (None, None)
        arms.append(
            summarize_arm(
                arm.policy,
                arm.lengths,
                records[arm.label],
                plan_ms_p50=None if p50 is None else float(p50),
                plan_ms_p99=None if p99 is None else float(p99),
                seed=settings.seed,
            )
        )
    base = settings.arms[0].label
    result = BenchResult(
        provenance="modeled",
        workload=source.name,
        load=settings.load,
        predictor=predictor_label,
        source_label=source.source_label,
        arms=arms,
        bound=min(1.0, float(np.mean(bounds))) if bounds else None,
        run={
            "stamp": utc_now(),
            "profile": profile.name,
            "profile_provenance": profile.provenance,
            "capacity_rps": capacity,
            "rate_rps": rate_rps,
            "requests_per_seed": settings.requests,
            "seeds": settings.seeds,
            "first_seed": settings.seed,
            "arrivals": source.arrivals,
            "plan_budget_ms": settings.budget_s * 1e3,
            "max_wait_s": settings.max_wait_s,
        },
        against_base={
            arm.label: {"base": base}
            | paired_difference(records[arm.label], records[base], seed=settings.seed)
            for arm in settings.arms[1:]
        },
    )
    return SimulateOutcome(result, records, queue)


def arm_seed(arm: Arm, seed: int) -> int:
    """A policy seed of its own for each arm, the same in every process."""
    return zlib.crc32(f"{arm.label}/{seed}".encode()) & 0x7FFFFFFF


def to_records(
    requests: Sequence[WorkloadRequest],
    outcome: SimResult,
    repeat: int,
    predicted: np.ndarray | None,
) -> list[RequestRecord]:
    """One record a request; one the simulator never finished is lost."""
    records = []
    for i, request in enumerate(requests):
        first_s, finish_s = float(outcome.first_token_s[i]), float(outcome.finish_s[i])
        done = bool(np.isfinite(finish_s) and np.isfinite(first_s))
        records.append(
            RequestRecord(
                index=i,
                repeat=repeat,
                slo=request.slo,
                arrival_s=request.arrival_s,
                send_s=request.arrival_s,
                prompt_tokens=request.prompt_tokens,
                target_tokens=request.output_tokens,
                output_tokens=request.output_tokens if done else 0,
                ttft_s=first_s - request.arrival_s if done else None,
                e2e_s=finish_s - request.arrival_s if done else None,
                error=None if done else "not finished",
                predicted_tokens=None if predicted is None else float(predicted[i]),
            )
        )
    return records


def queue_samples(
    requests: Sequence[WorkloadRequest], outcome: SimResult, repeat: int, points: int = 200
) -> list[tuple[int, QueueSample]]:
    """Waiting and running requests at evenly spaced times, from the times of each request."""
    start = np.array([r.arrival_s for r in requests])
    return [
        (
            repeat,
            QueueSample(
                float(at),
                int(((start <= at) & (outcome.admitted_s > at)).sum()),
                int(((outcome.admitted_s <= at) & (outcome.finish_s > at)).sum()),
            ),
        )
        for at in np.linspace(0.0, outcome.end_s, points)
    ]
