"""Options and defaults that ``bench``, ``simulate`` and ``calibrate`` have in common."""

from __future__ import annotations

from typing import Annotated

import typer

ARENA_LOAD = 1.5
ARENA_REQUESTS = 1000
WORKLOAD_HELP = (
    "paper | mixed | tails | agents | documents | tight | mixed-long, "
    "or a workload file (JSON lines)."
)
JsonOption = Annotated[bool, typer.Option("--json", help="Only the JSON document on stdout.")]
SourceOption = Annotated[
    str | None, typer.Option(help="Data source of a named workload; by default the best found.")
]
ArrivalsOption = Annotated[str, typer.Option(help="poisson | azure | gamma (named workloads).")]
