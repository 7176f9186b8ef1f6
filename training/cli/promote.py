"""Command ``promote``: judge a challenger by SLO attainment, move the champion's alias, or back."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from lengthwise.data.errors import InputError
from lengthwise.training import console
from lengthwise.training.cli.pairs import refuse
from lengthwise.training.cli.serving.serve_inputs import read_slo_table
from lengthwise.training.workspace import Workspace

if TYPE_CHECKING:
    from lengthwise.scheduler.profile import EngineProfile
    from lengthwise.training.bench.judge import PromotionDecision, Traffic


def register(app: typer.Typer) -> None:
    """Add the command to the app."""
    app.command("promote")(promote)


def promote(
    ctx: typer.Context,
    challenger: Annotated[
        str, typer.Option(help="The version to judge.")
    ] = "models:/output-length@challenger",
    champion: Annotated[
        str, typer.Option(help="The version it must not be worse than.")
    ] = "models:/output-length@champion",
    from_log: Annotated[
        Path | None, typer.Option(help="Replay the last requests of this request log.")
    ] = None,
    workload: Annotated[
        str, typer.Option(help="Without a log: a workload of the arena, or a file.")
    ] = "mixed",
    source: Annotated[str | None, typer.Option(help="Data source of a named workload.")] = None,
    load: Annotated[
        float | None,
        typer.Option(help="Multiple of capacity; a log keeps its pace, the arena takes 1.4."),
    ] = None,
    requests: Annotated[
        int | None,
        typer.Option(min=100, help="Requests to replay [2000; a workload file's all]."),
    ] = None,
    seeds: Annotated[int, typer.Option(min=1, help="Draws of a named workload.")] = 3,
    profile: Annotated[
        str | None, typer.Option(help="Engine profile; by default the served model's.")
    ] = None,
    model: Annotated[
        str | None, typer.Option(help="The served model; by default what the log's server said.")
    ] = None,
    slo_table: Annotated[
        Path | None, typer.Option(help="JSON: the server's SLO table; by default what it said.")
    ] = None,
    force: Annotated[bool, typer.Option(help="Promote whatever the comparison says.")] = False,
    dry_run: Annotated[bool, typer.Option(help="Compare only; nothing is written.")] = False,
    rollback: Annotated[
        bool, typer.Option("--rollback", help="Back to the champion before the last promotion.")
    ] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="One JSON document on the last line.")
    ] = False,
) -> None:
    """Promote the challenger if its SLO attainment is not worse and its intervals hold.

    Both versions predict the same traffic and the simulator serves it with each. Exit status 1
    when the challenger is refused.
    """
    from lengthwise.training.bench import judge as promotion
    from lengthwise.training.bench.served import server_of
    from lengthwise.training.registry.connection import check_writable
    from lengthwise.training.registry.models import resolve_predictor
    from lengthwise.training.registry.promotions import roll_back

    if rollback:
        others = (name for name in ctx.params if name not in ("rollback", "as_json"))
        refuse(ctx, others, "belongs to a comparison, got --rollback with it")
    if dry_run:
        refuse(ctx, ("force",), "promotes, got --dry-run with it, which writes nothing")
    if from_log is not None:
        why = f"is of a workload, got --from-log {from_log} with it"
        refuse(ctx, ("workload", "source", "seeds"), why)
    workspace = Workspace.current()
    if not dry_run:
        check_writable(workspace)  # now, not after minutes of replaying
    if rollback:
        now, before = roll_back(workspace=workspace)
        if as_json:
            console.print_json({"champion": int(now), "previous": int(before)})
        else:
            print(f"champion is version {now} again, instead of version {before}")
        return
    if load is not None and not load > 0:
        raise InputError(f"load must be above 0, got {load:g}")
    with console.progress(quiet=as_json) as steps:
        steps.step("finding the versions")
        sides = [resolve_predictor(uri, workspace=workspace) for uri in (champion, challenger)]
        if sides[0].directory == sides[1].directory:
            raise InputError(f"champion and challenger are the same predictor, {sides[1].label}")
        steps.step("reading the traffic")
        table = read_slo_table(slo_table) if slo_table else None
        server = server_of(from_log, workspace, profile=profile, model=model, slo_table=table)
        why = f"{server.profile.name}, {server.chosen_by}"
        traffic = _traffic(
            from_log, workload, source, requests or promotion.MOST_REQUESTS, server.profile
        )
        named = traffic.source.table is not None
        steps.step("replaying it with both")
        decision = promotion.judge(
            *sides,
            traffic,
            server,
            load=load or (1.4 if named else None),
            requests=promotion.MOST_REQUESTS if requests is None and named else requests,
            seeds=seeds if named else None,
        )
        steps.step("writing the decision")
        moved = promotion.promote(
            decision, sides[1], force=force, dry_run=dry_run, workspace=workspace
        )
    if as_json:
        console.print_json(
            decision.to_json()
            | {"profile_reason": why, "left_out": list(traffic.left_out)}
            | {"promoted": moved, "dry_run": dry_run}
        )
    else:
        _print(decision, moved, dry_run, why, traffic.left_out)
    if not (decision.promote or force):
        raise typer.Exit(1)


def _traffic(
    from_log: Path | None,
    workload: str,
    source: str | None,
    most: int,
    profile: EngineProfile,
) -> Traffic:
    from lengthwise.training.bench.comparison.workload_source import open_workload
    from lengthwise.training.bench.judge import Traffic, logged_traffic

    if from_log is not None:
        return logged_traffic(from_log, most)
    return Traffic(open_workload(workload, source=source, profile=profile))


def _print(
    decision: PromotionDecision, moved: bool, dry_run: bool, why: str, left_out: tuple[str, ...]
) -> None:
    sides = {"champion": decision.champion, "challenger": decision.challenger}
    load = "at its own pace" if decision.load is None else f"at load {decision.load:g}"
    console.print_table(
        f"{decision.traffic} {load}, {decision.requests} requests (modeled, no engine ran)",
        ["", "predictor", "SLO met", "80 % intervals hold", "MAE"],
        [
            [
                name,
                s.label,
                f"{s.attainment:.1%}",
                f"{s.coverage:.1%} of {s.coverage_due:.0%}",
                f"{s.mae:.1f}",
            ]
            for name, s in sides.items()
        ],
    )
    low, high = decision.difference_ci95
    if left_out:
        print(f"Left out of the log's requests: {', '.join(left_out)}.")
    print(f"Played on engine profile {why}.")
    print(
        f"Paired difference {100 * decision.difference:+.1f} points "
        f"(95 % interval {100 * low:+.1f} to {100 * high:+.1f})."
    )
    for reason in decision.reasons:
        print(f"Against it: {reason}.")
    if dry_run:
        print("Dry run: would " + ("promote" if decision.promote else "refuse") + ".")
    else:
        print(f"{decision.challenger.label} " + ("is champion now." if moved else "is refused."))
