"""Cold start: a new served model after 0, 100, 300, 1,000 ... finished requests.

    python -m benchmarks.predictor.learning_curve --seeds 3

Three ways to predict it: a predictor trained on another model's answers to other questions, the
same with the online correction, and one retrained on the finished requests alone.
"""

from __future__ import annotations

import numpy as np
import pandas as pd

from benchmarks.common import finish, fitted, note, parser, print_table
from lengthwise.data.sources.load import load_table
from lengthwise.data.splits import split_table
from lengthwise.predictor.fitting.evaluate import evaluate, evaluate_distribution
from lengthwise.predictor.fitting.fit import fit_predictor
from lengthwise.predictor.model import LengthPredictor
from lengthwise.predictor.serving.correction import OnlineCorrection

SIZES = (0, 100, 300, 1_000, 3_000, 10_000)


def columns(table: pd.DataFrame) -> tuple[list[str], list[str], list[int]]:
    names = ("prompt", "slo_class", "prompt_tokens")
    return tuple(table[name].tolist() for name in names)  # type: ignore[return-value]


def corrected(
    foreign: LengthPredictor, seen: pd.DataFrame, test: pd.DataFrame
) -> dict[str, object]:
    correction = OnlineCorrection()
    if len(seen):
        said = foreign.predict(*columns(seen))
        rows = np.column_stack([said.quantile(level) for level in (0.1, 0.5, 0.9)])
        truth = zip(rows, seen["output_tokens"], seen["slo_class"], strict=True)
        for row, tokens, name in truth:
            correction.update(row, float(tokens), name)
    predicted = correction.apply(foreign.predict(*columns(test)), test["slo_class"].tolist())
    return evaluate_distribution(test, predicted)


def main() -> None:
    arguments = parser(__doc__, packs=("llama31_8b",))
    arguments.add_argument(
        "--foreign", default="mixtral_8x7b", help="pack of the model known so far"
    )
    options = arguments.parse_args()
    result: dict[str, list[dict[str, object]]] = {}
    for pack in options.packs:
        rows, result[pack] = [], []
        for seed in options.seeds[:1]:
            _, foreign = fitted(options.foreign, seed, options.jobs)
            parts = split_table(load_table(pack), seed=seed)
            order = np.random.default_rng(seed).permutation(len(parts["train"]))
            for size in SIZES:
                note(f"{pack} {size}")
                seen = parts["train"].iloc[order[:size]]
                online = corrected(foreign, seen, parts["test"])
                cells = {"finished": len(seen)} | {
                    f"online_{m}": online[m] for m in ("mae", "within_task_tau", "coverage")
                }
                if len(seen) >= 100:
                    cut = int(0.8 * len(seen))
                    own = fit_predictor(
                        seen.iloc[:cut], seen.iloc[cut:], seed=seed, n_jobs=options.jobs
                    )
                    retrained = evaluate(own, parts["test"])
                    cells |= {
                        f"retrained_{m}": retrained[m]
                        for m in ("mae", "within_task_tau", "coverage")
                    }
                result[pack].append(cells)
                rows.append(cells)
        print(f"\n{pack}, starting from a predictor of {options.foreign}\n")
        header = list(rows[-1])
        print_table(
            header,
            [[f"{row[h]:.3g}" if h in row else "-" for h in header] for row in rows],
        )
    finish("learning_curve", result)


if __name__ == "__main__":
    main()
