"""`lengthwise bench --emulate PROFILE --warp`: real schedulers in warped time, no server.

Stock vLLM and our arms, each on engine cores of its own, in a player process (see
`scheduler/vllm_adapter/emulated`); the same result document as `bench`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from lengthwise.data.errors import InputError
from lengthwise.data.workload import WorkloadRequest
from lengthwise.scheduler.profile import EngineProfile
from lengthwise.scheduler.vllm_adapter.emulated.options import context_tokens
from lengthwise.scheduler.vllm_adapter.emulated.player import ROUTES, Job, JobOutcome, JobRequest
from lengthwise.scheduler.vllm_adapter.emulated.player_process import PlayerProcess
from lengthwise.scheduler.vllm_adapter.emulated.steps import StepSummary
from lengthwise.scheduler.vllm_adapter.settings import make_settings
from lengthwise.training.bench.arms import STOCK, Arm
from lengthwise.training.bench.client import QueueSample
from lengthwise.training.bench.compare import STOCK_ARM, BenchOutcome
from lengthwise.training.bench.emulation import emulation_of, load_average
from lengthwise.training.bench.provenance import describe_machine, utc_now
from lengthwise.training.bench.records import RequestRecord, paired_difference, summarize_arm
from lengthwise.training.bench.result import BenchResult
from lengthwise.training.bench.workload import WorkloadSource, capacity_rps, length_rows

if TYPE_CHECKING:
    from lengthwise.predictor.model import LengthPredictor

_QUEUE_POINTS = 200
_MEDIAN = 0.5


@dataclass(frozen=True, slots=True)
class WarpedSettings:
    """What to play. `load` in multiples of all instances' capacity; None keeps a file's arrivals.

    `search_steps`: of the annealing a plan, in place of a time. `planned_profile`: what our
    planner takes the engine for; by default what it is. `host_factor` charges the clock with the
    host's processor time so many times; 0 makes a run repeat to the bit.
    """

    arms: tuple[Arm, ...]
    load: float | None
    requests: int = 1
    seeds: int = 1
    seed: int = 0
    search_steps: int = 300
    max_wait_s: float = 120.0
    instances: int = 1
    route: str = ROUTES[0]
    host_factor: float = 0.0
    planned_profile: str | None = None
    policy_params: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in ("load", "requests", "seeds", "max_wait_s", "instances"):
            value = getattr(self, name)
            if value is not None and not (value > 0 and math.isfinite(value)):
                raise InputError(f"{name} must be above 0, got {value:g}")
        if self.search_steps < 0:
            raise InputError(f"search_steps must not be negative, got {self.search_steps}")
        if self.route not in ROUTES:
            raise InputError(f"route must be one of {', '.join(ROUTES)}, got {self.route!r}")
        if not 0 <= self.host_factor <= 100:
            raise InputError(f"host_factor must lie from 0 to 100, got {self.host_factor:g}")


@dataclass(frozen=True, slots=True)
class WarpedRun:
    """One arm's run: its records, queue, and what the engines said."""

    records: list[RequestRecord]
    queue: list[tuple[int, QueueSample]]
    outcome: JobOutcome

    @property
    def steps(self) -> list[StepSummary]:
        """Steps against the profile, an engine each."""
        return [StepSummary(**values) for values in self.outcome.steps]


@dataclass(frozen=True, slots=True)
class WarpedRunner:
    """Plays arms on engines of one profile; `device` is the profile's name or file."""

    player: PlayerProcess
    device: str
    profile: EngineProfile
    model_dir: Path
    settings: WarpedSettings
    predictor: LengthPredictor | None = None
    predictor_dir: Path | None = None

    def run(self, arm: Arm, requests: Sequence[WorkloadRequest], repeat: int) -> WarpedRun:
        """One run on fresh engines.

        Raises:
            InputError: a request that the engine cannot hold, `learned` without a predictor.
        """
        check_fits(requests, context_tokens(self.profile))
        seed = self.settings.seed + repeat
        rows, levels = length_rows(requests, lengths_of(arm), self.predictor)
        job = Job(
            profile=self.device,
            model_dir=str(self.model_dir),
            requests=tuple(to_job(requests, None if arm.is_stock else rows)),
            settings=None if arm.is_stock else self._server_settings(arm, seed),
            instances=self.settings.instances,
            route=self.settings.route,
            host_factor=self.settings.host_factor,
            seed=seed,
        )
        outcome = self.player.run(job)
        told = None
        if arm.lengths == "learned":
            told = rows[:, int(np.argmin(np.abs(levels - _MEDIAN)))]
        return WarpedRun(
            to_records(requests, outcome, repeat, told),
            [(repeat, sample) for sample in queue_samples(requests, outcome)],
            outcome,
        )

    def _server_settings(self, arm: Arm, seed: int) -> dict[str, Any]:
        params = dict(self.settings.policy_params) if arm.policy == "sa" else {}
        if arm.policy == "sa":
            params.setdefault("iterations", self.settings.search_steps)
        settings = make_settings(
            {
                "policy": arm.policy,
                "policy_params": params,
                # rows are told for these too, since without a predictor the engine has no classes
                "lengths": "class" if arm.lengths == "none" else arm.lengths,
                "predictor_dir": None if self.predictor_dir is None else str(self.predictor_dir),
                "max_wait_s": self.settings.max_wait_s,
                "profile": self.settings.planned_profile or self.device,
                "refit_steps": 0,
                "seed": seed,
            }
        )
        return settings.model_dump(mode="json")


