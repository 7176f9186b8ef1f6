"""What a causal reader brings and costs: the same splits with it and without it.

    python -m benchmarks.predictor.causal_reader --packs gpt35 --seeds 7 8
    python -m benchmarks.predictor.causal_reader --reader smollm2 --states states.npz

A prompt's states are the same in every split: with ``--states`` a file keeps them, since reading a
pack takes ten minutes of a core. "without" is the default predictor: what a predictor with a reader
says before the reader is asked, and without the reader's weights.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.common import finish, fitted, interval, note, parser, print_table
from lengthwise.predictor.features.reader_columns import CausalReader
from lengthwise.predictor.features.reader_states import CausalStates, causal_states
from lengthwise.predictor.fitting.evaluate import evaluate

METRICS = ("tau", "within_task_tau", "mae", "pinball_gain", "coverage")
REFERENCE = ("class_quantiles",)  # what `pinball_gain` is over
TIMED = 64  # prompts


def remember(states: CausalStates, path: Path | None) -> None:
    """Take over what a file holds."""
    if path is not None and path.is_file():
        with np.load(path) as file:
            if str(file["digest"]) == states.digest:
                keys = [bytes(key) for key in file["keys"]]
                states.remembered.update(zip(keys, file["rows"], strict=True))


def keep(states: CausalStates, path: Path | None) -> None:
    """Write what is remembered to a file."""
    if path is not None and states.remembered:
        keys = np.array([np.frombuffer(key, np.uint8) for key in states.remembered])
        rows = np.stack(list(states.remembered.values()))
        np.savez(path, digest=states.digest, keys=keys, rows=rows)


def cost(states: CausalStates, prompts: list[str], sizes: tuple[int, ...]) -> dict[str, float]:
    """Milliseconds of a core a prompt, read so many together; what was remembered stays so."""
    states.limit_threads(1)
    before = states.remembered.copy()
    found = {}
    for size in sizes:
        states.remembered.clear()
        began_s = time.process_time()
        for start in range(0, len(prompts), size):
            states.read(prompts[start : start + size])
        found[f"{size} together"] = 1e3 * (time.process_time() - began_s) / len(prompts)
    states.remembered.clear()
    states.remembered.update(before)
    return found


def measured(pack: str, seed: int, options: Any, states: CausalStates) -> dict[str, Any]:
    """Metrics of both on one split, the classes that are read, and the cost of a prompt."""
    settings = {"random_state": seed}
    if options.least_gain is not None:
        settings["least_gain"] = options.least_gain
    note(f"{pack} seed {seed}")
    reader = CausalReader(options.reader, **settings)
    parts, full = fitted(pack, seed, options.jobs, causal_reader=reader)
    keep(states, options.states)
    found = {
        name: evaluate(predictor, parts["test"], parts["train"], REFERENCE)
        for name, predictor in (("without", full.without_reader()), ("reader", full))
    }
    keep(states, options.states)
    asked = full.card["causal_reader"]
    read = parts["test"][parts["test"]["slo_class"].isin(asked["classes"])]["prompt"].tolist()
    times = cost(states, read[:TIMED], (1, 16)) if read else {}
    share = len(read) / len(parts["test"])
    return {"metrics": found, "asked": asked, "share": share, "ms_a_prompt": times}


def main() -> None:
    arguments = parser(__doc__)
    arguments.add_argument("--reader", default="smollm2")
    arguments.add_argument("--states", type=Path, help="a file that keeps what was read")
    arguments.add_argument("--least-gain", type=float, help="of a class that is to be read")
    options = arguments.parse_args()
    states = causal_states(options.reader)
    remember(states, options.states)
    result: dict[str, Any] = {}
    for pack in options.packs:
        runs = [measured(pack, seed, options, states) for seed in options.seeds]
        result[pack] = dict(zip(options.seeds, runs, strict=True))
        rows = [
            [name, f"{seed}", *(f"{run['metrics'][name][metric]:.3f}" for metric in METRICS)]
            for name in ("without", "reader")
            for seed, run in zip(options.seeds, runs, strict=True)
        ]
        rows += [
            [name, "mean", *(f"{interval(values)[0]:.3f}" for values in columns)]
            for name in ("without", "reader")
            for columns in [[[run["metrics"][name][m] for run in runs] for m in METRICS]]
        ]
        print(f"\n{pack}\n")
        print_table(["", "seed", *METRICS], rows)
        for seed, run in zip(options.seeds, runs, strict=True):
            print(f"seed {seed}: {run['asked']}, {run['share']:.0%} of the test rows read, "
                  f"{run['ms_a_prompt']} ms of a core a prompt")  # fmt: skip
    finish("causal_reader", result)


if __name__ == "__main__":
    main()
