"""Command ``simulate``: policies on the modelled engine."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from lengthwise.data.max_wait import MAX_WAIT_S
from lengthwise.training import console
from lengthwise.training.cli.benching.bench_options import (
    ARENA_LOAD,
    ARENA_REQUESTS,
    WORKLOAD_HELP,
    ArrivalsOption,
    JsonOption,
    SourceOption,
)
from lengthwise.training.cli.benching.results_shown import show
from lengthwise.training.cli.pairs import MOST_SEED, check_predictor_of, refuse
from lengthwise.training.workspace import Workspace


def simulate(
    ctx: typer.Context,
    workload: Annotated[str, typer.Option(help=WORKLOAD_HELP)] = "paper",
    load: Annotated[
        float | None, typer.Option(help="Multiple of capacity [1.5; a file keeps its own pace].")
    ] = None,
    policy: Annotated[
        str,
        typer.Option(
            help="Comma-separated POLICY or POLICY:LENGTHS; the first is the base. lmdeploy is "
            "LMDeploy's own scheduler, lmdeploy+POLICY the same with our order (make lmdeploy)."
        ),
    ] = "fcfs,feasible-edf,sa",
    lengths: Annotated[
        str, typer.Option(help="oracle | learned | class | none, where a policy names none.")
    ] = "class",
    model: Annotated[
        str | None, typer.Option(help="Predictor: model URI or directory (learned, class).")
    ] = None,
    profile: Annotated[
        str,
        typer.Option(help="Engine profile: a name or a file; of instances in turn, with commas."),
    ] = "tiny-cpu",
    instances: Annotated[int, typer.Option(min=1, help="Engines side by side.")] = 1,
    router: Annotated[
        str | None,
        typer.Option(help="Comma-separated routers, each an arm [gain, with --instances]."),
    ] = None,
    requests: Annotated[
        int | None, typer.Option(min=1, help="Requests per seed [1000 an instance; a file's all].")
    ] = None,
    seeds: Annotated[
        int | None, typer.Option(min=1, help="Draws of the workload [3; a file is played once].")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, max=MOST_SEED, help="First seed.")] = 0,
    source: SourceOption = None,
    arrivals: ArrivalsOption = "poisson",
    plan_budget_ms: Annotated[
        float | None,
        typer.Option(
            help="Longest search for one plan [a fixed number of steps, so that the figures do "
            "not depend on how busy this machine is]."
        ),
    ] = None,
    max_wait: Annotated[
        float, typer.Option(help="Seconds after which a request goes first.")
    ] = MAX_WAIT_S,
    output: Annotated[Path | None, typer.Option(help="Directory for records and report.")] = None,
    no_bound: Annotated[
        bool, typer.Option("--no-bound", help="Leave out what no scheduler can exceed.")
    ] = False,
    jobs: Annotated[int, typer.Option(min=1, help="Processes to play in.")] = 1,
    as_json: JsonOption = False,
) -> None:
    """Play policies on the modelled engine; same tables, files and report as bench.

    The last line is the result as one JSON document, for programs; --json prints nothing else.
    """
    from lengthwise.scheduler.lmdeploy_adapter.lmdeploy_player import with_lmdeploy
    from lengthwise.scheduler.policies.make import POLICIES
    from lengthwise.training.bench.comparison.arms import parse_arms
    from lengthwise.training.bench.comparison.bench_settings import BenchSettings
    from lengthwise.training.bench.comparison.workload_source import is_arena
    from lengthwise.training.bench.results.report import write_run
    from lengthwise.training.bench.runners.fleet_runner import parse_routers
    from lengthwise.training.bench.session import run_modeled

    named = is_arena(workload)
    if Path(workload).is_file():
        refuse(ctx, ("source", "arrivals"), f"goes with a named workload, got the file {workload}")
    arms = parse_arms(policy, default_lengths=lengths, policies=with_lmdeploy(POLICIES))
    routers = parse_routers(router or "gain") if router or instances > 1 else ()
    settings = BenchSettings(
        arms=arms,
        workload=workload,
        source=source,
        arrivals=arrivals,
        load=ARENA_LOAD if load is None and named else load,
        requests=ARENA_REQUESTS * instances if requests is None and named else requests,
        repeats=seeds,
        seed=seed,
        predictor=check_predictor_of(arms, model, "--model"),
        profile=profile,
        plan_budget_ms=plan_budget_ms,
        max_wait_s=max_wait,
        instances=instances,
        routers=routers,
    )
    with console.progress(quiet=as_json) as steps:
        outcome = run_modeled(
            settings,
            workspace=Workspace.current(),
            with_bound=not no_bound,
            jobs=jobs,
            steps=steps,
        )
    page = None
    if output is not None:
        page = write_run(output, outcome.result, outcome.records, outcome.queue)
    show(outcome.result, page, as_json=as_json)
