"""Commands under ``lengthwise data``: ``list``, ``fetch``, ``describe``, ``workload``,
``synthesize``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from lengthwise.training import console
from lengthwise.training.cli.pairs import MOST_SEED

JsonOption = Annotated[bool, typer.Option("--json", help="One JSON document on the last line.")]


def register(app: typer.Typer) -> None:
    """Add the group ``data`` to the app."""
    group = typer.Typer(
        help="Find, download and describe prompts and traces.\n\n"
        "Files of prompts and answers, and workload files of requests to play: docs/training.md.",
        no_args_is_help=True,
        rich_markup_mode=None,
    )
    group.command("list")(list_sources)
    group.command("fetch")(fetch)
    group.command("describe")(describe)
    group.command("workload")(workload)
    group.command("synthesize")(synthesize)
    app.add_typer(group, name="data")


def list_sources(as_json: JsonOption = False) -> None:
    """What can be trained on, here or fetched."""
    from lengthwise.data.locations import downloads_root
    from lengthwise.data.sources.catalogue import CATALOGUE
    from lengthwise.data.sources.fetch import fetched_file
    from lengthwise.data.sources.load import SYNTHETIC, available_packs, default_source

    default = default_source()
    here = [
        {"name": name, "kind": "pack", "state": "present", "license": "as its rows state"}
        for name in available_packs()
    ]
    here.append(
        {"name": SYNTHETIC, "kind": "built in", "state": "present", "license": "Apache-2.0"}
    )
    public = [
        {
            "name": entry.name,
            "kind": entry.kind,
            "state": "present" if fetched_file(entry.name, downloads_root()) else "to fetch",
            "license": entry.license,
        }
        for entry in CATALOGUE.values()
    ]
    sources = here + public
    if as_json:
        console.print_json({"default": default, "sources": sources})
        return
    rows = [
        [s["name"] + (" (default)" if s["name"] == default else ""), *list(s.values())[1:]]
        for s in sources
    ]
    console.print_table("Sources of prompts and traces", ["name", "kind", "state", "licence"], rows)


def fetch(
    name: Annotated[str, typer.Argument(help="A set that `lengthwise data list` shows.")],
    force: Annotated[bool, typer.Option("--force", help="Fetch again even if present.")] = False,
) -> None:
    """Download a public set.

    Resumable, checked against its SHA-256, licence stated first.
    """
    from lengthwise.data.sources.fetch import fetch as download

    print(download(name, force=force))


def describe(
    spec: Annotated[
        str, typer.Argument(help="Pack, set, file, workload, trace or request log directory.")
    ],
    as_json: JsonOption = False,
) -> None:
    """Rows, lengths, classes, splits, licences."""
    from lengthwise.data.describe import describe as figures
    from lengthwise.training.cli.description import render

    description = figures(spec)
    if as_json:
        console.print_json(description)
    else:
        render(description, console.stdout())


def workload(
    log: Annotated[Path, typer.Argument(help="A server's request log, a directory or a file.")],
    output_file: Annotated[Path, typer.Option("--output", help="Workload file to write (JSONL).")],
    limit: Annotated[int | None, typer.Option(min=1, help="Only the newest so many.")] = None,
    prompts: Annotated[
        bool, typer.Option("--prompts", help="With the texts that the log holds.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Write the traffic of a request log as a workload file.

    For simulate, bench and calibrate --workload: arrivals, lengths, classes and objectives of the
    requests that were answered. What is left out is counted.
    """
    from lengthwise.data.request_log import logged_workload
    from lengthwise.data.skipped import skipped_line
    from lengthwise.data.workload import write_workload

    with console.progress(quiet=as_json) as steps:
        reading = console.Megabytes(steps, str(log))
        requests, skipped = logged_workload(log, limit, with_prompts=prompts, watch=reading)
        steps.step("writing")
        write_workload(output_file, requests)
    span_s = requests[-1].arrival_s
    if as_json:
        console.print_json(
            {
                "workload": str(output_file),
                "requests": len(requests),
                "span_s": span_s,
                "with_prompt_text": sum(r.prompt is not None for r in requests),
                "skipped_rows": skipped.rows,
                "skipped": skipped.to_list(),
                "torn_lines": skipped.torn,
            }
        )
        return
    print(f"{len(requests):,} requests in {span_s:,.1f} s -> {output_file}")
    for entry in skipped.to_list():
        print(f"Skipped {skipped_line(entry)}")
    if skipped.torn:
        print(f"Skipped {skipped.torn:,} lines that were cut off")


def synthesize(
    output_file: Annotated[Path, typer.Option("--output", help="JSONL to write.")],
    rows: Annotated[int, typer.Option(min=1, help="How many rows.")] = 6000,
    seed: Annotated[int, typer.Option(min=0, max=MOST_SEED, help="Same seed, same rows.")] = 0,
) -> None:
    """Write the built-in corpus as JSONL.

    Its prompts come from templates and its lengths are drawn, not measured.
    """
    from lengthwise.data.files import whole_file
    from lengthwise.data.sources.synthetic.corpus import synthetic_table

    table = synthetic_table(rows=rows, seed=seed)
    with whole_file(output_file) as file:
        for row in table.drop(columns="response").to_dict("records"):
            file.write(json.dumps(row, ensure_ascii=False) + "\n")
    console.stderr().print(f"{len(table)} synthetic rows -> {output_file}")