def lengths_of(arm: Arm) -> str:
    """Where the lengths that the engine is told come from; stock looks at none."""
    return "none" if arm.is_stock else arm.lengths


def check_fits(requests: Sequence[WorkloadRequest], most_tokens: int) -> None:
    """InputError for a request that an engine with so much context can never answer."""
    for index, request in enumerate(requests):
        total = request.prompt_tokens + request.output_tokens
        if total > most_tokens:
            raise InputError(
                f"request {index} has {request.prompt_tokens} prompt and {request.output_tokens} "
                f"output tokens; this engine holds {most_tokens} a request"
            )


def to_job(requests: Sequence[WorkloadRequest], rows: np.ndarray | None) -> list[JobRequest]:
    """The requests as a server's middleware would pass them on, with length quantiles (n, q)."""
    made = []
    for index, request in enumerate(requests):
        xargs = dict(request.slo.to_xargs())
        if rows is not None:
            row = np.maximum.accumulate(np.maximum(np.round(rows[index], 2), 1.0))
            xargs["pred_quantiles"] = row.tolist()
        made.append(
            JobRequest(
                arrival_s=request.arrival_s,
                prompt_tokens=request.prompt_tokens,
                output_tokens=request.output_tokens,
                prefix=request.prefix,
                prefix_tokens=request.prefix_tokens or 0,
                xargs=xargs,
            )
        )
    return made


def to_records(
    requests: Sequence[WorkloadRequest],
    outcome: JobOutcome,
    repeat: int,
    predicted: np.ndarray | None,
) -> list[RequestRecord]:
    """One record a request; one without a last token is lost."""
    records = []
    for i, request in enumerate(requests):
        first_s, last_s = outcome.first_s[i], outcome.last_s[i]
        done = first_s is not None and last_s is not None
        records.append(
            RequestRecord(
                index=i,
                repeat=repeat,
                slo=request.slo,
                arrival_s=request.arrival_s,
                send_s=request.arrival_s,
                prompt_tokens=request.prompt_tokens,
                target_tokens=request.output_tokens,
                output_tokens=outcome.tokens[i],
                ttft_s=first_s - request.arrival_s if first_s is not None else None,
                e2e_s=last_s - request.arrival_s if last_s is not None else None,
                error=None if done else "not finished",
                predicted_tokens=None if predicted is None else float(predicted[i]),
            )
        )
    return records


def queue_samples(requests: Sequence[WorkloadRequest], outcome: JobOutcome) -> list[QueueSample]:
    """Requests without and with a first token at evenly spaced times."""
    arrival = np.array([r.arrival_s for r in requests])
    first = np.array([np.inf if s is None else s for s in outcome.first_s])
    last = np.array([np.inf if s is None else s for s in outcome.last_s])
    return [
        QueueSample(
            float(at),
            int(((arrival <= at) & (first > at)).sum()),
            int(((first <= at) & (last > at)).sum()),
        )
        for at in np.linspace(0.0, outcome.virtual_s, _QUEUE_POINTS)
    ]


