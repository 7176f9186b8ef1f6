"""How well a served model's own answers are predicted, and how well they could be.

    python -m benchmarks.predictor.own_answers --prompts 400 --out own.jsonl
    python -m benchmarks.predictor.own_answers --prompts 400 --out own.jsonl --reader smollm2

SmolLM2 answers a pack's prompts on vLLM, each as often as ``--answers`` says, at every temperature
of ``--temperatures``, with seeds of their own and ended by the model or at ``--max-tokens``. The
file keeps lengths, no text; what it holds already is not answered again. Then, on the test sides of
several grouped splits: a predictor trained on these answers, the same trained on the pack's own
(another model's), the class alone, and as the ceiling a second answer to the same prompt.
``--reader smollm2`` adds the served model's own state, read through Transformers. Needs the
package (requirements/reader.txt) and LENGTHWISE_DATA.
"""

from __future__ import annotations

import json
import os
import sys
import time
import zlib
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike

from benchmarks.common import finish, fitted, interval, note, plain_parser, print_table
from lengthwise.data.lines import read_json_lines
from lengthwise.data.sources.load import load_table
from lengthwise.data.splits import split_of, split_table
from lengthwise.data.table import PromptTable, make_table, take_rows
from lengthwise.predictor.distribution import LengthDistribution
from lengthwise.predictor.fitting import metrics
from lengthwise.predictor.fitting.evaluate import baseline_distribution, evaluate_distribution
from lengthwise.predictor.fitting.fit import fit_predictor

BATCH = 64
SLOTS = 32
KV_BYTES = 1 << 30
COLUMNS = ("tau", "within_task_tau", "mae", "within_25", "pinball_gain", "coverage")
PACK_SEED = 0  # of the pack's split; those of the answers are other ones
CEILING = "another answer to the same prompt"

Key = tuple[str, float, int]  # prompt id, temperature, which answer to it
Answers = dict[Key, tuple[int, bool]]  # tokens, whether it was cut


def asked(pack: str, prompts: int) -> PromptTable:
    """Prompts that a predictor trained on the pack has not seen, each once, drawn evenly."""
    table = load_table(pack)
    rows = take_rows(table, split_of(list(table["group"]), PACK_SEED) != "train")
    rows = take_rows(rows, ~rows["id"].duplicated() & rows["prompt"].notna())
    order = np.random.default_rng(0).permutation(len(rows))  # so that more prompts keep the fewer
    return take_rows(rows, np.sort(order[:prompts]))


def read_answers(path: Path) -> Answers:
    """What the file holds; a line that a stop cut off is not there."""
    found: Answers = {}
    if path.is_file():
        for _, row in read_json_lines(path):
            key = (row["id"], float(row["temperature"]), int(row["turn"]))
            found[key] = (int(row["tokens"]), bool(row["cut"]))
    return found


def write_missing(rows: PromptTable, path: Path, options: Any) -> dict[str, float]:
    """Have the model answer what the file lacks; how long that took."""
    known = read_answers(path)
    ids, prompts = rows["id"].tolist(), rows["prompt"].tolist()
    missing = [
        (i, temperature, turn)
        for temperature in options.temperatures
        for turn in range(options.answers)
        # another order for the second answer, so that greedy ones meet other neighbours
        for i in np.random.default_rng(turn).permutation(len(ids)).tolist()
        if (ids[i], temperature, turn) not in known
    ]
    if not missing:
        return {}
    model = started()
    from vllm import SamplingParams

    began, tokens = time.perf_counter(), 0
    with path.open("a", encoding="utf-8") as file:
        for start in range(0, len(missing), BATCH):
            batch = missing[start : start + BATCH]
            params = [
                SamplingParams(
                    temperature=temperature,
                    max_tokens=options.max_tokens,
                    seed=zlib.crc32(f"{turn} {ids[i]}".encode()),
                )
                for i, temperature, turn in batch
            ]
            chats = [[{"role": "user", "content": prompts[i]}] for i, _, _ in batch]
            for (i, temperature, turn), done in zip(
                batch, model.chat(chats, params, use_tqdm=False), strict=True
            ):
                answer = done.outputs[0]
                tokens += len(answer.token_ids)
                row = {
                    "id": ids[i],
                    "temperature": temperature,
                    "turn": turn,
                    "tokens": len(answer.token_ids),
                    "cut": answer.finish_reason == "length",
                }
                print(json.dumps(row), file=file)
            file.flush()
            spent_s = time.perf_counter() - began
            note(f"{start + len(batch)} of {len(missing)} answers, {tokens / spent_s:.0f} tokens/s")
    return {"tokens": float(tokens), "seconds": time.perf_counter() - began}


