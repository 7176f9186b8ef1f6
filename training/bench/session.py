"""A whole comparison from its settings, on the real engine or on a modelled one.

`lengthwise bench` and `lengthwise demo` `measure`, `lengthwise simulate` is `run_modeled`.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from lengthwise.data.errors import InputError
from lengthwise.scheduler.lmdeploy_adapter.lmdeploy_environment import (
    VERSION as LMDEPLOY_VERSION,
)
from lengthwise.scheduler.lmdeploy_adapter.lmdeploy_environment import environment_python
from lengthwise.scheduler.lmdeploy_adapter.lmdeploy_player import is_lmdeploy
from lengthwise.scheduler.profile import EngineProfile, load_profile
from lengthwise.scheduler.simulator.capacity import requests_needed
from lengthwise.scheduler.vllm_adapter.emulated.options import emulable_profile
from lengthwise.scheduler.vllm_adapter.server.tiny import TINY_NAME
from lengthwise.training.bench.comparison.bench_settings import BenchSettings
from lengthwise.training.bench.comparison.compare import Comparison, compare
from lengthwise.training.bench.comparison.workload_source import (
    WorkloadSource,
    capacity_rps,
    open_workload,
)
from lengthwise.training.bench.engines.calibrate import calibrate_server, write_profile
from lengthwise.training.bench.engines.servers import TINY_ARGS, BenchServers, start_servers
from lengthwise.training.bench.results.emulation import throughput_warning
from lengthwise.training.bench.results.report import RECORDS_FILE, RESULT_FILE, write_run
from lengthwise.training.bench.runners.emulated_runner import EmulatedRunner
from lengthwise.training.bench.runners.engine_runner import EngineRunner
from lengthwise.training.bench.runners.fleet_runner import (
    FleetRunner,
    fleet_capacity_rps,
    routed,
)
from lengthwise.training.bench.runners.generated_runner import (
    GeneratedRunner,
    asked_of,
    check_generated,
    generated_capacity_rps,
)
from lengthwise.training.bench.runners.simulator_runner import (
    SimulatorRunner,
    lengths_of,
    processes,
)
from lengthwise.training.console import SilentSteps, Steps
from lengthwise.training.registry.model_names import DEFAULT_PREDICTOR
from lengthwise.training.registry.models import ResolvedPredictor, resolve_predictor
from lengthwise.training.workspace import Workspace

if TYPE_CHECKING:
    from lengthwise.predictor.model import LengthPredictor

DEFAULT_PROFILE = "tiny-cpu"
LENGTHS_OF_A_PREDICTOR = frozenset({"learned", "class"})


@dataclass(frozen=True, slots=True)
class BenchReport:
    """The outcome, the directory of its files, and the MLflow run that holds them."""

    outcome: Comparison
    directory: Path
    page: Path
    mlflow_run_id: str | None


def profile_path(workspace: Workspace, model: str) -> Path:
    """Where `calibrate` keeps the profile of a model on this machine."""
    slug = re.sub(r"[^A-Za-z0-9.]+", "-", model).strip("-") or "model"
    return workspace.cache / "profiles" / f"{slug}.json"


def measure(
    settings: BenchSettings,
    *,
    workspace: Workspace,
    steps: Steps | None = None,
    say: Callable[[str], None] = lambda text: None,
) -> BenchReport:
    """A bench from nothing to the report; servers are started and stopped here.

    Args:
        settings: what to run.
        workspace: for runs, profiles and MLflow.
        steps: progress bars.
        say: told one line at every stage.

    Raises:
        InputError: anything wrong with the settings, before a server starts.
    """
    steps = steps or SilentSteps()
    device = None if settings.emulate is None else emulable_profile(settings.emulate)
    known = settings.profile or settings.emulate or str(profile_path(workspace, settings.model))
    profile = None
    if settings.profile or settings.emulate or (Path(known).is_file() and not settings.recalibrate):
        profile = read_profile(known)
    source = open_workload(
        settings.workload,
        source=settings.source,
        arrivals=settings.arrivals,
        profile=device or profile,
    )
    generation = settings.generation
    if generation is not None:
        check_generated(settings.arms)
        if profile is None or device is not None:
            raise InputError(
                f"--generated needs the times of the real engine: `lengthwise calibrate --model "
                f"{settings.model}`, or --profile, and no --emulate"
            )
        source = asked_of(source, profile)
    settings.count(source, settings.capacity_rps or 1.0)  # says now what is missing
    resolved = find_predictor(settings, workspace)
    predictor = load_predictor(resolved)
    capacity = settings.capacity_rps
    if device is not None:
        capacity = capacity or capacity_rps(source, device)
        tell_throughput(settings, source, device, capacity, say)
    directory = workspace.new_run_dir("bench")
    own: dict[str, Any] = (
        {} if settings.plan_budget_ms is None else {"plan_budget_ms": settings.plan_budget_ms}
    )
    steps.step("starting servers")
    with start_servers(
        settings.model,
        directory=directory / "servers",
        cache_dir=workspace.cache,
        predictor=resolved,
        profile=known if profile else None,
        vllm_args=settings.vllm_args,
        max_wait_s=settings.max_wait_s,
        seed=settings.seed,
        emulate=settings.emulate,
        generation=generation,
        **own,
    ) as servers:
        say(f"both servers are up: stock vLLM and lengthwise, model {servers.model}")
        if settings.load is not None and capacity is None and profile is None:
            steps.step("calibrating")
            profile = calibrate(settings, servers, source, workspace, say)
        if capacity is None and generation is not None and profile is not None:
            steps.step("measuring what it can carry")
            capacity = generated_capacity_rps(servers, source, profile.capacity.max_num_seqs)
            say(f"capacity of {source.name}: {capacity:.2f} generated answers/s, measured")
        if capacity is None and profile is not None:
            capacity = capacity_rps(source, profile)
            say(f"capacity of {source.name}: {capacity:.2f} requests/s ({profile.provenance})")
        runner = make_runner(settings, servers, predictor)
        outcome = compare(
            source,
            settings,
            runner,
            capacity_rps=capacity,
            predictor_label=resolved.label if resolved else None,
            run_info={"profile": profile.name if profile else None},
            on_run=progress_of(steps, settings.times(source)),
            say=say,
        )
    if isinstance(runner, EmulatedRunner):
        outcome = runner.judged(outcome)
    steps.step("writing the report")
    page = write_run(directory, outcome.result, outcome.records, outcome.queue)
    run_id = log_run(outcome, resolved, directory, page, workspace)
    return BenchReport(outcome, directory, page, run_id)


def make_runner(
    settings: BenchSettings, servers: BenchServers, predictor: LengthPredictor | None
) -> EngineRunner:
    """What drives these servers: replayed lengths, or generated answers; on a device or not."""
    known: dict[str, Any] = {"predictor": predictor, "timeout_s": settings.timeout_s}
    if settings.generation is not None:
        return GeneratedRunner(servers, settings.generation, **known)
    return (EngineRunner if settings.emulate is None else EmulatedRunner)(servers, **known)


def tell_throughput(
    settings: BenchSettings,
    source: WorkloadSource,
    device: EngineProfile,
    capacity: float,
    say: Callable[[str], None],
) -> None:
    """Say before a start what the device makes, and whether this machine can stream it."""
    mean_tokens = float(np.mean([r.output_tokens for r in source.sample(requests_needed(device))]))
    tokens_per_s = min(settings.load or 1.0, 1.0) * capacity * mean_tokens
    say(
        f"capacity of {source.name}: {capacity:.2f} requests/s, about {tokens_per_s:,.0f} "
        f"tokens/s, on {device.name}"
    )
    tiny = TINY_ARGS if settings.model == TINY_NAME else ()
    if warning := throughput_warning(tokens_per_s, (*tiny, *settings.vllm_args)):
        say(f"warning: {warning}")


def run_modeled(
    settings: BenchSettings,
    *,
    workspace: Workspace,
    with_bound: bool = True,
    jobs: int = 1,
    steps: Steps | None = None,
) -> Comparison:
    """The same comparison on the modelled engine of the settings' profile.

    Args:
        settings: what to play; a predictor is asked for only where an arm is learned.
        workspace: where predictors are registered.
        with_bound: compute what no scheduler can exceed, too.
        jobs: processes to play in.
        steps: progress bars.

    Raises:
        InputError: anything wrong with the settings.
    """
    steps = steps or SilentSteps()
    second_engine = lmdeploy_info(settings, workspace)
    profiles = fleet_profiles(settings)
    source = open_workload(
        settings.workload, source=settings.source, arrivals=settings.arrivals, profile=profiles[0]
    )
    settings = replace(settings, arms=routed(settings.arms, settings.routers))
    resolved = None
    if settings.predictor or any(arm.lengths == "learned" for arm in settings.arms):
        name = settings.predictor or DEFAULT_PREDICTOR
        resolved = resolve_predictor(name, workspace=workspace)
    known = lengths_of(load_predictor(resolved))
    capacity = settings.capacity_rps or fleet_capacity_rps(source, profiles)
    steps.step("simulate", len(settings.arms) * settings.times(source))
    budget_s = None if settings.plan_budget_ms is None else settings.plan_budget_ms / 1e3
    with processes(jobs) as pool:
        own: dict[str, Any] = {
            "plan_budget_s": budget_s,
            "max_wait_s": settings.max_wait_s,
            "seed": settings.seed,
            "pool": pool,
        }
        one = SimulatorRunner(profiles[0], known, **own)
        runner = FleetRunner(profiles, known, **own) if settings.routers else one
        # of several instances nobody knows yet what no scheduler can exceed
        bound = one.bound if with_bound and len(profiles) == 1 else None
        return compare(
            source,
            settings,
            runner,
            capacity_rps=capacity,
            predictor_label=resolved.label if resolved else None,
            run_info=second_engine,
            bound=bound,
            workers=jobs,
            say=lambda _: steps.advance(),
        )


def lmdeploy_info(settings: BenchSettings, workspace: Workspace) -> dict[str, Any] | None:
    """What a reader must know of arms that LMDeploy serves; None without any.

    Raises:
        InputError: there is no LMDeploy here, or it is to be one of several instances.
    """
    arms = [arm.policy for arm in settings.arms if is_lmdeploy(arm.policy)]
    if not arms:
        return None
    if settings.routers:
        raise InputError(f"policy {arms[0]!r} serves one instance, not several behind a router")
    environment_python(workspace.cache)
    engine = f"LMDeploy {LMDEPLOY_VERSION}'s own engine loop and scheduler, steps by the profile"
    return {"lmdeploy": engine}


def fleet_profiles(settings: BenchSettings) -> list[EngineProfile]:
    """The profile of each instance: those of the settings in turn.

    Raises:
        InputError: more profiles than instances.
    """
    names = [name.strip() for name in (settings.profile or DEFAULT_PROFILE).split(",")]
    if len(names) > settings.instances:
        raise InputError(
            f"{len(names)} profiles need as many --instances, got {settings.instances}"
        )
    profiles = [read_profile(name) for name in names]
    return [profiles[i % len(profiles)] for i in range(settings.instances)]


def calibrate(
    settings: BenchSettings,
    servers: BenchServers,
    source: WorkloadSource,
    workspace: Workspace,
    say: Callable[[str], None],
) -> EngineProfile:
    """A short calibration of the running server, kept in the workspace for the next time."""
    path = profile_path(workspace, settings.model)
    done = calibrate_server(servers, source, name=path.stem, short=True, on_stage=say)
    write_profile(done, path)
    return done.profile


def read_profile(name: str) -> EngineProfile:
    """A profile by name or path; InputError instead of the core's ValueError."""
    try:
        return load_profile(name)
    except ValueError as error:
        raise InputError(str(error)) from error


def find_predictor(settings: BenchSettings, workspace: Workspace) -> ResolvedPredictor | None:
    """The predictor, if any arm needs one."""
    if not any(arm.lengths in LENGTHS_OF_A_PREDICTOR for arm in settings.arms):
        return None
    return resolve_predictor(settings.predictor or DEFAULT_PREDICTOR, workspace=workspace)


def load_predictor(resolved: ResolvedPredictor | None) -> LengthPredictor | None:
    """The predictor's object; None where there is none."""
    if resolved is None:
        return None
    from lengthwise.predictor.model import LengthPredictor

    return LengthPredictor.load(resolved.directory)


def progress_of(steps: Steps, repeats: int) -> Callable[[str, int, int], Callable[[], None]]:
    """One bar per run of an arm."""

    def begin(label: str, repeat: int, requests: int) -> Callable[[], None]:
        steps.step(f"{label}, repeat {repeat + 1}/{repeats}", requests)
        return steps.advance

    return begin


def log_run(
    outcome: Comparison,
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
