"""Command ``demo-real``: the loop on a real model, in a workspace of its own."""

from __future__ import annotations

import os
import shutil
from typing import Annotated

import typer

from lengthwise.training import console
from lengthwise.training.cli.pairs import MOST_SEED
from lengthwise.training.workspace import HOME_VARIABLE, Workspace

STORE_VARIABLE = "MLFLOW_TRACKING_URI"


def register(app: typer.Typer) -> None:
    """Add it to the app."""
    app.command("demo-real")(demo_real)


def demo_real(
    prompts: Annotated[int, typer.Option(help="Answers to learn from.")] = 200,
    twice: Annotated[
        int, typer.Option(help="Unseen prompts answered twice, at temperature 0 and the other.")
    ] = 40,
    requests: Annotated[int, typer.Option(help="Requests of the comparison, per arm.")] = 100,
    max_tokens: Annotated[int, typer.Option(min=1, help="Limit of every answer.")] = 384,
    temperature: Annotated[float, typer.Option(min=0, help="Of the sampling.")] = 0.7,
    load: Annotated[float, typer.Option(help="Multiple of what the engine can carry.")] = 1.3,
    arms: Annotated[str, typer.Option(help="Beside stock vLLM.")] = "sa:learned",
    workload: Annotated[str, typer.Option(help="A workload of the arena.")] = "paper",
    source: Annotated[
        str | None, typer.Option(help="Prompts: a pack, or synthetic; by default the best found.")
    ] = None,
    seed: Annotated[
        int, typer.Option(min=0, max=MOST_SEED, help="Of draws, training and answers.")
    ] = 0,
    fresh: Annotated[
        bool, typer.Option("--fresh", help="Forget what an earlier run has done.")
    ] = False,
) -> None:
    """Serve a real model, learn from its own answers, compare on generated lengths.

    Needs the packaged SmolLM2. A run that was stopped goes on where it stopped. Exit status 1
    when a stage failed or an answer was lost.
    """
    from lengthwise.predictor.features.reader_weights import PACKAGED
    from lengthwise.training.cli.benching.bench import engine_errors
    from lengthwise.training.packaged_model import packaged_model
    from lengthwise.training.real_demo.real_demo import RealSettings, run_real_demo
    from lengthwise.training.real_demo.real_page import show_report
    from lengthwise.training.real_demo.real_report import lost_answers, real_report

    settings = RealSettings(
        prompts, twice, requests, max_tokens, temperature, load, arms, workload, source, seed
    )
    outer = Workspace.current()
    say = console.stage_printer()
    say(f"the packaged model {PACKAGED}: converted once, 20 s")
    packaged_model(PACKAGED, [])
    home = Workspace(outer.cache / "demo-real")
    if fresh and home.root.exists():
        shutil.rmtree(home.root)
    home.cache.mkdir(parents=True, exist_ok=True)
    readers = home.cache / "readers"
    if not readers.exists():
        readers.symlink_to(outer.cache / "readers")
    # its versions, logs and store are none of the user's own
    os.environ[HOME_VARIABLE] = str(home.root)
    os.environ.pop(STORE_VARIABLE, None)
    with engine_errors():
        found = run_real_demo(settings, workspace=home, say=say)
        report = real_report(found, workspace=home)
    show_report(report, home.root)
    if lost := lost_answers(report):
        console.stderr().print(f"lengthwise: error: {lost} answers were lost", markup=False)
        raise typer.Exit(1)
