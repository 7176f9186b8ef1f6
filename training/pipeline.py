"""Train a length predictor: load, split by question, fit, calibrate, evaluate, draw, log, save."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from data.errors import InputError
from data.sources import SYNTHETIC, default_source, load_table
from data.splits import split_table
from data.table import take_rows
from predictor.distribution import LengthDistribution
from training import console, registry
from training.card import METRIC_HEADINGS, flatten, headline, metric_cells
from training.workspace import Workspace

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from data.table import PromptTable
    from predictor.model import LengthPredictor

MIN_ROWS = {"train": 50, "calibration": 20, "test": 20}


@dataclass(frozen=True, slots=True)
class TrainConfig:
    """What to train on and how; ``source`` None is the best data found."""

    source: str | None = None
    estimator: str = "lightgbm"
    seed: int = 0
    limit: int | None = None
    register: bool = False
    alias: str | None = None


@dataclass(frozen=True, slots=True)
class TrainResult:
    """A trained, logged predictor.

    ``model_uri`` is the version's where one was registered, the logged model's otherwise;
    ``metrics`` are of the test split, as `predictor.evaluate.evaluate` returns them.
    """

    model_uri: str
    version: int | None
    run_id: str
    directory: Path
    source_label: str
    rows: Mapping[str, int]
    metrics: Mapping[str, Any]
    duration_s: float

    def to_json(self) -> dict[str, Any]:
        """The document that ``lengthwise train --json`` ends in."""
        return {
            "model_uri": self.model_uri,
            "version": self.version,
            "run_id": self.run_id,
            "directory": str(self.directory),
            "source_label": self.source_label,
            "rows": dict(self.rows),
            "metrics": self.metrics,
            "duration_s": round(self.duration_s, 2),
        }


def train(
    config: TrainConfig, *, workspace: Workspace, steps: console.Steps | None = None
) -> TrainResult:
    """Run the pipeline; the predictor lies in a new directory under the workspace's runs.

    Raises InputError for a source that cannot be read or is too small, RegistryError for a
    tracking store that cannot be written: asked first, so that no training is lost to it.
    """
    from predictor.artifact import estimator_class
    from predictor.evaluate import evaluate
    from predictor.fit import fit_predictor

    steps = steps or console.SilentSteps()
    started = time.perf_counter()
    estimator_class(config.estimator)
    registry.check_writable(workspace)
    steps.step("reading the table")
    source = config.source or default_source()
    table = load_table(source, limit=config.limit)
    parts = split_table(with_text(table, source), seed=config.seed)
    _require_rows(parts, source)
    predictor = fit_predictor(
        parts["train"],
        parts["calibration"],
        estimator=config.estimator,
        seed=config.seed,
        progress=lambda what, share: steps.step(what) if share < 1 else None,
    )
    steps.step("evaluating")
    metrics = evaluate(predictor, parts["test"], parts["train"])
    predictor.card["metrics"] = metrics
    steps.step("drawing")
    figures = draw(predictor, parts["test"], note=f"test split of {table.attrs['source_label']}")
    steps.step("saving and logging")
    directory = workspace.new_run_dir("train") / "predictor"
    predictor.save(directory)
    logged = registry.log_training_run(
        directory,
        params={
            "source": source,
            "estimator": config.estimator,
            "seed": config.seed,
            "limit": config.limit,
            **{f"rows_{side}": len(part) for side, part in parts.items()},
            "feature_contract": predictor.feature_contract,
        },
        metrics=flatten(headline(metrics)),
        figures=figures,
        tags={name: str(table.attrs[name]) for name in ("source_label", "data_sha256")},
        workspace=workspace,
        run_name=f"{config.estimator} on {table.attrs['source_label']}",
    )
    model_uri, version = logged.model_uri, None
    if config.register:
        registered = registry.register(model_uri, alias=config.alias, workspace=workspace)
        model_uri, version = registered.model_uri, registered.version
    return TrainResult(
        model_uri=model_uri,
        version=version,
        run_id=logged.run_id,
        directory=directory,
        source_label=table.attrs["source_label"],
        rows={side: len(part) for side, part in parts.items()},
        metrics=metrics,
        duration_s=time.perf_counter() - started,
    )


def with_text(table: PromptTable, source: str) -> PromptTable:
    """The rows that have a prompt's text; InputError if none has."""
    has_text = table["prompt"].notna().to_numpy()
    if not has_text.any():
        raise InputError(
            f"{source} holds no prompt text; a server's log keeps it with `serve --log-prompts`"
        )
    return take_rows(table, has_text)


def draw(predictor: LengthPredictor, test: PromptTable, *, note: str = "") -> dict[str, Figure]:
    """The figures of a predictor on rows it has not seen, by file name."""
    from training import plots

    classes = list(test["slo_class"])
    lengths = predictor.predict(list(test["prompt"]), classes, list(test["prompt_tokens"]))
    prior = LengthDistribution(
        lengths.levels, np.stack([predictor.class_prior(name) for name in classes])
    )
    true = test["output_tokens"].to_numpy(dtype=float)
    of_class = {name: np.array(classes) == name for name in set(classes)}
    errors = {
        model: {c: float(np.abs(p.median() - true)[rows].mean()) for c, rows in of_class.items()}
        for model, p in {"learned": lengths, "class median": prior}.items()
    }
    return {
        "predicted_against_true": plots.predicted_against_true(true, lengths.median(), note=note),
        "calibration": plots.calibration(
            true,
            {
                "learned": (lengths.levels, lengths.quantiles),
                "class": (prior.levels, prior.quantiles),
            },
            note=note,
        ),
        "error_by_class": plots.error_by_class(errors, note=note),
        "interval_width": plots.interval_width(
            lengths.quantile(0.1), lengths.quantile(0.9), classes, level="80 %", note=note
        ),
    }


def print_result(result: TrainResult) -> None:
    """The metrics beside the baselines, and what the model is called, on stdout."""
    models = {"learned": result.metrics, **result.metrics["baselines"]}
    models.pop("oracle", None)  # true lengths: nothing to compare with
    console.print_table(
        f"Test metrics, data: {result.source_label} ({result.rows['test']} rows); MAE in tokens, "
        "coverage of the 80 % interval",
        ["predictor", *METRIC_HEADINGS],
        [[name, *metric_cells(values)] for name, values in models.items()],
    )
    if result.source_label == SYNTHETIC:
        print("Trained on the built-in synthetic corpus: these figures say nothing of real data.")
    print(f"{result.model_uri}  (run {result.run_id}, {result.duration_s:.1f} s)")


def _require_rows(parts: Mapping[str, PromptTable], source: str) -> None:
    for side, least in MIN_ROWS.items():
        if len(parts[side]) < least:
            counts = ", ".join(f"{name} {len(part)}" for name, part in parts.items())
            raise InputError(
                f"{source} is too small: the {side} split needs {least} rows, got {counts}"
            )
