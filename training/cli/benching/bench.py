"""Commands on the real engine: ``calibrate``, ``bench`` and ``demo``."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer

from lengthwise.data.errors import InputError
from lengthwise.data.lines import parse_object
from lengthwise.training import console
from lengthwise.training.cli.benching.bench_options import (
    ARENA_LOAD,
    WORKLOAD_HELP,
    ArrivalsOption,
    JsonOption,
    SourceOption,
)
from lengthwise.training.cli.benching.results_shown import report, show
from lengthwise.training.cli.benching.simulate import simulate
from lengthwise.training.cli.pairs import MOST_SEED, check_predictor_of, refuse
from lengthwise.training.registry.model_names import DEFAULT_PREDICTOR
from lengthwise.training.workspace import Workspace

ENGINES = ("vllm", "lmdeploy")
MODEL_HELP = "'tiny', 'smollm2' (if installed) or a model vLLM can load."
WARPED_ONLY = ("instances", "route", "router", "search_steps", "host_factor", "jobs")


def register(app: typer.Typer) -> None:
    """Add them to the app, and the commands about modelled runs and results."""
    passing_on = {"allow_extra_args": True, "ignore_unknown_options": True}
    app.command("calibrate", context_settings=passing_on)(calibrate)
    app.command("simulate")(simulate)
    app.command("bench", context_settings=passing_on)(bench)
    app.command("report")(report)
    app.command("demo")(demo)


def calibrate(
    ctx: typer.Context,
    model: Annotated[str, typer.Option(help=MODEL_HELP)] = "tiny",
    out: Annotated[Path | None, typer.Option(help="Profile to write.")] = None,
    workload: Annotated[str, typer.Option(help=WORKLOAD_HELP)] = "paper",
    source: SourceOption = None,
    short: Annotated[bool, typer.Option("--short", help="Half the steps and requests.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Fit the step-time model to the real engine and measure what it can carry.

    Further options go to vLLM. The profile is kept in the workspace, where bench finds it.
    """
    from lengthwise.training.bench.comparison.workload_source import open_workload
    from lengthwise.training.bench.engines.calibrate import (
        calibrate_server,
        calibration_rows,
        write_profile,
    )
    from lengthwise.training.bench.engines.servers import start_servers
    from lengthwise.training.bench.session import profile_path

    if "emulate" in {word.partition("=")[0].removeprefix("--") for word in ctx.args}:
        raise InputError(
            "calibrate takes a real engine's times and no --emulate: "
            "a device that plays a profile has that profile"
        )
    workspace = Workspace.current()
    requests = open_workload(workload, source=source)
    path = out or profile_path(workspace, model)
    directory = workspace.new_run_dir("calibrate")
    say = console.stage_printer()
    say(f"starting {model}")
    with (
        engine_errors(),
        start_servers(
            model,
            directory=directory,
            cache_dir=workspace.cache,
            vllm_args=vllm_args(ctx),
            with_stock=False,
        ) as servers,
    ):
        done = calibrate_server(servers, requests, name=path.stem, short=short, on_stage=say)
    write_profile(done, path)
    if as_json:
        console.print_json({"profile": str(path), **done.report})
    else:
        console.print_table(f"Calibrated: {path}", ["quantity", "value"], calibration_rows(done))


