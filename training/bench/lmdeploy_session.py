"""``lengthwise bench --engine lmdeploy``: LMDeploy's own order against ours at its pool, on a CPU.

Its server, sessions, scheduler and paging are its own; the device and its attention are ours
(``scheduler/lmdeploy_adapter``). So orders are compared inside this one engine, at multiples of its
own capacity; its tokens/s are not to stand beside another engine's.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from lengthwise.data.errors import InputError
from lengthwise.data.workload import WorkloadRequest
from lengthwise.scheduler.lmdeploy_adapter.lmdeploy_environment import environment_python
from lengthwise.scheduler.lmdeploy_adapter.pool_order import PARTS
from lengthwise.scheduler.problem import Capacity
from lengthwise.scheduler.profile import EngineProfile
from lengthwise.scheduler.serving.settings import ServerSettings, make_settings
from lengthwise.scheduler.step_fit import fit_step_time
from lengthwise.scheduler.vllm_adapter.server.tiny import TINY_NAME, build_tiny_model
from lengthwise.training.bench.comparison.bench_settings import BenchSettings
from lengthwise.training.bench.comparison.compare import compare
from lengthwise.training.bench.comparison.workload_source import WorkloadSource, open_workload
from lengthwise.training.bench.engines.calibrate import Calibration, check, write_profile
from lengthwise.training.bench.engines.client import drive_closed
from lengthwise.training.bench.engines.lmdeploy_servers import (
    LmdeployServers,
    calls_of,
    lmdeploy_server,
)
from lengthwise.training.bench.engines.reply_rate import loaded_tokens_per_s
from lengthwise.training.bench.engines.servers import leaving_on_sigterm
from lengthwise.training.bench.results.provenance import describe_machine, utc_now
from lengthwise.training.bench.results.report import write_run
from lengthwise.training.bench.runners.lmdeploy_runner import LmdeployRunner
from lengthwise.training.bench.session import (
    BenchReport,
    find_predictor,
    load_predictor,
    log_run,
    profile_path,
    progress_of,
    read_profile,
)
from lengthwise.training.console import SilentSteps, Steps
from lengthwise.training.registry.models import ResolvedPredictor
from lengthwise.training.workspace import Workspace

PROFILE = "lmdeploy-tiny"
CAPACITY = Capacity(16, 65536, 2048)
MAX_TOKENS = 4096  # of every body alike; the forced length takes its place
SATURATED_PER_SLOT = 8


def measure_lmdeploy(
    settings: BenchSettings,
    *,
    workspace: Workspace,
    steps: Steps | None = None,
    say: Callable[[str], None] = lambda text: None,
) -> BenchReport:
    """A comparison from nothing to the report; servers are started and stopped here.

    Raises:
        InputError: anything wrong with the settings, before a server starts.
        BenchError: LMDeploy does not start, or fails requests.
    """
    steps = steps or SilentSteps()
    if settings.model != TINY_NAME or settings.vllm_args or settings.emulate:
        raise InputError("--engine lmdeploy serves 'tiny' on a CPU, without options for vLLM")
    python = environment_python(workspace.cache)
    source = open_workload(settings.workload, source=settings.source, arrivals=settings.arrivals)
    settings.count(source, settings.capacity_rps or 1.0)
    resolved = find_predictor(settings, workspace)
    predictor = load_predictor(resolved)
    model = build_tiny_model(workspace.cache / "lmdeploy-tiny")
    kept = profile_path(workspace, PROFILE)
    directory = workspace.new_run_dir("bench")
    logs, step_log = directory / "servers", directory / "servers" / "lmdeploy-steps.jsonl"
    with contextlib.ExitStack() as stack:
        stack.enter_context(leaving_on_sigterm())
        start = partial(lmdeploy_server, python, model, logs, CAPACITY)
        steps.step("starting LMDeploy with its own order")
        stock = stack.enter_context(start(None, step_log))
        given = settings.profile or (str(kept) if kept.is_file() else None)
        if given is None or settings.recalibrate:
            steps.step("calibrating")
            write_profile(calibrate(stock, step_log, source, say), kept)
            given = str(kept)
        profile = read_profile(given)
        capacity = settings.capacity_rps
        if capacity is None and settings.load is not None:
            steps.step("capacity")
            capacity = saturated(stock, source, CAPACITY.max_num_seqs)
            say(f"capacity of {source.name}: {capacity:.2f} requests/s, its own order")
        steps.step("starting LMDeploy with ours at its pool")
        ours = stack.enter_context(start(served_by(settings, resolved, given)))
        runner = LmdeployRunner(
            LmdeployServers(ours, stock),
            predictor,
            profile,
            max_tokens=MAX_TOKENS,
            timeout_s=settings.timeout_s,
        )
        outcome = compare(
            source,
            settings,
            runner,
            capacity_rps=capacity,
            predictor_label=resolved.label if resolved else None,
            on_run=progress_of(steps, settings.times(source)),
            say=say,
        )
    steps.step("writing the report")
    page = write_run(directory, outcome.result, outcome.records, outcome.queue)
    run_id = log_run(outcome, resolved, directory, page, workspace)
    return BenchReport(outcome, directory, page, run_id)


def served_by(
    settings: BenchSettings, resolved: ResolvedPredictor | None, profile: str
) -> ServerSettings:
    """What our server is told at its start; arms are switched while it is up."""
    budget = {} if settings.plan_budget_ms is None else {"plan_budget_ms": settings.plan_budget_ms}
    return make_settings(
        {
            "predictor_dir": str(resolved.directory) if resolved else None,
            "predictor_version": resolved.label if resolved else None,
            "lengths": "learned" if resolved else "none",
            "profile": str(Path(profile).absolute()) if Path(profile).is_file() else profile,
            "max_wait_s": settings.max_wait_s,
            "seed": settings.seed,
            "plan_parts": PARTS,
            "allow_configure": True,
            **budget,
        }
    )


def calibrate(
    url: str, step_log: Path, source: WorkloadSource, say: Callable[[str], None]
) -> Calibration:
    """Step times of the engine, from the workload's own requests at several concurrencies."""
    slots = CAPACITY.max_num_seqs
    begun = len(read_steps(step_log))
    for level in (1, slots // 4, slots):
        say(f"steps with {level} in flight")
        drive(url, source.sample(3 * level + 4), level)
    steps = read_steps(step_log)[begun:]
    machine = describe_machine()
    provenance = (
        f"calibrated {utc_now()} on {machine['processor']}, {machine['cores']} cores, LMDeploy's "
        "PyTorch engine on a CPU device of ours, model tiny"
    )
    model, fit = fit_step_time(steps, name=PROFILE, provenance=provenance)
    profile = EngineProfile(PROFILE, model, CAPACITY, provenance)
    return Calibration(profile, {"steps": len(steps), "fit": fit})


def saturated(url: str, source: WorkloadSource, slots: int) -> float:
    """Requests/s while more wait than fit, by the rule of ``simulator.capacity``."""
    requests = source.sample(SATURATED_PER_SLOT * slots)
    replies = drive(url, requests, 2 * slots)
    mean_tokens = float(np.mean([r.output_tokens for r in requests]))
    return loaded_tokens_per_s(replies) / mean_tokens


def drive(url: str, requests: Sequence[WorkloadRequest], in_flight: int) -> Sequence[Any]:
    """The replies, every one of which must have come."""
    bodies = [call.body for call in calls_of(requests, MAX_TOKENS)]
    replies = asyncio.run(drive_closed(url, bodies, concurrency=in_flight))
    check(replies)
    return replies


def read_steps(path: Path) -> np.ndarray:
    """Timed steps ``(k, 4)``: prompt tokens, decoding rows, their context, seconds."""
    if not path.is_file():
        return np.empty((0, 4))
    lines = path.read_text(encoding="utf-8").splitlines()
    return np.array([json.loads(line) for line in lines], dtype=float).reshape(-1, 4)
