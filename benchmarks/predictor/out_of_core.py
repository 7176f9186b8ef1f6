"""Training on more rows than fit in memory: time and peak memory on generated rows.

    python -m benchmarks.predictor.out_of_core --rows 5000000

Feature rows are those of the built-in corpus, repeated; lengths are the corpus's own times a
log-normal. What reading a log's JSON costs is measured apart, on `--log-rows` rows.
"""

from __future__ import annotations

import resource
import tempfile
import time
from collections.abc import Iterator

import numpy as np
import pandas as pd

from benchmarks.common import finish, note, plain_parser, print_table
from lengthwise.data.request_log import RequestLogWriter, log_batches
from lengthwise.data.sources.synthetic.corpus import synthetic_table
from lengthwise.data.splits import split_table
from lengthwise.predictor.fitting.evaluate import evaluate
from lengthwise.predictor.fitting.fit import fit_predictor
from lengthwise.predictor.fitting.stream import fit_stream
from lengthwise.predictor.model import LengthPredictor


def generated(
    base: LengthPredictor, corpus: pd.DataFrame, rows: int, piece: int
) -> Iterator[pd.DataFrame]:
    rng = np.random.default_rng(0)
    features = base.features(
        corpus["prompt"].tolist(), corpus["slo_class"].tolist(), corpus["prompt_tokens"].tolist()
    )
    for start in range(0, rows, piece):
        picked = rng.integers(len(corpus), size=min(piece, rows - start))
        batch = corpus.iloc[picked].reset_index(drop=True)
        noise = rng.lognormal(0.0, 0.3, picked.size)
        batch["output_tokens"] = np.maximum(batch["output_tokens"] * noise, 1.0).astype(int)
        batch["group"] = [f"{start + i}" for i in range(picked.size)]
        batch["features"] = list(features[picked])
        batch["feature_contract"] = base.feature_contract
        batch["prompt"] = None
        batch.attrs = dict(corpus.attrs)
        note(f"{start + picked.size:,} rows")
        yield batch


def read_rate(batch: pd.DataFrame, base: LengthPredictor) -> float:
    """Rows a second from a request log on disk."""
    with tempfile.TemporaryDirectory() as folder:
        writer = RequestLogWriter(folder, queue_rows=len(batch))
        for i, row in enumerate(batch.itertuples()):
            writer.write(
                {
                    "request_id": f"r{i}",
                    "status": "finished",
                    "slo_class": row.slo_class,
                    "prompt_tokens": int(row.prompt_tokens),
                    "output_tokens": int(row.output_tokens),
                    "features": row.features.tolist(),
                    "feature_contract": base.feature_contract,
                    "predictor": "models:/output-length/1",
                }
            )
        writer.close()
        start = time.perf_counter()
        read = sum(len(part) for part in log_batches(folder))
        return read / (time.perf_counter() - start)


def main() -> None:
    arguments = plain_parser(__doc__)
    arguments.add_argument("--rows", type=int, default=5_000_000)
    arguments.add_argument("--piece", type=int, default=100_000)
    arguments.add_argument("--log-rows", type=int, default=20_000)
    arguments.add_argument("--jobs", type=int, default=2)
    options = arguments.parse_args()
    corpus = synthetic_table(rows=20_000)
    parts = split_table(corpus)
    base = fit_predictor(
        parts["train"], parts["calibration"], blocks=("structure", "request"), n_estimators=50
    )
    rate = read_rate(next(generated(base, corpus, options.log_rows, options.log_rows)), base)
    start = time.perf_counter()
    fitted, held_out = fit_stream(
        base, generated(base, corpus, options.rows, options.piece), n_jobs=options.jobs
    )
    taken_s = time.perf_counter() - start
    peak_gb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    measured = evaluate(fitted, held_out["test"], held_out["calibration"], ("class_quantiles",))
    result = {
        "rows": options.rows,
        "columns": len(base.feature_names),
        "s": taken_s,
        "peak_gb": peak_gb,
        "log_rows_per_s": rate,
        "tau": measured["tau"],
        "pinball_gain": measured["pinball_gain"],
        "coverage": measured["coverage"],
    }
    print_table(list(result), [[f"{value:,.6g}" for value in result.values()]])
    finish("out_of_core", result)


if __name__ == "__main__":
    main()
