"""Accuracy on questions never seen: estimators, blocks of features and baselines, several splits.

    python -m benchmarks.predictor.accuracy --packs gpt35 --seeds 0 1 2
    python -m benchmarks.predictor.accuracy --blocks structure text request structure+text
    python -m benchmarks.predictor.accuracy --ablation --seeds 6 7
    python -m benchmarks.predictor.accuracy --estimators lightgbm stack --packs gpt35 --seeds 3

``stack`` fine-tunes an encoder (half an hour a split on two cores); ``bert`` then is the same
encoder alone. With ``--blocks`` only what is named there is trained, and no baseline; with
``--ablation`` the default, the default without each of what it is made of, and what it was before.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import Any

from benchmarks.common import finish, fitted, interval, note, parser, print_table
from lengthwise.predictor.fitting.evaluate import ALL_BASELINES, evaluate
from lengthwise.predictor.fitting.held_out import reweighed

METRICS = ("tau", "within_task_tau", "mae", "within_25", "pinball_gain", "crps", "coverage")
IN_TOKENS = ("mae", "crps")
REFERENCE = ("class_quantiles",)  # what `pinball_gain` is over
OLD_BLOCKS = ("structure", "text", "request")
ABLATION: dict[str, dict[str, Any]] = {
    "default": {},
    "without tool columns": {"blocks": OLD_BLOCKS},
    "without networks": {"parts": ("student",)},
    "with a hazard booster too": {"parts": ("student", "hazard", "nets")},
    "one member, calibration rows held out": {"folds": 1},
    "before": {
        "blocks": OLD_BLOCKS, "parts": ("student", "hazard"), "folds": 1,
        "n_estimators": 300, "learning_rate": 0.05, "num_leaves": 15,
    },
}  # fmt: skip

Measured = tuple[str, dict[str, Any]]


def measured(pack: str, seed: int, options: Any) -> Iterator[Measured]:
    """Name and metrics of everything that was asked for, on one split."""
    if options.blocks:
        for blocks in options.blocks:
            note(f"{pack} seed {seed} {blocks}")
            parts, predictor = fitted(pack, seed, options.jobs, blocks=tuple(blocks.split("+")))
            yield blocks, evaluate(predictor, parts["test"], parts["train"], REFERENCE)
        return
    if options.ablation:
        for name in options.ablation:
            given = ABLATION[name]
            note(f"{pack} seed {seed} {name}")
            parts, predictor = fitted(pack, seed, options.jobs, **given)
            yield name, evaluate(predictor, parts["test"], parts["train"], REFERENCE)
        return
    settings = {
        "epochs": options.epochs,
        "max_length": options.max_length,
        "learning_rate": options.learning_rate,
    }
    baselines: Sequence[str] = ALL_BASELINES
    for estimator in options.estimators:
        note(f"{pack} seed {seed} {estimator}")
        reads = {"reader_params": settings} if estimator in ("bert", "stack") else {}
        parts, predictor = fitted(pack, seed, options.jobs, estimator=estimator, **reads)
        metrics = evaluate(predictor, parts["test"], parts["train"], tuple(baselines))
        others = metrics.pop("baselines")
        yield estimator, metrics
        if estimator == "stack":
            alone = reweighed(predictor, parts["calibration"], 1.0)
            yield "bert", evaluate(alone, parts["test"], parts["train"], REFERENCE)
        if len(baselines) > 1:  # once a split
            yield from ((name, row) for name, row in others.items() if name != "oracle")
            baselines = REFERENCE


def summary(runs: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Mean and half the interval over splits of every metric, and coverage by class."""
    found = {metric: interval([run[metric] for run in runs]) for metric in METRICS}
    coverage = {
        name: interval([r["by_class"][name]["coverage"] for r in runs if name in r["by_class"]])[0]
        for name in sorted({name for run in runs for name in run["by_class"]})
    }
    return found | {"coverage_by_class": coverage}


def row(name: str, cells: dict[str, Any]) -> list[str]:
    """One line of the table."""
    shown = [
        f"{mean:.1f} ± {half:.1f}" if metric in IN_TOKENS else f"{mean:.3f} ± {half:.3f}"
        for metric in METRICS
        for mean, half in [cells[metric]]
    ]
    by_class = cells["coverage_by_class"].values()
    return [name, *shown, f"{min(by_class):.2f}-{max(by_class):.2f}"]


def main() -> None:
    arguments = parser(__doc__)
    arguments.add_argument("--estimators", nargs="+", default=["lightgbm"])
    arguments.add_argument("--blocks", nargs="+", help="of features, joined by +")
    arguments.add_argument(
        "--ablation", nargs="*", choices=list(ABLATION), help="which, or all of them"
    )
    arguments.add_argument("--epochs", type=float, default=3.0, help="of the encoder")
    arguments.add_argument("--max-length", type=int, default=128)
    arguments.add_argument("--learning-rate", type=float, default=1e-4)
    options = arguments.parse_args()
    if options.ablation == []:
        options.ablation = list(ABLATION)
    result: dict[str, dict[str, Any]] = {}
    for pack in options.packs:
        runs: dict[str, list[dict[str, Any]]] = defaultdict(list)
        for seed in options.seeds:
            for name, metrics in measured(pack, seed, options):
                runs[name].append(metrics)
        result[pack] = {name: summary(rows) for name, rows in runs.items()}
        splits = len(options.seeds)
        print(f"\n{pack}, test rows of {splits} grouped splits, mean ± 95 % half-width\n")
        rows = [row(name, cells) for name, cells in result[pack].items()]
        print_table(["", *METRICS, "coverage by class"], rows)
    finish("accuracy", result)


if __name__ == "__main__":
    main()
