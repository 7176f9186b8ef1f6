"""Time of one prediction, features included, one thread, 500-token prompt; batches; training.

python -m benchmarks.predictor.latency
python -m benchmarks.predictor.latency --estimator stack --repeats 200
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import pandas as pd

from benchmarks.common import finish, fitted, parser, percentiles_ms, print_table
from lengthwise.predictor.fitting.fit import fit_predictor

PROMPT = (
    "You are given the log of a service. Write a summary in 150 words, list 5 causes as bullet "
    "points, and return a JSON object with the fields cause, share and evidence.\n"
    "2026-11-02 12:00:07 worker 14 restarted after 3 failed probes (timeout = 2.5 s)\n"
    "def handle(event):\n    return {'id': event['id'], 'ok': True}\n\n"
)
WARM_UP = 50


def timed(call: Callable[[], object], repeats: int) -> dict[str, float]:
    taken_s = []
    for _ in range(WARM_UP + repeats):
        start = time.perf_counter()
        call()
        taken_s.append(time.perf_counter() - start)
    return percentiles_ms(taken_s[WARM_UP:])


def encoder_times(reading: Any, text: str, repeats: int) -> dict[str, dict[str, float]]:
    """The fine-tuned encoder alone, whole numbers and floats."""
    import torch

    torch.set_num_threads(1)
    reader = reading.reader
    return {
        name: timed(
            lambda one=type(reader)(reader.model, reader.tokenizer, int8): one.native([text]),
            repeats,
        )
        for name, int8 in (("encoder_float32", False), ("encoder_int8", True))
    }


def main() -> None:
    arguments = parser(__doc__, packs=("gpt35",))
    arguments.add_argument("--estimator", default="lightgbm")
    arguments.add_argument("--repeats", type=int, default=3000)
    arguments.add_argument("--train-rows", type=int, default=0, help="also train on so many")
    options = arguments.parse_args()
    start = time.perf_counter()
    parts, predictor = fitted(options.packs[0], 0, options.jobs, estimator=options.estimator)
    training = [{"rows": len(parts["train"]), "s": time.perf_counter() - start}]
    text = (PROMPT * 5)[:2000]  # about 500 tokens
    one = [text], ["chat"], [500]
    rows = predictor.features(*one)
    times = {
        "one_prompt": timed(lambda: predictor.predict(*one), options.repeats),
        "one_prompt_features": timed(lambda: predictor.features(*one), options.repeats),
        "one_prompt_booster": timed(
            lambda: predictor.predict_features(rows, ["chat"]), options.repeats
        ),
    }
    for size in (8, 64):
        batch = [text] * size, ["chat"] * size, [500] * size
        repeats = max(options.repeats // size, 20)
        times[f"batch_{size}"] = timed(lambda batch=batch: predictor.predict(*batch), repeats)
    if predictor.reading is not None:
        times |= encoder_times(predictor.reading, text, options.repeats)
    if options.train_rows:
        table = pd.concat(list(parts.values()))
        many = pd.concat([table] * (options.train_rows // len(table) + 1))[: options.train_rows]
        many = many.assign(group=[f"g{i}" for i in range(len(many))])
        start = time.perf_counter()
        fit_predictor(many, parts["calibration"], seed=0, n_jobs=options.jobs)
        training.append({"rows": len(many), "s": time.perf_counter() - start})
    print_table(
        ["", "p50 ms", "p99 ms"],
        [[name, f"{row['p50_ms']:.3f}", f"{row['p99_ms']:.3f}"] for name, row in times.items()],
    )
    print_table(["rows trained on", "s"], [[row["rows"], f"{row['s']:.1f}"] for row in training])
    finish("latency", times | {"training": training})


if __name__ == "__main__":
    main()