def run_warped(
    runner: WarpedRunner,
    source: WorkloadSource,
    *,
    capacity: float | None = None,
    predictor_label: str | None = None,
    on_run: Callable[[str, int], None] = lambda label, repeat: None,
    say: Callable[[str], None] = lambda text: None,
) -> BenchOutcome:
    """Play stock vLLM and every arm on the same requests, `seeds` times with other draws.

    Args:
        runner: of the runs; its settings say which.
        source: of the requests.
        capacity: requests/s that count as load 1 for one engine; by the profile where None.
        predictor_label: the predictor's URI.
        on_run: called with arm and repeat when a run has ended.
        say: told one line as a run ends.
    """
    settings, profile = runner.settings, runner.profile
    arms = (STOCK_ARM, *settings.arms)
    capacity = (capacity or capacity_rps(source, profile)) * settings.instances
    rate_rps = None if settings.load is None else settings.load * capacity
    runs: dict[str, list[WarpedRun]] = {arm.label: [] for arm in arms}
    started_load, stamp = load_average(), utc_now()
    for repeat in range(settings.seeds):
        requests = (
            list(source.requests[: settings.requests])
            if rate_rps is None
            else source.draw(settings.requests, rate_rps, settings.seed + repeat)
        )
        for arm in arms:
            run = runner.run(arm, requests, repeat)
            runs[arm.label].append(run)
            met = sum(r.met for r in run.records)
            say(
                f"{arm.label}, draw {repeat + 1}/{settings.seeds}: {met} of {len(requests)} met "
                f"their SLO, {run.outcome.virtual_s:.0f} s in {run.outcome.cpu_s:.0f} s"
            )
            on_run(arm.label, repeat)
    records = {label: [r for run in own for r in run.records] for label, own in runs.items()}
    result = BenchResult(
        provenance="emulated, warped",
        workload=source.name,
        load=settings.load,
        predictor=predictor_label,
        source_label=source.source_label,
        arms=[summarize(arm, runs[arm.label], settings.seed) for arm in arms],
        emulation=emulation_of(
            profile,
            [summary for own in runs.values() for run in own for summary in run.steps],
            load_average=max(started_load, load_average()),
            instances=settings.instances,
            host_factor=settings.host_factor,
        ),
        run={
            "stamp": stamp,
            "profile": profile.name,
            "profile_provenance": profile.provenance,
            "planned_profile": settings.planned_profile,
            "machine": describe_machine(),
            "capacity_rps": capacity,
            "rate_rps": rate_rps,
            "requests_per_seed": settings.requests,
            "seeds": settings.seeds,
            "first_seed": settings.seed,
            "arrivals": source.arrivals if source.table is not None else "file",
            "route": settings.route if settings.instances > 1 else None,
            "search_steps": settings.search_steps,
            "policy_params": settings.policy_params,
            "max_wait_s": settings.max_wait_s,
        },
        diagnostics={label: diagnose(own) for label, own in runs.items()},
        against_base={
            arm.label: {"base": STOCK}
            | paired_difference(records[arm.label], records[STOCK], seed=settings.seed)
            for arm in settings.arms
        },
    )
    queue = {label: [sample for run in own for sample in run.queue] for label, own in runs.items()}
    return BenchOutcome(result, records, queue)


def summarize(arm: Arm, runs: Sequence[WarpedRun], seed: int) -> dict[str, Any]:
    """The arm's entry; plan times are real ones, though the clock did not charge them."""
    times_ms = 1e3 * np.concatenate([np.asarray(run.outcome.plan_s) for run in runs])
    p50, p99 = np.quantile(times_ms, [0.5, 0.99]) if len(times_ms) else (None, None)
    return summarize_arm(
        arm.policy,
        arm.lengths,
        [record for run in runs for record in run.records],
        plan_ms_p50=None if p50 is None else float(p50),
        plan_ms_p99=None if p99 is None else float(p99),
        seed=seed,
    )


def diagnose(runs: Sequence[WarpedRun]) -> dict[str, Any]:
    """What a reader needs to trust the arm's figures."""
    records = [record for run in runs for record in run.records]
    statuses = [s for run in runs for s in run.outcome.status if s is not None]
    summaries = [summary for run in runs for summary in run.steps]
    ratios = [s.step_ratio for s in summaries if s.step_ratio is not None]
    return {
        "length_mismatches": sum(r.ok and r.output_tokens != r.target_tokens for r in records),
        "preemptions": sum(run.outcome.preemptions for run in runs),
        "prefill_tokens": sum(run.outcome.prefill_tokens for run in runs),
        "yields": sum(int(s["queue"].get("yields", 0)) for s in statuses),
        "plans": sum(int(s["plan"].get("count", 0)) for s in statuses),
        "plan_fallbacks": sum(sum((s["plan"].get("fallbacks") or {}).values()) for s in statuses),
        "steps": sum(s.steps for s in summaries),
        "step_ratio": max(ratios, default=None),
        "host_cpu_ms_p50": float(np.mean([run.outcome.host_cpu_ms_p50 for run in runs])),
        "host_cpu_ms_p99": max(run.outcome.host_cpu_ms_p99 for run in runs),
        "virtual_s": sum(run.outcome.virtual_s for run in runs),
        "cpu_s": sum(run.outcome.cpu_s for run in runs),
        "attainment_by_repeat": [
            round(float(np.mean([r.met for r in run.records])), 4) for run in runs
        ],
    }
