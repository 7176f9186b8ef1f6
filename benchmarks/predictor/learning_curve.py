"""Cold start: a new served model after 0, 30, 100, 300 ... finished requests.

    python -m benchmarks.predictor.learning_curve --packs llama31_8b mixtral_8x7b --seeds 0 1

Three ways to predict it: a predictor trained on another model's answers to other questions with
the online correction of level and spread, the same with the residual that mends its order too (what
a server does), and one trained on the finished requests alone. Judged on questions that neither
has seen.
"""

from __future__ import annotations

import zlib
from typing import Any

import numpy as np
import pandas as pd

from benchmarks.common import finish, note, parser, print_table
from lengthwise.data.sources.load import load_table
from lengthwise.data.splits import split_table
from lengthwise.predictor.distribution import LengthDistribution
from lengthwise.predictor.fitting.evaluate import evaluate, evaluate_distribution
from lengthwise.predictor.fitting.fit import fit_predictor
from lengthwise.predictor.model import LengthPredictor
from lengthwise.predictor.serving.online_lengths import TOLD_LEVELS, OnlineLengths, refit

SIZES = (0, 30, 100, 300, 1_000, 3_000)
METRICS = ("tau", "within_task_tau", "mae", "pinball", "coverage")
LEAST_TO_TRAIN = 100


def halves(table: pd.DataFrame, seed: int) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The rows of each half of the questions, the same halves of every pack's."""
    first = table["group"].map(lambda name: zlib.crc32(f"{seed}:{name}".encode()) % 2 == 0)
    return table[first].reset_index(drop=True), table[~first].reset_index(drop=True)


def taught(foreign: LengthPredictor, seen: pd.DataFrame, *, residual: bool) -> OnlineLengths:
    """What a server has learned that has answered these one after the other."""
    lengths = OnlineLengths()
    rows, said = asked(foreign, seen)
    told = np.column_stack([said.quantile(level) for level in TOLD_LEVELS]).tolist()
    tokens, classes, censored = (
        seen[name].tolist() for name in ("output_tokens", "slo_class", "censored")
    )
    for i in range(len(seen)):
        features = rows[i] if residual else None
        lengths.update(told[i], float(tokens[i]), classes[i], bool(censored[i]), features)
        misses = lengths.to_fit()
        if misses is not None:
            lengths.adopt(refit(misses, lengths.in_force))
    return lengths


def mended(
    foreign: LengthPredictor, lengths: OnlineLengths, table: pd.DataFrame
) -> LengthDistribution:
    """What a server plans with for prompts, once it has learned that."""
    rows, said = asked(foreign, table)
    each = zip(said.quantiles, table["slo_class"], rows, strict=True)
    found = [lengths.correct(row, said.levels, name, features) for row, name, features in each]
    return LengthDistribution.from_rows(said.levels.tolist(), np.stack(found))


def asked(predictor: LengthPredictor, table: pd.DataFrame) -> tuple[np.ndarray, LengthDistribution]:
    """Features as a server sends them, and what is predicted."""
    prompts, classes = table["prompt"].tolist(), table["slo_class"].tolist()
    rows = predictor.features(prompts, classes)
    return np.nan_to_num(rows), predictor.predict(prompts, classes, rows=rows)


def new_model(
    pack: str, foreign: str, seed: int, jobs: int
) -> tuple[LengthPredictor, pd.DataFrame, pd.DataFrame]:
    """A predictor of the foreign model, and the new one's answers: those that it gives while it is
    served, in random order, and the test side."""
    known = split_table(load_table(foreign), seed=seed)
    theirs = {side: halves(known[side], seed)[0] for side in ("train", "calibration")}
    predictor = fit_predictor(theirs["train"], theirs["calibration"], seed=seed, n_jobs=jobs)
    parts = split_table(load_table(pack), seed=seed)
    stream = halves(parts["train"], seed)[1]
    order = np.random.default_rng(seed).permutation(len(stream))
    return predictor, stream.iloc[order].reset_index(drop=True), parts["test"]


def retrained(seen: pd.DataFrame, seed: int, jobs: int) -> LengthPredictor:
    """Learned from the finished requests alone."""
    cut = int(0.8 * len(seen))
    return fit_predictor(seen.iloc[:cut], seen.iloc[cut:], seed=seed, n_jobs=jobs)


def curve(pack: str, foreign: str, seed: int, jobs: int) -> list[dict[str, Any]]:
    """A line for each number of finished requests."""
    predictor, stream, test = new_model(pack, foreign, seed, jobs)
    lines = []
    for size in SIZES:
        note(f"{pack} seed {seed} {size}")
        seen = stream.iloc[:size]
        level, both = (
            evaluate_distribution(
                test, mended(predictor, taught(predictor, seen, residual=residual), test)
            )
            for residual in (False, True)
        )
        own: dict[str, Any] = {}
        if len(seen) >= LEAST_TO_TRAIN:
            own = evaluate(retrained(seen, seed, jobs), test)
        ways = {"level": level, "online": both, "retrained": own}
        lines.append(
            {"seed": seed, "finished": len(seen)}
            | {f"{way}_{m}": said.get(m) for way, said in ways.items() for m in METRICS}
        )
    return lines


def main() -> None:
    arguments = parser(__doc__, packs=("llama31_8b",))
    arguments.add_argument("--foreign", default="gpt35", help="pack of the model known so far")
    options = arguments.parse_args()
    result: dict[str, list[dict[str, Any]]] = {}
    for pack in options.packs:
        lines = [
            line
            for seed in options.seeds
            for line in curve(pack, options.foreign, seed, options.jobs)
        ]
        result[pack] = lines
        frame = pd.DataFrame(lines).groupby("finished").mean(numeric_only=True)
        print(f"\n{pack}, starting from a predictor of {options.foreign}, mean of seeds\n")
        print_table(
            ["finished", *(f"{way}: {' / '.join(METRICS)}" for way in ("level", "online", "own"))],
            [
                [
                    finished,
                    *(
                        " / ".join(shown(row.get(f"{way}_{m}")) for m in METRICS)
                        for way in ("level", "online", "retrained")
                    ),
                ]
                for finished, row in frame.iterrows()
            ],
        )
    finish("learning_curve", result)


def shown(value: Any) -> str:
    """Three digits; a dash where there is nothing."""
    return "-" if value is None or not np.isfinite(value) else f"{value:.3g}"


if __name__ == "__main__":
    main()
