"""What an answer's opening tells of what is left of it: error with it and without it.

    python -m benchmarks.predictor.opening_accuracy --packs gpt35 --seeds 5 6

For the test answers that have reached 16 and 48 tokens: error of the median of what is left, its
order, and the pinball loss of its quantiles. "prompt" is what the default predictor says given that
so many tokens are out, "opening" what it says having seen them too. Beside it the time of one
estimate and of a batch, and what training takes more.
"""

from __future__ import annotations

import time
from typing import Any

import numpy as np

from benchmarks.common import finish, fitted, interval, note, parser, percentiles_ms, print_table
from lengthwise.data.table import PromptTable, take_rows
from lengthwise.data.tokens import load_counter
from lengthwise.predictor.distribution import LengthDistribution
from lengthwise.predictor.features.opening_text import opening_of
from lengthwise.predictor.fitting import metrics
from lengthwise.predictor.model import LengthPredictor

METRICS = ("mae", "tau", "within_task_tau", "pinball", "coverage")
WAYS = ("prompt", "opening")
TIMED = 200


def figures(table: PromptTable, total: LengthDistribution, tokens: int) -> dict[str, float | None]:
    """Metrics of what is left after so many tokens, by distributions of the whole answers."""
    left = table["output_tokens"].to_numpy(float) - tokens
    said = total.remaining(np.full(len(left), float(tokens)))
    taus = metrics.task_taus(left, said.median(), metrics.task_names(table))
    return {
        "mae": metrics.mae(left, said.median()),
        "tau": metrics.kendall_tau(left, said.median()),
        "within_task_tau": metrics.mean_tau(taus),
        "pinball": metrics.pinball(left, said),
        "coverage": metrics.coverage(left, *metrics.interval(said)),
    }


def running(table: PromptTable, tokens: int) -> tuple[PromptTable, list[str]]:
    """The rows that reach so many tokens and have their text, and what they begin with."""
    there = (table["output_tokens"] > tokens) & table["response"].notna()
    rows = take_rows(table, there.to_numpy())
    count = load_counter(table.attrs["tokenizer"])
    return rows, [opening_of(answer, tokens, count) for answer in rows["response"]]


def measured(pack: str, seed: int, jobs: int) -> dict[int, dict[str, Any]]:
    """Both ways' figures for each opening, on one split."""
    began_s = time.process_time()
    parts, predictor = fitted(pack, seed, jobs, openings=True)
    note(f"{pack} seed {seed}: trained in {time.process_time() - began_s:.0f} s of a core")
    found = {}
    for tokens in predictor.opening_tokens:
        rows, openings = running(parts["test"], tokens)
        asked = rows["prompt"].tolist(), rows["slo_class"].tolist(), rows["prompt_tokens"].tolist()
        found[tokens] = {
            "running": len(rows),
            "prompt": figures(rows, predictor.predict(*asked), tokens),
            "opening": figures(rows, predictor.reestimate(openings, tokens, *asked), tokens),
            "ms": times(predictor, tokens, openings[:TIMED], *asked[:2]),
        }
    return found


def times(
    predictor: LengthPredictor,
    tokens: int,
    openings: list[str],
    prompts: list[str],
    classes: list[str],
) -> dict[str, float]:
    """Milliseconds of one estimate, and of one in a batch of 16, features included."""
    alone_s, together_s = [], []
    for i, opening in enumerate(openings):
        began_s = time.perf_counter()
        predictor.reestimate([opening], tokens, prompts[i : i + 1], classes[i : i + 1])
        alone_s.append(time.perf_counter() - began_s)
    for i in range(0, len(openings) - 15, 16):
        part = slice(i, i + 16)
        began_s = time.perf_counter()
        predictor.reestimate(openings[part], tokens, prompts[part], classes[part])
        together_s.append((time.perf_counter() - began_s) / 16)
    batch = {f"batch_{name}": value for name, value in percentiles_ms(together_s).items()}
    return percentiles_ms(alone_s) | batch


def main() -> None:
    options = parser(__doc__).parse_args()
    result: dict[str, Any] = {}
    for pack in options.packs:
        runs = {seed: measured(pack, seed, options.jobs) for seed in options.seeds}
        result[pack] = runs
        rows = []
        for tokens in sorted(set.intersection(*map(set, runs.values()))):
            for way in WAYS:
                cells = [[run[tokens][way][name] for run in runs.values()] for name in METRICS]
                means = ["-" if None in v else f"{interval(v)[0]:.3f}" for v in cells]
                rows.append([tokens, way, *means])
        print(f"\n{pack}, seeds {', '.join(map(str, options.seeds))}, tokens left\n")
        print_table(["after", "by", *METRICS], rows)
    finish("opening_accuracy", result)


if __name__ == "__main__":
    main()
