"""Time of one prediction, features included, one thread, 500-token prompt; batches; training."""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np
import pandas as pd

from benchmarks.common import finish, parser, print_table
from lengthwise.data.sources.load import load_table
from lengthwise.data.splits import split_table
from lengthwise.predictor.fitting.fit import fit_predictor

PROMPT = (
    "You are given the log of a service. Write a summary in 150 words, list 5 causes as bullet "
    "points, and return a JSON object with the fields cause, share and evidence.\n"
    "2026-11-02 12:00:07 worker 14 restarted after 3 failed probes (timeout = 2.5 s)\n"
    "def handle(event):\n    return {'id': event['id'], 'ok': True}\n\n"
)


def percentiles_ms(call: Callable[[], object], repeats: int) -> dict[str, float]:
    for _ in range(50):
        call()
    times = np.empty(repeats)
    for i in range(repeats):
        start = time.perf_counter()
        call()
        times[i] = 1e3 * (time.perf_counter() - start)
    return {"p50_ms": float(np.median(times)), "p99_ms": float(np.percentile(times, 99))}


def main() -> None:
    arguments = parser(__doc__, packs=("gpt35",))
    arguments.add_argument("--repeats", type=int, default=3000)
    arguments.add_argument(
        "--train-rows", type=int, default=0, help="also time training on so many"
    )
    options = arguments.parse_args()
    table = load_table(options.packs[0])
    parts = split_table(table, seed=0)
    start = time.perf_counter()
    predictor = fit_predictor(parts["train"], parts["calibration"], seed=0, n_jobs=options.jobs)
    result: dict[str, object] = {
        "train": {"rows": len(parts["train"]), "s": time.perf_counter() - start}
    }
    text = (PROMPT * 5)[:2000]  # about 500 tokens
    features = predictor.features([text], ["chat"], [500])
    result["one_prompt"] = percentiles_ms(
        lambda: predictor.predict([text], ["chat"], [500]), options.repeats
    )
    result["one_prompt_features"] = percentiles_ms(
        lambda: predictor.features([text], ["chat"], [500]), options.repeats
    )
    result["one_prompt_booster"] = percentiles_ms(
        lambda: predictor.predict_features(features, ["chat"]), options.repeats
    )
    for size in (8, 64):
        batch = percentiles_ms(
            lambda size=size: predictor.predict([text] * size, ["chat"] * size, [500] * size),
            max(options.repeats // size, 20),
        )
        result[f"batch_{size}"] = batch
    print_table(
        ["", "p50 ms", "p99 ms"],
        [
            [name, f"{row['p50_ms']:.3f}", f"{row['p99_ms']:.3f}"]
            for name, row in result.items()
            if isinstance(row, dict) and "p50_ms" in row
        ],
    )
    if options.train_rows:
        many = pd.concat([table] * (options.train_rows // len(table) + 1))[: options.train_rows]
        many = many.assign(group=[f"g{i}" for i in range(len(many))])
        start = time.perf_counter()
        fit_predictor(many, parts["calibration"], seed=0, n_jobs=options.jobs)
        result["train_many"] = {"rows": len(many), "s": time.perf_counter() - start}
    print(f"training: {result['train']} {result.get('train_many', '')}")
    finish("predictor_latency", result)


if __name__ == "__main__":
    main()