@contextmanager
def unseen_main() -> Iterator[None]:
    """Processes that are spawned meanwhile do not import the module that was started.

    On a CPU vLLM's workers do not start where llvmlite is, as it is wherever numba is.
    """
    main = sys.modules["__main__"]
    sys.modules["__main__"] = ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = main


def started(**options: Any) -> Any:
    """The packaged model in vLLM, its engine and worker in processes of their own."""
    from lengthwise.training.packaged_model import packaged_model

    folder, _ = packaged_model("smollm2", [])
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
    from vllm import LLM

    with unseen_main():
        return LLM(
            model=folder, max_num_seqs=SLOTS, kv_cache_memory_bytes=KV_BYTES, enforce_eager=True,
            # a piece of a prompt of a seeded request ends vLLM's CPU worker
            enable_chunked_prefill=False, max_num_batched_tokens=8192, **options,
        )  # fmt: skip


def answered_table(
    rows: PromptTable, answers: Mapping[Key, tuple[int, bool]], temperature: float, turn: int
) -> PromptTable:
    """The prompts with this answer's lengths, those that have one."""
    found = [answers.get((one, temperature, turn)) for one in rows["id"]]
    kept = take_rows(rows, np.array([one is not None for one in found]))
    lengths = [one for one in found if one is not None]
    columns = {name: kept[name].tolist() for name in kept.columns if name != "response"} | {
        "output_tokens": [tokens for tokens, _ in lengths],
        "censored": [cut for _, cut in lengths],
        "model": ["smollm2"] * len(kept),
    }
    return make_table(
        columns,
        source_label=f"smollm2 at temperature {temperature:g}",
        data_sha256=str(rows.attrs["data_sha256"]),
        tokenizer="smollm2",
    )


