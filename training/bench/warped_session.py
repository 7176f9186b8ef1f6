"""A whole emulated measurement in warped time: predictor, players, runs, report, MLflow."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace

from lengthwise.data.errors import InputError
from lengthwise.scheduler.vllm_adapter.emulated.options import emulable_profile
from lengthwise.scheduler.vllm_adapter.emulated.player import profiles_in_turn
from lengthwise.scheduler.vllm_adapter.emulated.player_process import PlayerProcess
from lengthwise.scheduler.vllm_adapter.server.tiny import TINY_NAME, build_tiny_model
from lengthwise.training.bench.comparison.bench_settings import BenchSettings
from lengthwise.training.bench.comparison.compare import compare
from lengthwise.training.bench.comparison.workload_source import open_workload
from lengthwise.training.bench.results.report import write_run
from lengthwise.training.bench.runners.fleet_runner import fleet_capacity_rps, routed
from lengthwise.training.bench.runners.simulator_runner import lengths_of
from lengthwise.training.bench.runners.warped_runner import (
    WarpedRunner,
    WarpSettings,
    features_of,
)
from lengthwise.training.bench.session import (
    BenchReport,
    find_predictor,
    load_predictor,
    log_run,
    progress_of,
    read_profile,
)
from lengthwise.training.console import SilentSteps, Steps
from lengthwise.training.workspace import Workspace


def measure_warped(
    settings: BenchSettings,
    warp: WarpSettings,
    *,
    workspace: Workspace,
    steps: Steps | None = None,
    say: Callable[[str], None] = lambda text: None,
) -> BenchReport:
    """Play stock vLLM and every arm on emulated engines, faster than real time.

    Args:
        settings: as for a bench; `emulate` is the device's profile (with commas, those of the
            instances in turn), `profile` what our planner takes it for, load 1 what all
            instances together can carry.
        warp: how it is played; seed, wait and the planner's profile come from `settings`.
        workspace: for runs, the tiny model and MLflow.
        steps: progress bars.
        say: told one line at every stage.

    Raises:
        InputError: anything wrong with the settings, before an engine starts.
    """
    steps = steps or SilentSteps()
    if settings.emulate is None:
        raise InputError("warped time needs an emulated device: give --emulate PROFILE")
    if settings.model != TINY_NAME:
        raise InputError(f"warped time has the model {TINY_NAME!r} only, got {settings.model!r}")
    if settings.vllm_args:
        raise InputError(f"no server starts in warped time, so no options: {settings.vllm_args}")
    given = settings.emulate.split(",")
    if len(given) > warp.instances:
        raise InputError(f"{len(given)} profiles need as many --instances, got {warp.instances}")
    names = profiles_in_turn(settings.emulate, warp.instances)
    profiles = [emulable_profile(name) for name in names]
    if settings.profile is not None:
        read_profile(settings.profile)
    source = open_workload(
        settings.workload, source=settings.source, arrivals=settings.arrivals, profile=profiles[0]
    )
    settings.count(source, settings.capacity_rps or 1.0)  # says now what is missing
    settings = replace(settings, arms=routed(settings.arms, warp.routers))
    resolved = find_predictor(settings, workspace)
    capacity = fleet_capacity_rps(source, profiles)
    if settings.capacity_rps is not None:
        capacity = settings.capacity_rps * warp.instances
    say(f"capacity of {source.name}: {capacity:.2f} requests/s of {', '.join(names)}")
    warp = replace(
        warp,
        planned_profile=settings.profile,
        max_wait_s=settings.max_wait_s,
        seed=settings.seed,
    )
    predictor = load_predictor(resolved)
    directory = workspace.new_run_dir("bench")
    with ExitStack() as stack:
        runner = WarpedRunner(
            [
                stack.enter_context(PlayerProcess(directory / f"engines-{number}.log"))
                for number in range(warp.jobs)
            ],
            device=settings.emulate,
            profile=profiles[0],
            model_dir=build_tiny_model(workspace.cache / TINY_NAME),
            lengths=lengths_of(predictor),
            settings=warp,
            predictor_dir=None if resolved is None else resolved.directory,
            features=None if predictor is None else features_of(predictor),
        )
        outcome = compare(
            source,
            settings,
            runner,
            capacity_rps=capacity,
            predictor_label=None if resolved is None else resolved.label,
            workers=warp.jobs,
            on_run=progress_of(steps, settings.times(source)),
            say=say,
        )
    outcome = runner.judged(outcome)
    page = write_run(directory, outcome.result, outcome.records, outcome.queue)
    run_id = log_run(outcome, resolved, directory, page, workspace)
    return BenchReport(outcome, directory, page, run_id)
