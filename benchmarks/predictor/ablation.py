"""What each block of features brings: one block taken away at a time, and each alone."""

from __future__ import annotations

from itertools import combinations

from benchmarks.common import finish, note, parser, print_table
from lengthwise.data.sources.load import load_table
from lengthwise.data.splits import split_table
from lengthwise.predictor.fitting.evaluate import evaluate
from lengthwise.predictor.fitting.fit import fit_predictor

BLOCKS = ("structure", "text", "request")


def main() -> None:
    options = parser(__doc__).parse_args()
    result: dict[str, dict[str, dict[str, float]]] = {}
    sets = [
        c for size in (3, 2, 1) for c in combinations(BLOCKS, size) if size > 1 or c != ("request",)
    ]
    for pack in options.packs:
        table = load_table(pack)
        rows = []
        result[pack] = {}
        for blocks in sets:
            runs = []
            for seed in options.seeds:
                note(f"{pack} seed {seed} {blocks}")
                parts = split_table(table, seed=seed)
                predictor = fit_predictor(
                    parts["train"],
                    parts["calibration"],
                    seed=seed,
                    blocks=blocks,
                    n_jobs=options.jobs,
                )
                runs.append(
                    evaluate(predictor, parts["test"], parts["train"], ("class_quantiles",))
                )
            cells = {
                metric: sum(run[metric] for run in runs) / len(runs)
                for metric in ("tau", "within_task_tau", "mae", "pinball_gain")
            }
            result[pack]["+".join(blocks)] = cells
            rows.append(["+".join(blocks), *(f"{value:.3f}" for value in cells.values())])
        print(f"\n{pack}\n")
        print_table(["blocks", *result[pack]["structure+text+request"]], rows)
    finish("predictor_ablation", result)


if __name__ == "__main__":
    main()
