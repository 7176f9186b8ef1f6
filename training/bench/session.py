"""A whole measurement: predictor, servers, capacity, runs, report, MLflow.

`lengthwise bench` and `lengthwise demo` are both this, with other settings.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from lengthwise.data.errors import InputError
from lengthwise.scheduler.profile import EngineProfile, load_profile
from lengthwise.scheduler.vllm_adapter.emulated.options import emulable_profile
from lengthwise.scheduler.vllm_adapter.server.tiny import TINY_NAME
from lengthwise.training.bench.arms import Arm
from lengthwise.training.bench.calibrate import calibrate_server, write_profile
from lengthwise.training.bench.compare import BenchOutcome, BenchSettings, run_bench
from lengthwise.training.bench.emulation import throughput_warning
from lengthwise.training.bench.report import RECORDS_FILE, RESULT_FILE, write_run
from lengthwise.training.bench.servers import TINY_ARGS, BenchServers, start_servers
from lengthwise.training.bench.workload import WorkloadSource, capacity_rps, open_workload
from lengthwise.training.console import SilentSteps, Steps
from lengthwise.training.registry.models import ResolvedPredictor, resolve_predictor
from lengthwise.training.workspace import Workspace

if TYPE_CHECKING:
    from lengthwise.predictor.model import LengthPredictor

LENGTHS_OF_A_PREDICTOR = frozenset({"learned", "class"})


@dataclass(frozen=True, slots=True)
class BenchRequest:
    """What the user asked for; see `BenchSettings` for load, requests, repeats.

    `profile`: a profile's name or path; None takes the one calibrated for this model in the
    workspace, and calibrates first where there is none. `recalibrate` does so in any case.
    `emulate`: the profile of the device that takes the engine's place; then `profile` is what the
    planner takes it for.
    """

    workload: str
    arms: tuple[Arm, ...]
    predictor: str
    model: str = "tiny"
    source: str | None = None
    arrivals: str = "poisson"
    load: float | None = 1.5
    requests: int | None = None
    duration_s: float | None = None
    repeats: int = 3
    seed: int = 0
    timeout_s: float = 600.0
    capacity_rps: float | None = None
    profile: str | None = None
    recalibrate: bool = False
    plan_budget_ms: float = 1.0
    vllm_args: tuple[str, ...] = ()
    emulate: str | None = None


@dataclass(frozen=True, slots=True)
class BenchReport:
    """The outcome, the directory of its files, and the MLflow run that holds them."""

    outcome: BenchOutcome
    directory: Path
    page: Path
    mlflow_run_id: str | None


def profile_path(workspace: Workspace, model: str) -> Path:
    """Where `calibrate` keeps the profile of a model on this machine."""
    slug = re.sub(r"[^A-Za-z0-9.]+", "-", model).strip("-") or "model"
    return workspace.cache / "profiles" / f"{slug}.json"


def measure(
    request: BenchRequest,
    *,
    workspace: Workspace,
    steps: Steps | None = None,
    say: Callable[[str], None] = lambda text: None,
) -> BenchReport:
    """Run a bench from nothing to the report; servers are started and stopped here.

    Args:
        request: what to run.
        workspace: for runs, profiles and MLflow.
        steps: progress bars.
        say: told one line at every stage.

    Raises:
        InputError: anything wrong with the request, before a server starts.
    """
    steps = steps or SilentSteps()
    device = None if request.emulate is None else emulable_profile(request.emulate)
    source = open_workload(
        request.workload, source=request.source, arrivals=request.arrivals, profile=device
    )
    if request.load is None and source.table is not None:
        raise InputError(f"workload {source.name!r} has no pace of its own: give a load")
    settings = bench_settings(request, request.capacity_rps or 1.0)
    predictor = find_predictor(request, workspace)
    known = request.profile or request.emulate or str(profile_path(workspace, request.model))
    profile = None
    if request.profile or request.emulate or (Path(known).is_file() and not request.recalibrate):
        profile = read_profile(known)
    if device is not None:
        settings = bench_settings(request, request.capacity_rps or capacity_rps(source, device))
        warn_of_throughput(settings, source, device, request, say)
    directory = workspace.new_run_dir("bench")
    with start_servers(
        request.model,
        directory=directory / "servers",
        cache_dir=workspace.cache,
        predictor=predictor,
        profile=known if profile else None,
        vllm_args=request.vllm_args,
        plan_budget_ms=request.plan_budget_ms,
        seed=request.seed,
        emulate=request.emulate,
    ) as servers:
        say(f"both servers are up: stock vLLM and lengthwise, model {servers.model}")
        if request.capacity_rps is None and device is None:
            profile = profile or calibrate(request, servers, source, workspace, say)
            capacity = capacity_rps(source, profile)
            settings = bench_settings(request, capacity)
            say(f"capacity of {source.name}: {capacity:.2f} requests/s ({profile.provenance})")
        outcome = run_bench(
            servers,
            source,
            settings,
            predictor=load_predictor(predictor),
            predictor_label=predictor.label if predictor else None,
            run_info={"profile": profile.name if profile else None},
            on_run=progress_of(steps, settings),
            say=say,
        )
    page = write_run(directory, outcome.result, outcome.records, outcome.queue)
    run_id = log_run(outcome, predictor, directory, page, workspace)
    return BenchReport(outcome, directory, page, run_id)


def warn_of_throughput(
    settings: BenchSettings,
    source: WorkloadSource,
    device: EngineProfile,
    request: BenchRequest,
    say: Callable[[str], None],
) -> None:
    """Say so before the servers start where this machine cannot stream what the device makes."""
    mean_tokens = float(np.mean([r.output_tokens for r in source.sample()]))
    tokens_per_s = min(settings.load or 1.0, 1.0) * settings.capacity_rps * mean_tokens
    say(
        f"capacity of {source.name}: {settings.capacity_rps:.2f} requests/s, about "
        f"{tokens_per_s:,.0f} tokens/s, on {device.name}"
    )
    tiny = TINY_ARGS if request.model == TINY_NAME else ()
    if warning := throughput_warning(tokens_per_s, (*tiny, *request.vllm_args)):
        say(f"warning: {warning}")


def bench_settings(request: BenchRequest, capacity: float) -> BenchSettings:
    """The settings of the runs, once the capacity is known (InputError on bad values)."""
    return BenchSettings(
        arms=request.arms,
        capacity_rps=capacity,
        load=request.load,
        requests=request.requests,
        duration_s=request.duration_s,
        repeats=request.repeats,
        seed=request.seed,
        timeout_s=request.timeout_s,
    )


def calibrate(
    request: BenchRequest,
    servers: BenchServers,
    source: WorkloadSource,
    workspace: Workspace,
    say: Callable[[str], None],
) -> EngineProfile:
    """A short calibration of the running server, kept in the workspace for the next time."""
    path = profile_path(workspace, request.model)
    done = calibrate_server(servers, source, name=path.stem, short=True, on_stage=say)
    write_profile(done, path)
    return done.profile


def read_profile(name: str) -> EngineProfile:
    """A profile by name or path; InputError instead of the core's ValueError."""
    try:
        return load_profile(name)
    except ValueError as error:
        raise InputError(str(error)) from error


