"""`lengthwise demo`: the whole story once, from data to the comparison with stock vLLM."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

from lengthwise.data.arena.workloads import arena_workload
from lengthwise.data.sources.load import SYNTHETIC
from lengthwise.training.bench.comparison.arms import parse_arms
from lengthwise.training.bench.comparison.bench_settings import BenchSettings
from lengthwise.training.bench.results.report import REPORT_FILE
from lengthwise.training.bench.results.result import BenchResult
from lengthwise.training.bench.session import measure
from lengthwise.training.console import Steps
from lengthwise.training.train.pipeline import TrainConfig, train
from lengthwise.training.workspace import Workspace

WORKLOAD = "paper"
LOAD = 1.5
# one long run an arm: what separates the arms is how long the overload lasts
REPEATS = 1
ARMS = "sa:learned"
# a run at load L needs about L times its arrival span: the backlog drains after the last arrival
RUNS = REPEATS * (1 + len(ARMS.split(",")))


def run_demo(
    *,
    minutes: float,
    seed: int,
    workspace: Workspace,
    steps: Steps,
    say: Callable[[str], None],
) -> tuple[BenchResult, Path]:
    """Train and register a predictor, start both servers, calibrate, compare, report.

    Args:
        minutes: for all measured runs together.
        seed: of the training and of the workload.
        workspace: for everything written.
        steps: progress bars.
        say: told one line at every stage.

    Returns:
        The result and the report, which is also copied to `report.html` in the workspace.
    """
    source = arena_workload(WORKLOAD).default_source
    if source == SYNTHETIC:
        say("no data found ($LENGTHWISE_DATA): using the built-in SYNTHETIC corpus")
    else:
        say(f"data: pack {source}")
    trained = train(
        TrainConfig(source=source, seed=seed, register=True), workspace=workspace, steps=steps
    )
    learned, by_class = trained.metrics, trained.metrics["baselines"]["class_quantiles"]
    say(
        f"trained on {trained.rows['train']} rows in {trained.duration_s:.0f} s: mean error "
        f"{learned['mae']:.0f} tokens against {by_class['mae']:.0f} for the class median; "
        f"registered as {trained.model_uri}"
    )
    say("starting stock vLLM and lengthwise side by side (loaded in turn, never at once)")
    done = measure(
        BenchSettings(
            workload=WORKLOAD,
            arms=parse_arms(ARMS),
            predictor=trained.model_uri,
            source=source,
            load=LOAD,
            duration_s=60 * minutes / RUNS / LOAD,
            repeats=REPEATS,
            seed=seed,
            recalibrate=True,
        ),
        workspace=workspace,
        steps=steps,
        say=say,
    )
    page = Path(shutil.copy(done.page, workspace.root / REPORT_FILE))
    say(f"logged to MLflow (run {done.mlflow_run_id}) against {trained.model_uri}")
    return done.outcome.result, page
