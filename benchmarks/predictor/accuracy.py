"""Accuracy on questions never seen: every estimator and baseline, several grouped splits.

python -m benchmarks.predictor.accuracy --packs gpt35 --seeds 0 1 2 --estimators lightgbm
"""

from __future__ import annotations

from benchmarks.common import finish, mean_and_half_width, note, parser, print_table
from lengthwise.data.sources.load import load_table
from lengthwise.data.splits import split_table
from lengthwise.predictor.fitting.evaluate import evaluate
from lengthwise.predictor.fitting.fit import fit_predictor

METRICS = ("tau", "within_task_tau", "mae", "within_25", "pinball_gain", "crps", "coverage")


def main() -> None:
    arguments = parser(__doc__)
    arguments.add_argument("--estimators", nargs="+", default=["lightgbm"])
    options = arguments.parse_args()
    result: dict[str, dict[str, dict[str, object]]] = {}
    for pack in options.packs:
        table = load_table(pack)
        runs: dict[str, list[dict]] = {}  # type: ignore[type-arg]
        for seed in options.seeds:
            parts = split_table(table, seed=seed)
            for estimator in options.estimators:
                note(f"{pack} seed {seed} {estimator}")
                predictor = fit_predictor(
                    parts["train"],
                    parts["calibration"],
                    estimator=estimator,
                    seed=seed,
                    n_jobs=options.jobs,
                )
                measured = evaluate(predictor, parts["test"], parts["train"])
                baselines = measured.pop("baselines")
                runs.setdefault(estimator, []).append(measured)
            for name, row in baselines.items():
                if name != "oracle":
                    runs.setdefault(name, []).append(row)
        result[pack] = {}
        rows = []
        for name, measured in runs.items():
            cells = {}
            for metric in METRICS:
                cells[metric] = mean_and_half_width([run[metric] for run in measured])
            classes = sorted({c for run in measured for c in run["by_class"]})
            by_class = {
                c: mean_and_half_width(
                    [run["by_class"][c]["coverage"] for run in measured if c in run["by_class"]]
                )[0]
                for c in classes
            }
            spread = f"{min(by_class.values()):.2f}-{max(by_class.values()):.2f}"
            shown = [
                f"{mean:.1f} ± {half:.1f}"
                if metric in ("mae", "crps")
                else f"{mean:.3f} ± {half:.3f}"
                for metric, (mean, half) in cells.items()
            ]
            rows.append([name, *shown, spread])
            result[pack][name] = {**cells, "coverage_by_class": by_class}
        print(
            f"\n{pack}, test rows of {len(options.seeds)} grouped splits, mean ± 95 % half-width\n"
        )
        print_table(["", *METRICS, "coverage by class"], rows)
    finish("predictor_accuracy", result)


if __name__ == "__main__":
    main()