def find_predictor(request: BenchRequest, workspace: Workspace) -> ResolvedPredictor | None:
    """The predictor, if any arm needs one."""
    if not any(arm.lengths in LENGTHS_OF_A_PREDICTOR for arm in request.arms):
        return None
    return resolve_predictor(request.predictor, workspace=workspace)


def load_predictor(resolved: ResolvedPredictor | None) -> LengthPredictor | None:
    """The predictor's object, to record what it says of each request."""
    if resolved is None:
        return None
    from lengthwise.predictor.model import LengthPredictor

    return LengthPredictor.load(resolved.directory)


def progress_of(
    steps: Steps, settings: BenchSettings
) -> Callable[[str, int, int], Callable[[], None]]:
    """One bar per run of an arm."""

    def begin(label: str, repeat: int, requests: int) -> Callable[[], None]:
        steps.step(f"{label}, repeat {repeat + 1}/{settings.repeats}", requests)
        return steps.advance

    return begin


def log_run(
    outcome: BenchOutcome,
    predictor: ResolvedPredictor | None,
    directory: Path,
    page: Path,
    workspace: Workspace,
) -> str:
    """The bench in MLflow, beside the version of the predictor it used."""
    from lengthwise.training.registry.attainment import log_bench

    return log_bench(
        outcome.result.model_dump(mode="json"),
        predictor=predictor,
        files=[page, directory / RESULT_FILE, directory / RECORDS_FILE],
        workspace=workspace,
    )
