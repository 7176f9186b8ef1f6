"""What the served model's own state says of an answer's length, read out of vLLM where it serves.

    python -m benchmarks.predictor.served_state --prompts 300 --out states.npz

SmolLM2 answers a pack's prompts on vLLM, greedily, and the hidden state that each prompt ends with
is taken out of the running engine (``tapped_answers``). The file holds lengths and states, no text.
Then, in grouped folds: a ridge on log-length from the estimate of a predictor of another model's
answers, from the state, and from both. Needs the package (requirements/reader.txt) and
LENGTHWISE_DATA.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from sklearn.linear_model import RidgeCV
from sklearn.model_selection import GroupKFold
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from benchmarks.common import finish, fitted, note, plain_parser, print_table
from benchmarks.predictor.own_answers import PACK_SEED, asked
from lengthwise.data.table import PromptTable
from lengthwise.predictor.fitting import metrics

Floats = NDArray[np.float64]
ALPHAS = np.logspace(0, 6, 25)


def answered(rows: PromptTable, max_tokens: int, out: Path) -> None:
    """The model's lengths and states, by a process of its own, in ``out``."""
    with tempfile.TemporaryDirectory() as folder:
        prompts = Path(folder) / "prompts.json"
        prompts.write_text(json.dumps(rows["prompt"].tolist()))
        # not as a module of its own name: vLLM's workers would import this one
        command = "from benchmarks.predictor.tapped_answers import main; main()"
        arguments = [str(prompts), str(max_tokens), str(out)]
        subprocess.run([sys.executable, "-c", command, *arguments], check=True)


def predicted(x: Floats, y: Floats, groups: list[str], rows: int | None, seed: int) -> Floats:
    """Out of fold, by a ridge on at most ``rows`` of the other folds' rows."""
    result, rng = np.empty(len(y)), np.random.default_rng(seed)
    for train, test in GroupKFold(5, shuffle=True, random_state=seed).split(x, y, groups):
        some = train if rows is None else rng.permutation(train)[:rows]
        ridge = make_pipeline(StandardScaler(), RidgeCV(ALPHAS)).fit(x[some], y[some])
        result[test] = ridge.predict(x[test])
    return result


def main() -> None:
    arguments = plain_parser(__doc__)
    arguments.add_argument("--pack", default="gpt35", help="whose prompts, and the other model")
    arguments.add_argument("--prompts", type=int, default=300)
    arguments.add_argument("--max-tokens", type=int, default=384)
    arguments.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    arguments.add_argument("--jobs", type=int, default=1, help="LightGBM threads")
    arguments.add_argument("--out", type=Path, required=True, help="an .npz, read if it is there")
    options = arguments.parse_args()
    rows = asked(options.pack, options.prompts)
    if not options.out.is_file():
        answered(rows, options.max_tokens, options.out)
    found = dict(np.load(options.out))
    if len(found["tokens"]) != len(rows):
        raise SystemExit(f"{options.out} holds {len(found['tokens'])} answers, not {len(rows)}")
    note(f"training on {options.pack}")
    _, foreign = fitted(options.pack, PACK_SEED, options.jobs)
    said = foreign.predict(
        rows["prompt"].tolist(), rows["slo_class"].tolist(), rows["prompt_tokens"].tolist(),
        options.max_tokens,
    )  # fmt: skip
    y = np.log(found["tokens"].astype(float))
    estimate, state = np.log(said.median())[:, None], found["states"].astype(float)
    inputs = {
        "estimate": estimate, "state": state, "estimate and state": np.hstack([estimate, state])
    }  # fmt: skip
    groups = list(rows["group"])
    tasks = (rows["source"].astype(str) + ":" + rows["task"].astype(str)).tolist()
    table, result = [], {}
    for count in (50, 100, None):
        for name, x in inputs.items():
            each = []
            for seed in options.seeds:
                lengths = np.exp(predicted(x, y, groups, count, seed))
                lengths = lengths.clip(1.0, options.max_tokens)
                taus = metrics.task_taus(found["tokens"], lengths, tasks)
                each.append(
                    [
                        metrics.kendall_tau(found["tokens"], lengths),
                        float(np.mean(list(taus.values()))) if taus else np.nan,
                        metrics.mae(found["tokens"], lengths),
                    ]
                )
            tau, within, mae = np.mean(each, axis=0)
            learned = count or f"{len(rows) * 4 // 5}"
            table.append([name, learned, f"{tau:.3f}", f"{within:.3f}", f"{mae:.1f}"])
            result[f"{name}, {learned}"] = {"tau": tau, "within_task_tau": within, "mae": mae}
    print_table(["from", "learned from", "tau", "within_task_tau", "mae"], table)
    cost = {
        "tap_us_a_step": 1e6 * float(found["tap_s"]) / int(found["steps"]),
        "logits_us_a_step": 1e6 * float(found["logits_s"]) / int(found["steps"]),
        "steps": int(found["steps"]),
        "tokens_per_s": float(found["tokens"].sum() / found["seconds"]),
        "cut": int(found["cut"].sum()),
        "mean_tokens": float(found["tokens"].mean()),
        "width": state.shape[1],
    }
    finish("served_state", {"answers": len(rows), **cost, **result})


if __name__ == "__main__":
    main()
