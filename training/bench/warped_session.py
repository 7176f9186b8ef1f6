"""A whole emulated measurement in warped time: predictor, player, runs, report, MLflow."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from lengthwise.data.errors import InputError
from lengthwise.scheduler.vllm_adapter.emulated.options import emulable_profile
from lengthwise.scheduler.vllm_adapter.emulated.player_process import PlayerProcess
from lengthwise.scheduler.vllm_adapter.server.tiny import TINY_NAME, build_tiny_model
from lengthwise.training.bench.compare import DEFAULT_DURATION_S
from lengthwise.training.bench.report import write_run
from lengthwise.training.bench.session import (
    BenchReport,
    BenchRequest,
    find_predictor,
    load_predictor,
    log_run,
    read_profile,
)
from lengthwise.training.bench.warped import WarpedRunner, WarpedSettings, run_warped
from lengthwise.training.bench.workload import WorkloadSource, capacity_rps, open_workload
from lengthwise.training.console import SilentSteps, Steps
from lengthwise.training.workspace import Workspace


def measure_warped(
    request: BenchRequest,
    settings: WarpedSettings,
    *,
    workspace: Workspace,
    steps: Steps | None = None,
    say: Callable[[str], None] = lambda text: None,
) -> BenchReport:
    """Play stock vLLM and every arm on emulated engines, faster than real time.

    Args:
        request: workload, arms, predictor; `emulate` is the device's profile, `profile` what our
            planner takes it for.
        settings: of the runs; the number of requests and the planner's profile come from
            `request`.
        workspace: for runs, the tiny model and MLflow.
        steps: progress bars.
        say: told one line at every stage.

    Raises:
        InputError: anything wrong with the request, before an engine starts.
    """
    steps = steps or SilentSteps()
    if request.emulate is None:
        raise InputError("warped time needs an emulated device: give --emulate PROFILE")
    if request.model != TINY_NAME:
        raise InputError(f"warped time has the model {TINY_NAME!r} only, got {request.model!r}")
    if request.vllm_args:
        raise InputError(f"no server starts in warped time, so no options: {request.vllm_args}")
    profile = emulable_profile(request.emulate)
    if request.profile is not None:
        read_profile(request.profile)
    source = open_workload(
        request.workload, source=request.source, arrivals=request.arrivals, profile=profile
    )
    if request.load is None and source.table is not None:
        raise InputError(f"workload {source.name!r} has no pace of its own: give a load")
    resolved = find_predictor(request, workspace)
    predictor = load_predictor(resolved)
    capacity = request.capacity_rps or capacity_rps(source, profile)
    say(f"capacity of {source.name}: {capacity:.2f} requests/s an engine ({profile.name})")
    count = count_of(request, source, capacity * settings.instances)
    settings = replace(settings, requests=count, planned_profile=request.profile)
    directory = workspace.new_run_dir("bench")
    model_dir = build_tiny_model(workspace.cache / TINY_NAME)
    steps.step("emulated engines", (len(settings.arms) + 1) * settings.seeds)
    with PlayerProcess(directory / "engines.log") as player:
        outcome = run_warped(
            WarpedRunner(
                player=player,
                device=request.emulate,
                profile=profile,
                model_dir=model_dir,
                settings=settings,
                predictor=predictor,
                predictor_dir=None if resolved is None else resolved.directory,
            ),
            source,
            capacity=capacity,
            predictor_label=None if resolved is None else resolved.label,
            on_run=lambda label, repeat: steps.advance(),
            say=say,
        )
    page = write_run(directory, outcome.result, outcome.records, outcome.queue)
    run_id = log_run(outcome, resolved, directory, page, workspace)
    return BenchReport(outcome, directory, page, run_id)


def count_of(request: BenchRequest, source: WorkloadSource, capacity: float) -> int:
    """Requests a run: those asked for, a file's all, or some seconds of arrivals."""
    if request.requests is not None:
        return request.requests
    if request.load is None or source.table is None:
        return len(source.requests)
    return max(1, round(request.load * capacity * (request.duration_s or DEFAULT_DURATION_S)))
