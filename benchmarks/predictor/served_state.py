"""What the served model's own state says of an answer's length, read out of vLLM where it serves.

    python -m benchmarks.predictor.served_state --prompts 300 --out states.npz

SmolLM2 answers a pack's prompts on vLLM, greedily, and the hidden state that each prompt ends with
is taken out of the running engine (``state_tap``). The file holds lengths and states, no text.
Then, in grouped folds: a ridge on log-length from the estimate of a predictor of another model's
answers, from the state, and from both. Needs the package (requirements/reader.txt) and
LENGTHWISE_DATA.
"""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from sklearn.linear_model import RidgeCV
from sklearn.model_selection import GroupKFold
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from benchmarks.common import finish, fitted, note, plain_parser, print_table
from benchmarks.predictor.own_answers import BATCH, PACK_SEED, asked, point_metrics, started
from benchmarks.predictor.state_tap import StateTap

Floats = NDArray[np.float64]
ALPHAS = np.logspace(0, 6, 25)
COLUMNS = ("tau", "within_task_tau", "mae")


def answer(prompts: list[str], max_tokens: int, out: Path) -> None:
    """Lengths, whether cut, and states, ``(n,)`` and ``(n, width)``; written to ``out``."""
    model = started(worker_extension_cls=f"{StateTap.__module__}.{StateTap.__qualname__}")
    from vllm import SamplingParams

    model.collective_rpc("tap_states")
    params = SamplingParams(temperature=0.0, max_tokens=max_tokens)
    tokens: list[int] = []
    cut: list[bool] = []
    states: list[list[float]] = []
    began = time.perf_counter()
    for start in range(0, len(prompts), BATCH):
        chats = [[{"role": "user", "content": p}] for p in prompts[start : start + BATCH]]
        done = model.chat(chats, params, use_tqdm=False)
        taken = model.collective_rpc("tapped_states")[0]
        # vLLM's own name of a request begins with the one it answers under
        of_request = {name.split("-")[0]: state for name, state in taken.items()}
        for answered in done:
            tokens.append(len(answered.outputs[0].token_ids))
            cut.append(answered.outputs[0].finish_reason == "length")
            states.append(of_request[answered.request_id])
        note(
            f"{len(tokens)} of {len(prompts)}, {sum(tokens) / (time.perf_counter() - began):.0f}/s"
        )
    steps, tap_s, logits_s = model.collective_rpc("tap_cost")[0]
    np.savez_compressed(
        out, tokens=tokens, cut=cut, states=np.array(states, np.float32), steps=steps,
        tap_s=tap_s, logits_s=logits_s, seconds=time.perf_counter() - began,
    )  # fmt: skip


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
        answer(rows["prompt"].tolist(), options.max_tokens, options.out)
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
    table, result = [], {}
    for count in (50, 100, None):
        for name, x in inputs.items():
            each = []
            for seed in options.seeds:
                said_tokens = np.exp(predicted(x, y, groups, count, seed))
                said_tokens = said_tokens.clip(1.0, options.max_tokens)
                each.append(point_metrics(rows, found["tokens"], said_tokens))
            learned = count or len(rows) * 4 // 5
            means = pd.DataFrame(each, columns=COLUMNS).astype(float).mean()
            table.append([name, learned, *(f"{value:.3f}" for value in means)])
            result[f"{name}, {learned}"] = means.to_dict()
    print_table(["from", "learned from", *COLUMNS], table)
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
