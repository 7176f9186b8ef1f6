"""Results of runs as people and programs see them; command ``report``."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from lengthwise.data.errors import InputError
from lengthwise.training import console
from lengthwise.training.cli.benching.bench_options import JsonOption
from lengthwise.training.cli.pairs import refuse

if TYPE_CHECKING:
    from lengthwise.training.bench.results.result import BenchResult


def show(result: BenchResult, page: Path | None, *, as_json: bool) -> None:
    """The table for people, then the document as the last line."""
    from lengthwise.training.bench.results.report import (
        KINDS,
        arm_rows,
        headline,
        subline,
        warnings,
    )

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


def report(
    ctx: typer.Context,
    runs: Annotated[list[Path], typer.Argument(help="Directories of bench or simulate runs.")],
    out: Annotated[
        Path | None, typer.Option(help="Of one run: HTML to write; default: in the run.")
    ] = None,
    arm: Annotated[
        str | None, typer.Option(help="Of several: the arm to compare with the others [the best].")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Write the HTML report of a run again; of several, compare an arm with the others.

    Of several runs the table holds paired differences on the same requests, in each run and over
    all of them, with 95 % intervals.
    """
    if len(runs) == 1:
        refuse(ctx, ("arm",), "is compared over several runs, got one")
    else:
        refuse(ctx, ("out",), "is the report of one run, got several")
    real = [run.resolve() for run in runs]
    twice = next((run for i, run in enumerate(runs) if real[i] in real[:i]), None)
    if twice is not None:
        raise InputError(f"a run counts once, got {str(twice)!r} twice")
    from lengthwise.training.bench.results.report import REPORT_FILE, best_arm, read_run, render

    read = [read_run(run) for run in runs]
    if len(runs) == 1:
        page = out or runs[0] / REPORT_FILE
        page.write_text(render(*read[0]), encoding="utf-8")
        print(page)
        return
    from lengthwise.training.bench.results.paired import RunRecords, paired_over_runs

    best = best_arm(read[0][0])
    chosen = arm or (best.label if best else read[0][0].arms[0].label)
    named = [
        RunRecords(run.name, result, records)
        for run, (result, records, _) in zip(runs, read, strict=True)
    ]
    found = paired_over_runs(named, chosen)
    if not as_json:
        console.print_table(
            f"{chosen}: SLO met, points more than",
            ["run", "arm", "requests", "points", "95 % interval"],
            [
                [d.run, d.other, str(d.requests), f"{d.points:+.1f}",
                 f"{d.ci95[0]:+.1f} to {d.ci95[1]:+.1f}"]
                for d in found
            ],
        )  # fmt: skip
    console.print_json({"arm": chosen, "differences": [asdict(d) for d in found]})
