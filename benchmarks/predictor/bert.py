"""The fine-tuned encoder, the booster and the stack of both: accuracy and time on a CPU.

python -m benchmarks.predictor.bert --packs gpt35 --seeds 3
"""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np

from benchmarks.common import finish, mean_and_half_width, note, parser, print_table
from lengthwise.data.sources.load import load_table
from lengthwise.data.splits import split_table
from lengthwise.predictor.estimators.encoder import BertReader
from lengthwise.predictor.fitting.evaluate import evaluate
from lengthwise.predictor.fitting.fit import fit_predictor
from lengthwise.predictor.fitting.held_out import reweighed
from lengthwise.predictor.model import LengthPredictor

METRICS = ("tau", "within_task_tau", "mae", "within_25", "pinball_gain", "crps", "coverage")


def latency_ms(reader: BertReader, prompt: str, repeats: int = 200) -> dict[str, float]:
    times = np.empty(repeats)
    for i in range(repeats + 10):
        start = time.perf_counter()
        reader.native([prompt])
        times[i % repeats] = 1e3 * (time.perf_counter() - start)
    return {"p50_ms": float(np.median(times)), "p99_ms": float(np.percentile(times, 99))}


def main() -> None:
    import torch

    arguments = parser(__doc__)
    arguments.add_argument("--epochs", type=float, default=3.0)
    arguments.add_argument("--max-length", type=int, default=128)
    arguments.add_argument("--learning-rate", type=float, default=1e-4)
    arguments.add_argument("--save", type=Path, help="keep the last stack here")
    options = arguments.parse_args()
    settings = {
        "epochs": options.epochs,
        "max_length": options.max_length,
        "learning_rate": options.learning_rate,
    }
    result: dict[str, object] = {"settings": settings}
    for pack in options.packs:
        table = load_table(pack)
        runs: dict[str, list[dict]] = {}  # type: ignore[type-arg]
        shares = []
        for seed in options.seeds:
            parts = split_table(table, seed=seed)
            start = time.perf_counter()
            stack = fit_predictor(
                parts["train"],
                parts["calibration"],
                estimator="stack",
                seed=seed,
                reader_params=settings,
                n_jobs=options.jobs,
                progress=lambda what, share: note(f"{what} {share:.3f}"),
            )
            note(f"{pack} seed {seed}: trained in {time.perf_counter() - start:.0f} s")
            if options.save:
                stack.save(options.save)
            assert stack.reading is not None
            shares.append(stack.reading.share)
            variants = {
                "booster": LengthPredictor(
                    stack.prompt_features, stack.estimator, stack.calibration, stack.card
                ),
                "bert": reweighed(stack, parts["calibration"], 1.0),
                "stack": stack,
            }
            for name, predictor in variants.items():
                measured = evaluate(predictor, parts["test"], parts["train"], ("class_quantiles",))
                runs.setdefault(name, []).append(measured)
                note(f"{name}: " + " ".join(f"{m} {measured[m]:.4f}" for m in METRICS))
        cells = {
            name: {m: mean_and_half_width([run[m] for run in measured]) for m in METRICS}
            for name, measured in runs.items()
        }
        result[pack] = cells | {"shares": shares}
        print(f"\n{pack}, seeds {options.seeds}, share of the encoder in the stack {shares}\n")
        print_table(
            ["", *METRICS],
            [[n, *(f"{m:.3f} ± {h:.3f}" for m, h in row.values())] for n, row in cells.items()],
        )
    torch.set_num_threads(1)
    prompt = (
        "Explain in 150 words how a B-tree stays balanced, with 3 examples. " * 31
    )  # 500 tokens
    times = {
        name: latency_ms(
            BertReader(stack.reading.reader.model, stack.reading.reader.tokenizer, q), prompt
        )
        for name, q in (("float32", False), ("int8", True))
    }
    result["latency"] = times
    print_table(
        ["one thread", "p50 ms", "p99 ms"],
        [[n, f"{t['p50_ms']:.1f}", f"{t['p99_ms']:.1f}"] for n, t in times.items()],
    )
    finish("predictor_bert", result)


if __name__ == "__main__":
    main()
