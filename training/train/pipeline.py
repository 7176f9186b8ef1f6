"""Train a length predictor: load, split by question, fit, calibrate, evaluate, draw, log, save."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from lengthwise.data.describe import unused_lines, unused_of
from lengthwise.data.errors import InputError
from lengthwise.data.request_log import largest_group, log_batches, of_group
from lengthwise.data.sources.load import SYNTHETIC, default_source, load_table
from lengthwise.data.splits import split_table
from lengthwise.data.table import take_rows
from lengthwise.predictor.distribution import LengthDistribution
from lengthwise.training import console
from lengthwise.training.registry import models as registry
from lengthwise.training.registry.card import METRIC_HEADINGS, flatten, headline, metric_cells
from lengthwise.training.registry.connection import check_writable
from lengthwise.training.registry.training_runs import log_training_run
from lengthwise.training.workspace import Workspace

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from lengthwise.data.table import PromptTable
    from lengthwise.predictor.model import LengthPredictor

DEFAULT_ESTIMATOR = "lightgbm"
MIN_ROWS = {"train": 50, "calibration": 20, "test": 20}


@dataclass(frozen=True, slots=True)
class TrainConfig:
    """What to train on and how; ``source`` None is the best data found.

    ``reader`` holds settings of `predictor.bert_fit.fit_reader`, for the estimators that have one;
    ``embedding`` names a frozen encoder whose columns are added to the features, ``causal_reader``
    a causal model whose states are, where they pay; with ``openings`` answers that have begun are
    estimated anew; with ``stream`` a request log larger than
    memory is read in pieces; with ``decision`` the simulator says what the predictor is worth to
    the scheduler.
    """

    source: str | None = None
    estimator: str = DEFAULT_ESTIMATOR
    reader: Mapping[str, Any] = field(default_factory=dict)
    seed: int = 0
    limit: int | None = None
    embedding: str | None = None
    causal_reader: str | None = None
    openings: bool = False
    stream: bool = False
    decision: bool = False
    register: bool = False
    alias: str | None = None


@dataclass(frozen=True, slots=True)
class TrainResult:
    """A trained, logged predictor.

    ``model_uri`` is the version's where one was registered, the logged model's otherwise;
    ``metrics`` are of the test split, as `predictor.fitting.evaluate.evaluate` returns them;
    ``unused`` says what of the source was not used and why (`data.describe.unused_of`).
    """

    model_uri: str
    version: int | None
    run_id: str
    directory: Path
    source_label: str
    rows: Mapping[str, int]
    metrics: Mapping[str, Any]
    importances: Mapping[str, float]
    duration_s: float
    causal_reader: Mapping[str, Any] | None = None
    openings: Mapping[str, Any] | None = None
    unused: Mapping[str, Any] = field(default_factory=dict)

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
            "importances": dict(self.importances),
            "duration_s": round(self.duration_s, 2),
            "causal_reader": None if self.causal_reader is None else dict(self.causal_reader),
            "openings": None if self.openings is None else dict(self.openings),
            "unused": dict(self.unused),
        }


def train(
    config: TrainConfig, *, workspace: Workspace, steps: console.Steps | None = None
) -> TrainResult:
    """Run the pipeline; the predictor lies in a new directory under the workspace's runs.

    Raises InputError for a source that cannot be read or is too small, RegistryError for a
    tracking store that cannot be written: asked first, so that no training is lost to it.
    """
    from lengthwise.predictor.fitting.evaluate import evaluate
    from lengthwise.predictor.fitting.fit import check_estimator, check_reader
    from lengthwise.training.train.worth import decision_value

    steps = steps or console.SilentSteps()
    started = time.perf_counter()
    check_estimator(config.estimator)
    if config.causal_reader is not None:
        steps.step(f"looking for the reader {config.causal_reader}")
        check_reader(config.causal_reader)
    check_writable(workspace)
    steps.step("reading the table")
    source = config.source or default_source()
    predictor, parts, unused = (_fit_streamed if config.stream else _fit_table)(
        config, source, workspace, steps
    )
    steps.step("evaluating")
    metrics = evaluate(predictor, parts["test"], parts.get("train", parts["calibration"]))
    if config.decision:
        metrics["decision"] = decision_value(predictor, parts["test"], steps=steps)
    predictor.card["metrics"] = metrics
    steps.step("drawing")
    label = str(predictor.card["source_label"])
    figures = draw(predictor, parts["test"], note=f"test split of {label}")
    steps.step("saving and logging")
    rows = {side: len(part) for side, part in parts.items()}
    rows["train"] = int(predictor.card["train_rows"])
    directory = workspace.new_run_dir("train") / "predictor"
    predictor.save(directory)
    logged = log_training_run(
        directory,
        params={
            "source": source,
            "estimator": config.estimator,
            "seed": config.seed,
            "limit": config.limit,
            "embedding": config.embedding,
            "causal_reader": config.causal_reader,
            "openings": config.openings,
            **config.reader,
            **{f"rows_{side}": n for side, n in rows.items()},
            "feature_contract": predictor.feature_contract,
        },
        metrics=flatten(headline(metrics)),
        figures=figures,
        tags={name: str(predictor.card[name]) for name in ("source_label", "data_sha256")},
        workspace=workspace,
        run_name=f"{config.estimator} on {label}",
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
        source_label=label,
        rows=rows,
        metrics=metrics,
        importances=predictor.card["importances"],
        duration_s=time.perf_counter() - started,
        causal_reader=predictor.card.get("causal_reader"),
        openings=predictor.card.get("openings"),
        unused=unused,
    )


def _fit_table(
    config: TrainConfig, source: str, workspace: Workspace, steps: console.Steps
) -> tuple[LengthPredictor, Mapping[str, PromptTable], dict[str, Any]]:
    reading = console.Megabytes(steps, source)
    table = load_table(source, limit=config.limit, watch=reading)
    unused = unused_of(table)
    rows, base, left_out = what_to_learn_from(table, source, workspace)
    if left_out:
        unused["left_out"] = [*unused.get("left_out", ()), *left_out]
    del table
    parts = split_table(rows, seed=config.seed)
    del rows
    _require_rows(parts, source)
    return _fit(config, parts, base, steps), parts, unused


def _fit_streamed(
    config: TrainConfig, source: str, workspace: Workspace, steps: console.Steps
) -> tuple[LengthPredictor, Mapping[str, PromptTable], dict[str, Any]]:
    """The log's features piece by piece; its first piece says which predictor computed them."""
    from lengthwise.predictor.fitting.stream import fit_stream

    batches = log_batches(source)
    first = next(batches, None)
    if first is None:
        raise InputError(f"{source} holds no finished request")
    learned, base, _ = what_to_learn_from(first.assign(prompt=None), source, workspace)
    assert base is not None
    width = len(learned["features"].iloc[0])
    read = others = 0
    unused: dict[str, Any] = {}

    def counted() -> Iterator[PromptTable]:
        nonlocal read, others
        for batch in chain([first], batches):
            read += len(batch)
            steps.step(f"read {read:,} rows")
            same = of_group(batch, base.feature_contract, width)
            others += int((~same).sum())
            unused.update(unused_of(batch))  # what was skipped so far: the last batch says all
            if same.any():
                yield take_rows(batch, same).assign(prompt=None)

    predictor, parts = fit_stream(base, counted(), seed=config.seed)
    if others:
        reason = f"not features {base.feature_contract} of width {width}"
        unused["left_out"] = [{"reason": reason, "rows": others}]
    return predictor, parts, unused


