"""Commands that measure: ``calibrate``, ``simulate``, ``bench``, ``report``, ``demo``."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lengthwise.data.errors import InputError
from lengthwise.training import console
from lengthwise.training.registry.models import DEFAULT_PREDICTOR
from lengthwise.training.workspace import Workspace

if TYPE_CHECKING:
    from lengthwise.predictor.model import LengthPredictor
    from lengthwise.training.bench.result import BenchResult

WORKLOAD_HELP = (
    "paper | mixed | tails | agents | documents | tight | mixed-long, "
    "or a workload file (JSON lines)."
)
JsonOption = Annotated[bool, typer.Option("--json", help="Only the JSON document on stdout.")]
SourceOption = Annotated[
    str | None, typer.Option(help="Data source of a named workload; by default the best found.")
]
ArrivalsOption = Annotated[str, typer.Option(help="poisson | azure | gamma (named workloads).")]


def register(app: typer.Typer) -> None:
    """Add the commands to the app."""
    passing_on = {"allow_extra_args": True, "ignore_unknown_options": True}
    app.command("calibrate", context_settings=passing_on)(calibrate)
    app.command("simulate")(simulate)
    app.command("bench", context_settings=passing_on)(bench)
    app.command("report")(report)
    app.command("demo")(demo)


def calibrate(
    ctx: typer.Context,
    model: Annotated[str, typer.Option(help="'tiny' or a model vLLM can load.")] = "tiny",
    out: Annotated[Path | None, typer.Option(help="Profile to write.")] = None,
    workload: Annotated[str, typer.Option(help=WORKLOAD_HELP)] = "paper",
    source: SourceOption = None,
    as_json: JsonOption = False,
) -> None:
    """Fit the step-time model to the real engine and measure what it can carry.

    Further options go to vLLM. The profile is kept in the workspace, where bench finds it.
    """
    from lengthwise.training.bench.calibrate import (
        calibrate_server,
        calibration_rows,
        write_profile,
    )
    from lengthwise.training.bench.servers import start_servers
    from lengthwise.training.bench.session import profile_path
    from lengthwise.training.bench.workload import open_workload

    workspace = Workspace.current()
    requests = open_workload(workload, source=source)
    path = out or profile_path(workspace, model)
    directory = workspace.new_run_dir("calibrate")
    say = stage_printer()
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
        done = calibrate_server(servers, requests, name=path.stem, on_stage=say)
    write_profile(done, path)
    if as_json:
        console.print_json({"profile": str(path), **done.report})
    else:
        console.print_table(f"Calibrated: {path}", ["quantity", "value"], calibration_rows(done))


def simulate(
    workload: Annotated[str, typer.Option(help=WORKLOAD_HELP)] = "paper",
    load: Annotated[
        float | None, typer.Option(help="Multiple of capacity; a file keeps its own pace.")
    ] = None,
    policy: Annotated[
        str, typer.Option(help="Comma-separated POLICY or POLICY:LENGTHS; the first is the base.")
    ] = "fcfs,feasible-edf,sa",
    lengths: Annotated[
        str, typer.Option(help="oracle | learned | class | none, where a policy names none.")
    ] = "class",
    model: Annotated[
        str | None, typer.Option(help="Predictor: model URI or directory (learned, class).")
    ] = None,
    profile: Annotated[str, typer.Option(help="Engine profile: a name or a file.")] = "tiny-cpu",
    requests: Annotated[int, typer.Option(min=1, help="Requests per seed.")] = 1000,
    seeds: Annotated[int, typer.Option(min=1, help="Draws of the workload.")] = 3,
    seed: Annotated[int, typer.Option(min=0, help="First seed.")] = 0,
    source: SourceOption = None,
    arrivals: ArrivalsOption = "poisson",
    plan_budget_ms: Annotated[float, typer.Option(help="Longest search for one plan.")] = 1.0,
    max_wait: Annotated[
        float, typer.Option(help="Seconds after which a request goes first.")
    ] = 120.0,
    output: Annotated[Path | None, typer.Option(help="Directory for records and report.")] = None,
    no_bound: Annotated[
        bool, typer.Option("--no-bound", help="Leave out what no scheduler can exceed.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Play policies on the modelled engine; same tables, files and report as bench."""
    from lengthwise.training.bench.arms import parse_arms
    from lengthwise.training.bench.report import write_run
    from lengthwise.training.bench.session import read_profile
    from lengthwise.training.bench.simulator_runner import SimulateSettings, run_simulation
    from lengthwise.training.bench.workload import open_workload
    from lengthwise.training.registry.models import resolve_predictor

    arms = parse_arms(policy, default_lengths=lengths)
    engine = read_profile(profile)
    chosen = open_workload(workload, source=source, arrivals=arrivals, profile=engine)
    if load is None and chosen.table is not None:
        load = 1.5
    label, predictor = None, None
    if model is not None or any(arm.lengths == "learned" for arm in arms):
        resolved = resolve_predictor(model or DEFAULT_PREDICTOR, workspace=Workspace.current())
        label, predictor = resolved.label, load_predictor(resolved.directory)
    settings = SimulateSettings(
        arms=arms,
        load=load,
        requests=requests,
        seeds=seeds,
        seed=seed,
        budget_s=plan_budget_ms / 1e3,
        max_wait_s=max_wait,
        with_bound=not no_bound,
    )
    with console.progress(quiet=as_json) as steps:
        steps.step("simulate", (len(arms) + settings.with_bound) * seeds)
        outcome = run_simulation(
            chosen,
            engine,
            settings,
            predictor=predictor,
            predictor_label=label,
            on_step=lambda _: steps.advance(),
        )
    page = None
    if output is not None:
        page = write_run(output, outcome.result, outcome.records, outcome.queue)
    show(outcome.result, page, as_json=as_json)


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
        float | None, typer.Option(help="Seconds of arrivals per run, instead of --requests [60].")
    ] = None,
    repeats: Annotated[
        int, typer.Option("--repeats", "--seeds", help="Runs of every arm, each with other draws.")
    ] = 3,
    model: Annotated[str, typer.Option(help="'tiny' or a model vLLM can load.")] = "tiny",
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
    seed: Annotated[int, typer.Option(min=0, help="Seed of the first repeat.")] = 0,
    timeout: Annotated[float, typer.Option(help="Seconds after which a request is lost.")] = 600.0,
    plan_budget_ms: Annotated[float, typer.Option(help="Longest search for one plan.")] = 1.0,
    emulate: Annotated[
        str | None,
        typer.Option(
            help="Engine profile, a name or a file: real servers on a device that takes its time "
            "and computes nothing. --profile is then what the planner takes it for."
        ),
    ] = None,
    warp: Annotated[
        bool,
        typer.Option(
            "--warp",
            help="With --emulate: engines without servers, in one process, in warped time.",
        ),
    ] = False,
    instances: Annotated[int, typer.Option(min=1, help="With --warp: engines side by side.")] = 1,
    route: Annotated[
        str, typer.Option(help="With --instances: least-outstanding | round-robin.")
    ] = "least-outstanding",
    search_steps: Annotated[
        int, typer.Option(min=0, help="With --warp: annealing steps a plan, in place of a time.")
    ] = 300,
    host_factor: Annotated[
        float,
        typer.Option(
            help="With --warp: charge the host's processor time so many times; 0 repeats exactly."
        ),
    ] = 0.0,
    sa_params: Annotated[
        str | None, typer.Option(help="With --warp: JSON object of parameters of policy sa.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Measure stock vLLM and our arms on the same requests, on the real engine.

    Further options go to vLLM, for both servers alike: --max-num-seqs 16 ...
    With --emulate the engine's device is a profile: see docs/emulated.md.
    """
    from lengthwise.training.bench.arms import parse_arms
    from lengthwise.training.bench.session import BenchRequest, measure
    from lengthwise.training.bench.workload import is_arena

    if load is None and is_arena(workload):
        load = 1.5
    request = BenchRequest(
        workload=workload,
        arms=parse_arms(arms),
        predictor=predictor,
        model=model,
        source=source,
        arrivals=arrivals,
        load=load,
        requests=requests,
        duration_s=duration,
        repeats=repeats,
        seed=seed,
        timeout_s=timeout,
        capacity_rps=capacity_rps,
        profile=profile,
        recalibrate=recalibrate,
        plan_budget_ms=plan_budget_ms,
        vllm_args=vllm_args(ctx),
        emulate=emulate,
    )
    workspace, say = Workspace.current(), stage_printer()
    if warp:
        from lengthwise.training.bench.warped import WarpedSettings
        from lengthwise.training.bench.warped_session import measure_warped

        settings = WarpedSettings(
            arms=request.arms,
            load=load,
            seeds=repeats,
            seed=seed,
            search_steps=search_steps,
            instances=instances,
            route=route,
            host_factor=host_factor,
            policy_params=read_params(sa_params),
        )
        with engine_errors(), console.progress(quiet=as_json) as steps:
            done = measure_warped(request, settings, workspace=workspace, steps=steps, say=say)
    else:
        with engine_errors(), console.progress(quiet=as_json) as steps:
            done = measure(request, workspace=workspace, steps=steps, say=say)
    show(done.outcome.result, done.page, as_json=as_json)


def read_params(text: str | None) -> dict[str, Any]:
    """The object of a JSON text; InputError when it is none."""
    if text is None:
        return {}
    try:
        values = json.loads(text)
    except ValueError as error:
        raise InputError(f"--sa-params must be a JSON object: {error}") from error
    if not isinstance(values, dict):
        raise InputError(f"--sa-params must be a JSON object, got {text!r}")
    return values


def report(
    run: Annotated[Path, typer.Argument(help="Directory of a bench or simulate run.")],
    out: Annotated[Path | None, typer.Option(help="HTML to write; default: in the run.")] = None,
) -> None:
    """Write the HTML report of a run again, from its files."""
    from lengthwise.training.bench.report import REPORT_FILE, read_run, render

    page = out or run / REPORT_FILE
    page.write_text(render(*read_run(run)), encoding="utf-8")
    print(page)


def demo(
    minutes: Annotated[
        float, typer.Option(help="About how long the measured runs may take in all.")
    ] = 4.5,
    seed: Annotated[int, typer.Option(min=0, help="Seed of training and workload.")] = 0,
) -> None:
    """Train, register, calibrate, serve and compare with stock vLLM, all in one go."""
    if not minutes > 0:
        raise InputError(f"minutes must be above 0, got {minutes:g}")
    from lengthwise.training.cli.demo import run_demo

    with engine_errors(), console.progress() as steps:
        result, page = run_demo(
            minutes=minutes,
            seed=seed,
            workspace=Workspace.current(),
            steps=steps,
            say=stage_printer(),
        )
    show(result, page, as_json=False)


@contextmanager
def engine_errors() -> Iterator[None]:
    """An engine that fails is not a bug of ours: its message, exit 1, no traceback."""
    from lengthwise.scheduler.vllm_adapter.emulated.player_process import PlayerError
    from lengthwise.scheduler.vllm_adapter.server.launch import ServerStartError
    from lengthwise.training.bench.client import BenchError

    try:
        yield
    except (ServerStartError, BenchError, PlayerError) as error:
        console.stderr().print(f"lengthwise: error: {error}", markup=False, soft_wrap=True)
        raise typer.Exit(1) from error


def load_predictor(directory: Path) -> LengthPredictor:
    """The predictor in a directory."""
    from lengthwise.predictor.model import LengthPredictor

    return LengthPredictor.load(directory)


def stage_printer() -> Callable[[str], None]:
    """Prints one line per stage on stderr with the seconds since this call."""
    started_s = time.perf_counter()
    printer = console.stderr()

    def say(text: str) -> None:
        printer.print(
            f"[{time.perf_counter() - started_s:6.1f} s] {text}", markup=False, soft_wrap=True
        )

    return say


def vllm_args(ctx: typer.Context) -> tuple[str, ...]:
    """What the user meant for vLLM.

    Raises:
        InputError: a stray word that is not an option's value.
    """
    if ctx.args and not ctx.args[0].startswith("-"):
        raise InputError(f"unexpected argument {ctx.args[0]!r}; options for vLLM start with --")
    return tuple(ctx.args)


def show(result: BenchResult, page: Path | None, *, as_json: bool) -> None:
    """The table for people, then the document as the last line."""
    from lengthwise.training.bench.report import KINDS, arm_rows, headline, subline, warnings

    if not as_json:
        kind = KINDS[result.provenance]
        load = "" if result.load is None else f" at load {result.load:g}"
        rows = arm_rows(result.arms)
        if result.bound is not None:
            bound = {"arm": "bound", "SLO met": f"{100 * result.bound:.1f} %"}
            rows.append(dict.fromkeys(rows[0], "") | bound)
        title = f"{result.workload}{load} ({kind}; data: {result.source_label})"
        console.print_table(title, list(rows[0]), [list(row.values()) for row in rows])
        notes = [f"note: {text}" for text in warnings(result)]
        for line in (headline(result), subline(result), *notes, page and f"report: {page}"):
            if line:
                print(line)
    print(result.to_line(), flush=True)