def bench(
    ctx: typer.Context,
    workload: Annotated[str, typer.Option(help=WORKLOAD_HELP)] = "paper",
    load: Annotated[
        float | None,
        typer.Option(help="Multiple of measured capacity [1.5; a file keeps its own pace]."),
    ] = None,
    arms: Annotated[
        str, typer.Option(help="Comma-separated POLICY:LENGTHS; stock vLLM is always an arm.")
    ] = "sa:learned",
    requests: Annotated[int | None, typer.Option(help="Requests per run.")] = None,
    duration: Annotated[
        float | None,
        typer.Option(help="Seconds of arrivals per run, instead of --requests [60; a file's all]."),
    ] = None,
    repeats: Annotated[
        int | None,
        typer.Option("--repeats", "--seeds", help="Runs of every arm [3; a file is played once]."),
    ] = None,
    model: Annotated[str, typer.Option(help=MODEL_HELP)] = "tiny",
    predictor: Annotated[
        str, typer.Option(help="Model URI or directory, for learned and class lengths.")
    ] = DEFAULT_PREDICTOR,
    profile: Annotated[
        str | None, typer.Option(help="Engine profile; by default the calibrated one.")
    ] = None,
    recalibrate: Annotated[
        bool, typer.Option("--recalibrate", help="Calibrate first even if a profile is there.")
    ] = False,
    capacity_rps: Annotated[
        float | None, typer.Option(help="Requests/s that count as load 1, instead of measuring.")
    ] = None,
    source: SourceOption = None,
    arrivals: ArrivalsOption = "poisson",
    seed: Annotated[int, typer.Option(min=0, max=MOST_SEED, help="Seed of the first repeat.")] = 0,
    timeout: Annotated[float, typer.Option(help="Seconds after which a request is lost.")] = 600.0,
    plan_budget_ms: Annotated[
        float | None, typer.Option(help="Longest search for one plan [the server's own].")
    ] = None,
    emulate: Annotated[
        str | None,
        typer.Option(
            help="Engine profile, a name or a file: real servers on a device that takes its time "
            "and computes nothing; of --instances in turn, with commas. --profile is then what "
            "the planner takes it for."
        ),
    ] = None,
    warp: Annotated[
        bool,
        typer.Option(
            "--warp", help="With --emulate: engines without servers, faster than real time."
        ),
    ] = False,
    instances: Annotated[int, typer.Option(min=1, help="With --warp: engines side by side.")] = 1,
    route: Annotated[
        str,
        typer.Option(
            help="With --instances: the router before stock vLLM, and before all without "
            "--router: least-outstanding | round-robin | power-of-two | prefix."
        ),
    ] = "least-outstanding",
    router: Annotated[
        str | None,
        typer.Option(help="With --instances: comma-separated routers, each before every arm."),
    ] = None,
    search_steps: Annotated[
        int | None, typer.Option(min=0, help="With --warp: annealing steps a plan [its own].")
    ] = None,
    host_factor: Annotated[
        float,
        typer.Option(
            help="With --warp: charge the host's processor time so many times; 0 repeats exactly."
        ),
    ] = 0.0,
    sa_params: Annotated[
        str | None, typer.Option(help="JSON object of parameters of policy sa, for its arms.")
    ] = None,
    jobs: Annotated[int, typer.Option(min=1, help="With --warp: processes to play in.")] = 1,
    generated: Annotated[
        bool,
        typer.Option(
            "--generated",
            help="Force no length: send chats and let the model end its answers (a real model).",
        ),
    ] = False,
    max_tokens: Annotated[
        int, typer.Option(min=1, help="With --generated: the limit that each user sets.")
    ] = 256,
    temperature: Annotated[
        float, typer.Option(min=0, help="With --generated: of the sampling; 0 is greedy.")
    ] = 0.7,
    engine: Annotated[
        str, typer.Option(help="vllm, or lmdeploy: its own order against ours (make lmdeploy).")
    ] = "vllm",
    as_json: JsonOption = False,
) -> None:
    """Measure stock vLLM and our arms on the same requests, on the real engine.

    Further options go to vLLM, for both servers alike: --max-num-seqs 16 ...
    With --emulate the engine's device is a profile: see docs/emulated.md.
    """
    from lengthwise.training.bench.comparison.arms import parse_arms
    from lengthwise.training.bench.comparison.bench_settings import BenchSettings
    from lengthwise.training.bench.comparison.workload_source import is_arena
    from lengthwise.training.bench.engines.generation import Generation
    from lengthwise.training.bench.session import measure

    if engine not in ENGINES or (warp and engine != "vllm"):
        raise InputError(f"engine must be one of {', '.join(ENGINES)}, --warp is vllm's: {engine}")
    if generated and (warp or emulate or engine != "vllm"):
        raise InputError("--generated is of the real engine: no --emulate, --warp, --engine")
    if not generated:
        refuse(ctx, ("max_tokens", "temperature"), "goes with --generated")
    wanted = parse_arms(arms)
    if not warp:
        refuse(ctx, WARPED_ONLY, "goes with --warp")
    elif instances == 1:
        refuse(ctx, ("route", "router"), "chooses among several --instances")
    if engine != "vllm":
        refuse(ctx, ("sa_params",), f"goes with vLLM, got --engine {engine}")
    if all(arm.policy != "sa" for arm in wanted):
        refuse(ctx, ("sa_params",), f"no arm of {arms} is policy sa")
    if duration is not None:
        refuse(ctx, ("requests",), f"stands for --duration {duration:g}: give one of them")
    if recalibrate:
        why = "is taken as it is, got --recalibrate with it"
        refuse(ctx, ("emulate", "profile", "capacity_rps"), why)
    if Path(workload).is_file():
        refuse(ctx, ("source", "arrivals"), f"goes with a named workload, got the file {workload}")
    predictor_or_none = check_predictor_of(wanted, predictor, "--predictor")
    params = read_params(sa_params)
    settings = BenchSettings(
        arms=tuple(replace(arm, params=params) if arm.policy == "sa" else arm for arm in wanted),
        workload=workload,
        source=source,
        arrivals=arrivals,
        load=ARENA_LOAD if load is None and is_arena(workload) else load,
        requests=requests,
        duration_s=duration,
        repeats=repeats,
        seed=seed,
        timeout_s=timeout,
        capacity_rps=capacity_rps,
        predictor=predictor_or_none,
        profile=profile,
        plan_budget_ms=plan_budget_ms,
        model=model,
        recalibrate=recalibrate,
        vllm_args=vllm_args(ctx),
        emulate=emulate,
        generation=Generation(max_tokens, temperature, seed) if generated else None,
    )
    workspace, say = Workspace.current(), console.stage_printer()
    with engine_errors(), console.progress(quiet=as_json) as steps:
        if warp:
            from lengthwise.training.bench.runners.fleet_runner import parse_routers
            from lengthwise.training.bench.runners.warped_runner import WarpSettings
            from lengthwise.training.bench.warped_session import measure_warped

            played = WarpSettings(
                instances=instances,
                route=route,
                routers=() if router is None else parse_routers(router),
                search_steps=search_steps,
                host_factor=host_factor,
                jobs=jobs,
            )
            done = measure_warped(settings, played, workspace=workspace, steps=steps, say=say)
        elif engine == "lmdeploy":
            from lengthwise.training.bench.lmdeploy_session import measure_lmdeploy

            done = measure_lmdeploy(settings, workspace=workspace, steps=steps, say=say)
        else:
            done = measure(settings, workspace=workspace, steps=steps, say=say)
    show(done.outcome.result, done.page, as_json=as_json)