def measured(
    own: PromptTable, second: PromptTable | None, foreign: Any, seed: int, options: Any
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Name and metrics of everybody's word on one split's test side."""
    parts = split_table(own, seed=seed)
    test, train = parts["test"], parts["train"]
    limit = options.max_tokens
    by_class = evaluate_distribution(test, baseline_distribution("class_quantiles", train, test))

    def judged(predicted: LengthDistribution) -> dict[str, Any]:
        row = evaluate_distribution(test, predicted)
        return row | {"pinball_gain": 1.0 - row["pinball"] / by_class["pinball"]}

    def said(predictor: Any) -> LengthDistribution:
        return predictor.predict(
            test["prompt"].tolist(),
            test["slo_class"].tolist(),
            test["prompt_tokens"].tolist(),
            limit,
        )

    yield "class alone", by_class | {"pinball_gain": 0.0}
    yield "trained on the pack's answers", judged(said(foreign))
    fit = {"seed": seed, "n_jobs": options.jobs}
    yield "trained on its own", judged(said(fit_predictor(train, parts["calibration"], **fit)))
    if options.reader:
        with_state = fit_predictor(train, parts["calibration"], causal_reader=options.reader, **fit)
        yield "and with its own state", judged(said(with_state))
    if second is not None:
        yield CEILING, as_prediction(test, second)


def as_prediction(test: PromptTable, second: PromptTable) -> dict[str, Any]:
    """The second answer's length as a point prediction of the first's."""
    of_id = dict(zip(second["id"], second["output_tokens"], strict=True))
    both = take_rows(test, test["id"].isin(list(of_id)).to_numpy())
    true = both["output_tokens"].to_numpy(float)
    other = both["id"].map(of_id).to_numpy(float)
    return point_metrics(both, true, other) | {"pinball_gain": None, "coverage": None}


def point_metrics(table: PromptTable, true: ArrayLike, said: ArrayLike) -> dict[str, Any]:
    """How far off point predictions ``(n,)`` of the table's rows are."""
    taus = metrics.task_taus(true, said, metrics.task_names(table))
    return {
        "tau": metrics.kendall_tau(true, said),
        "within_task_tau": metrics.mean_tau(taus),
        "mae": metrics.mae(true, said),
        "within_25": metrics.within_25(true, said),
    }


def cell(values: Sequence[float | None], digits: int) -> str:
    known = [v for v in values if v is not None]
    if len(known) < len(values) or not known:
        return ""
    mean, half = interval(known)
    return f"{mean:.{digits}f} ± {half:.{digits}f}"


def lengths_of(table: pd.DataFrame) -> dict[str, Any]:
    tokens = table["output_tokens"].to_numpy(float)
    return {
        "answers": len(table),
        "cut": int(table["censored"].sum()),
        "mean_tokens": float(tokens.mean()),
        "median_tokens": float(np.median(tokens)),
    }


def main() -> None:
    arguments = plain_parser(__doc__)
    arguments.add_argument("--pack", default="gpt35", help="whose prompts, and the other model")
    arguments.add_argument("--prompts", type=int, default=400)
    arguments.add_argument("--temperatures", type=float, nargs="+", default=[0.0, 0.7])
    arguments.add_argument("--answers", type=int, default=2, help="to each prompt")
    arguments.add_argument("--max-tokens", type=int, default=512)
    arguments.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3, 4, 5])
    arguments.add_argument("--jobs", type=int, default=1, help="LightGBM threads")
    arguments.add_argument("--reader", help="causal reader whose states are added")
    arguments.add_argument("--out", type=Path, required=True, help="lengths, a line an answer")
    options = arguments.parse_args()
    rows = asked(options.pack, options.prompts)
    note(f"{len(rows)} prompts of {options.pack}")
    speed = write_missing(rows, options.out, options)
    answers = read_answers(options.out)
    note(f"training on {options.pack}")
    _, foreign = fitted(options.pack, PACK_SEED, options.jobs)
    result: dict[str, Any] = {"prompts": len(rows), "max_tokens": options.max_tokens, **speed}
    for temperature in options.temperatures:
        own = answered_table(rows, answers, temperature, 0)
        twice = any(key[1:] == (temperature, 1) for key in answers)
        second = answered_table(rows, answers, temperature, 1) if twice else None
        runs: dict[str, list[dict[str, Any]]] = defaultdict(list)
        for seed in options.seeds:
            note(f"temperature {temperature:g}, split {seed}")
            for name, row in measured(own, second, foreign, seed, options):
                runs[name].append(row)
        what = lengths_of(own)
        test = len(split_table(own, seed=options.seeds[0])["test"])
        print(
            f"\nTemperature {temperature:g}: {what['answers']} answers, {what['cut']} cut at "
            f"{options.max_tokens} tokens, mean {what['mean_tokens']:.0f}; test sides of "
            f"{len(options.seeds)} grouped splits (about {test} rows each), mean ± 95 % interval\n"
        )
        table = [
            [name, *(cell([r[c] for r in own_runs], 1 if c == "mae" else 3) for c in COLUMNS)]
            for name, own_runs in runs.items()
        ]
        print_table(["", *COLUMNS], table)
        result[f"temperature {temperature:g}"] = what | {
            name: {c: [r[c] for r in own_runs] for c in COLUMNS} for name, own_runs in runs.items()
        }
    finish("own_answers", result)


if __name__ == "__main__":
    main()
