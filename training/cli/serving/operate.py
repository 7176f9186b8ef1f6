"""Commands beside a server: ``follow`` and ``doctor``."""

from __future__ import annotations

from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from lengthwise.training import console
from lengthwise.training.cli.serving.serve_line import DEFAULT_PORT
from lengthwise.training.workspace import Workspace


def follow(
    live: Annotated[Path, typer.Option(help="The live file of a running server.")],
    poll_s: Annotated[
        float, typer.Option(min=0.1, help="Seconds between looks at the registry.")
    ] = 30.0,
    once: Annotated[bool, typer.Option("--once", help="Look once and end.")] = False,
) -> None:
    """Keep a server's live file in step with the registry.

    For a server that `lengthwise serve` did not start: its settings name the same live_file. The
    aliases champion and shadow of output-length become its predictor and its shadow.
    """
    from lengthwise.training.registry.follow import Follower
    from lengthwise.training.registry.follow import follow as keep_following

    say = partial(console.stderr().print, markup=False, soft_wrap=True)
    follower = Follower(Workspace.current(), say)
    keep_following(live, follower, poll_s=poll_s, once=once, say=say)


def doctor(
    model: Annotated[str, typer.Option(help="The model to be served.")] = "tiny",
    port: Annotated[int, typer.Option(min=1, max=65535)] = DEFAULT_PORT,
    request_log: Annotated[
        Path | None, typer.Option(help="The request log's directory, if there is to be one.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON document.")] = False,
) -> None:
    """Check what training and serving need.

    Installation, vLLM and its hooks, caches, tracking store, champion, model, tokenizer, data,
    the folders that a server writes to, port; with what to do about each.
    """
    from lengthwise.training.doctor.checks import failed, run_checks

    with console.progress(quiet=as_json) as steps:
        checks = run_checks(
            workspace=Workspace.current(),
            model=model,
            port=port,
            log_dir=request_log,
            steps=steps,
        )
    if as_json:
        console.print_json({"ok": not failed(checks), "checks": [asdict(c) for c in checks]})
    else:
        console.print_checks([(c.status, c.name, c.detail, c.advice) for c in checks])
    raise typer.Exit(1 if failed(checks) else 0)