def what_to_learn_from(
    table: PromptTable, source: str, workspace: Workspace
) -> tuple[PromptTable, LengthPredictor | None, list[dict[str, Any]]]:
    """The rows to train on, whose features they hold (None: text), and what the others lack.

    Features mean something only to the predictor that computed them: where a log holds little
    text, the largest group of rows with features of one kind is taken. InputError where there is
    neither text nor features.
    """
    if "features" not in table:
        has_text = table["prompt"].notna().to_numpy()
        if not has_text.any():
            raise InputError(f"{source} holds neither prompt text nor features")
        missing = int((~has_text).sum())
        lacking = [{"reason": "without prompt text", "rows": missing}] if missing else []
        return take_rows(table, has_text), None, lacking
    group = largest_group(table, source)
    rows = take_rows(table, group.rows)
    if group.contract is None:
        return rows, None, group.left_out
    from lengthwise.predictor.model import LengthPredictor

    rows["prompt"] = None
    version = rows["predictor"].dropna().mode()
    if version.empty:
        raise InputError(f"{source} does not say which predictor computed its features")
    resolved = registry.resolve_predictor(version[0], workspace=workspace)
    return rows, LengthPredictor.load(resolved.directory), group.left_out


def _fit(
    config: TrainConfig,
    parts: Mapping[str, PromptTable],
    base: LengthPredictor | None,
    steps: console.Steps,
) -> LengthPredictor:
    from lengthwise.predictor.fitting.fit import fit_on_features, fit_predictor
    from lengthwise.predictor.fitting.fit_openings import check_openings

    def progress(what: str, share: float) -> None:
        if share < 1:
            steps.step(what)

    train_rows, calibration_rows = parts["train"], parts["calibration"]
    if config.openings:
        check_openings(train_rows)
    if base is not None:
        if config.estimator != DEFAULT_ESTIMATOR:
            raise InputError(f"{config.estimator} needs prompt text, and the log holds none")
        if config.causal_reader is not None:
            raise InputError("a reader needs prompt text, and the log holds none")
        if config.embedding is not None:
            raise InputError("an embedding needs prompt text, and the log holds none")
        return fit_on_features(
            base, train_rows, calibration_rows, seed=config.seed, progress=progress
        )
    return fit_predictor(
        train_rows,
        calibration_rows,
        estimator=config.estimator,
        seed=config.seed,
        embedding=config.embedding,
        causal_reader=config.causal_reader,
        openings=config.openings,
        reader_params=dict(config.reader),
        progress=progress,
    )