def read_params(text: str | None) -> tuple[tuple[str, Any], ...]:
    """The parameters of a policy in a JSON object; InputError when it is none."""
    if text is None:
        return ()
    from lengthwise.scheduler.policies.policy_params import checked_params

    params = parse_object(text, "--sa-params")
    try:
        return tuple(sorted(checked_params("sa", params).items()))
    except ValueError as error:
        raise InputError(f"--sa-params: {error}") from error


def demo(
    minutes: Annotated[
        float, typer.Option(help="About how long the measured runs may take in all.")
    ] = 4.5,
    seed: Annotated[
        int, typer.Option(min=0, max=MOST_SEED, help="Seed of training and workload.")
    ] = 0,
) -> None:
    """Train, register, calibrate, serve and compare with stock vLLM, all in one go."""
    if not minutes > 0:
        raise InputError(f"minutes must be above 0, got {minutes:g}")
    from lengthwise.training.cli.benching.demo import run_demo

    with engine_errors(), console.progress() as steps:
        result, page = run_demo(
            minutes=minutes,
            seed=seed,
            workspace=Workspace.current(),
            steps=steps,
            say=console.stage_printer(),
        )
    show(result, page, as_json=False)


@contextmanager
def engine_errors() -> Iterator[None]:
    """An engine that fails is not a bug of ours: its message, exit 1, no traceback."""
    from lengthwise.scheduler.serving.server.server_handle import ServerStartError
    from lengthwise.scheduler.vllm_adapter.emulated.player_process import PlayerError
    from lengthwise.training.bench.engines.client import BenchError

    try:
        yield
    except (ServerStartError, BenchError, PlayerError) as error:
        console.stderr().print(f"lengthwise: error: {error}", markup=False, soft_wrap=True)
        raise typer.Exit(1) from error


def vllm_args(ctx: typer.Context) -> tuple[str, ...]:
    """What the user meant for vLLM.

    Raises:
        InputError: a stray word that is not an option's value.
    """
    if ctx.args and not ctx.args[0].startswith("-"):
        raise InputError(f"unexpected argument {ctx.args[0]!r}; options for vLLM start with --")
    return tuple(ctx.args)