def draw(predictor: LengthPredictor, test: PromptTable, *, note: str = "") -> dict[str, Figure]:
    """The figures of a predictor on rows it has not seen, by file name."""
    from lengthwise.predictor.fitting.evaluate import predict_table
    from lengthwise.training import figures

    classes = list(test["slo_class"])
    lengths = predict_table(predictor, test)
    raw = predict_table(predictor.without_conformal(), test)
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
        "predicted_against_true": figures.predicted_against_true(true, lengths.median(), note=note),
        "calibration": figures.calibration(
            true,
            {
                "learned": (lengths.levels, lengths.quantiles),
                "before calibration": (raw.levels, raw.quantiles),
                "class": (prior.levels, prior.quantiles),
            },
            note=note,
        ),
        "importances": figures.importances(predictor.card["importances"], note=note),
        "error_by_class": figures.error_by_class(errors, note=note),
        "interval_width": figures.interval_width(
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
    for line in unused_lines(result.unused):
        print(line)
    if reader := result.causal_reader:
        print(_reader_line(reader))
    if result.openings is not None:
        print(_openings_line(result.openings))
    if result.importances:
        shares = ", ".join(f"{n} {s:.0%}" for n, s in list(result.importances.items())[:8])
        print(f"Read most (share of the boosters' gain): {shares}")
    if decision := result.metrics.get("decision"):
        _print_decision(decision)
    if result.source_label == SYNTHETIC:
        print("Trained on the built-in synthetic corpus: these figures say nothing of real data.")
    print(f"{result.model_uri}  (run {result.run_id}, {result.duration_s:.1f} s)")


def _reader_line(reader: Mapping[str, Any]) -> str:
    """Which classes the causal reader is asked about, and what decided that."""
    gains = ", ".join(f"{name} {gain:.1%}" for name, gain in reader["gains"].items()) or "no class"
    asked = ", ".join(reader["classes"]) or "none, so it is left out"
    return f"Reader {reader['model']}: of what words leave open it explains {gains}; asked: {asked}"


def _openings_line(openings: Mapping[str, Any]) -> str:
    """How many answers each later estimate was learned from."""
    learned = ", ".join(
        f"{said['rows']:,} after {tokens} tokens" for tokens, said in openings["after"].items()
    )
    lacking = f"; {openings['without_text']:,} without text" if openings["without_text"] else ""
    return f"Openings of answers learned from: {learned or 'too few'}{lacking}"


def _print_decision(decision: Mapping[str, Any]) -> None:
    attained = ", ".join(f"{name} {value:.1%}" for name, value in decision["attainment"].items())
    kept = "" if decision["kept"] is None else f"; {decision['kept']:.0%} of oracle's gain kept"
    print(
        f"SLO attainment in the simulator ({decision['workload']} at load {decision['load']:g}, "
        f"{decision['requests']} requests) by lengths: {attained}{kept}"
    )


def _require_rows(parts: Mapping[str, PromptTable], source: str) -> None:
    for side, least in MIN_ROWS.items():
        if len(parts[side]) < least:
            counts = ", ".join(f"{name} {len(part)}" for name, part in parts.items())
            raise InputError(
                f"{source} is too small: the {side} split needs {least} rows, got {counts}"
            )
