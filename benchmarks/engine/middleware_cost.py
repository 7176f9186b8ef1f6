"""What our middleware adds to a request: the same application with and without it, in turn.

Requests of 500 tokens at 200 a second on one core, as they fall due, each sent to both one after
the other, which goes first by turns. The time is from the call to its last message, so the
difference is all that we do before and after: reading, checking, predicting, sealing, and the
request log's texts where they are kept (the log itself is the engine's). Where the core is shared
with other programs the wall's clock runs for them too; the process's own time (`own`) does not.

    python -m benchmarks.engine.middleware_cost --seconds 20
"""

from __future__ import annotations

import asyncio
import gc
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.common import finish, interval, note, plain_parser, print_table
from benchmarks.engine.in_process import CHAT, App, Bare, chat, fitted_predictor, ours_before, post
from lengthwise.data.sources.synthetic.corpus import synthetic_table

CHARACTERS = 2_000  # about 500 tokens
RATE_RPS = 200.0
MEDIAN_MS, P99_MS = 0.6, 2.0
HEADERS = {"content-type": "application/json", "x-slo-class": "chat", "x-slo-tpot-ms": "50"}


Taken = dict[str, list[tuple[float, float]]]


async def play(entries: dict[str, App], app: Bare, bodies: list[bytes]) -> Taken:
    """Seconds of each request by each way, at the pace: on the wall, and of this process."""
    taken: Taken = {name: [] for name in entries}
    began_s = time.perf_counter()
    for index, raw in enumerate(bodies):
        await asyncio.sleep(max(0.0, began_s + index / RATE_RPS - time.perf_counter()))
        for name in list(entries)[:: 1 if index % 2 else -1]:
            at_s, own_s = time.perf_counter(), time.process_time()
            assert await post(entries[name], app, CHAT, raw, HEADERS) == 200
            taken[name].append((time.perf_counter() - at_s, time.process_time() - own_s))
    return taken


def main() -> int:
    arguments = plain_parser(__doc__)
    arguments.add_argument("--seconds", type=float, default=20.0)
    arguments.add_argument("--rounds", type=int, default=5)
    arguments.add_argument("--trees", type=int, default=100)
    arguments.add_argument("--log-prompts", action="store_true", help="keep the texts too")
    options = arguments.parse_args()
    core = min(os.sched_getaffinity(0))
    rounds: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory(prefix="middleware-cost-") as scratch:
        note("training a predictor")
        folder, app = Path(scratch), Bare()
        predictor = fitted_predictor(folder / "predictor", options.trees)
        os.sched_setaffinity(0, {core})
        ours = ours_before(app, predictor, folder / "log", log_prompts=options.log_prompts)
        entries: dict[str, App] = {"bare": app, "ours": ours}
        prompts = synthetic_table(500, seed=5)["prompt"].tolist()
        text = " ".join(prompts)
        count = max(1, round(options.seconds * RATE_RPS / options.rounds))
        starts = np.random.default_rng(1).integers(0, len(text) - CHARACTERS, count)
        bodies = [chat(text[start : start + CHARACTERS], max_tokens=400) for start in starts]
        asyncio.run(play(entries, app, bodies[:200]))
        gc.collect()
        gc.freeze()  # as vLLM's server does once it is up
        for turn in range(options.rounds):
            taken = asyncio.run(play(entries, app, bodies))
            bare, both = (1e3 * np.asarray(taken[name]) for name in ("bare", "ours"))
            added, added_own = (both - bare).T
            rounds.append(
                {
                    "bare_p50_ms": float(np.median(bare[:, 0])),
                    "ours_p50_ms": float(np.median(both[:, 0])),
                    "added_p50_ms": float(np.median(added)),
                    "added_p99_ms": float(np.quantile(added, 0.99)),
                    "added_own_p50_ms": float(np.median(added_own)),
                    "added_own_p99_ms": float(np.quantile(added_own, 0.99)),
                }
            )
            note(f"round {turn + 1}: {rounds[-1]}")
    names = list(rounds[0])
    print(f"{options.rounds} rounds of {count} requests, {RATE_RPS:g} a second, one core.\n")
    means = {name: interval([row[name] for row in rounds]) for name in names}
    print_table(
        ["of a round", "mean, ms", "95 %"],
        [[name, f"{mean:.3f}", f"± {half:.3f}"] for name, (mean, half) in means.items()],
    )
    held = means["added_p50_ms"][0] <= MEDIAN_MS and means["added_p99_ms"][0] <= P99_MS
    print(f"Asked for: median {MEDIAN_MS:g} ms, p99 {P99_MS:g} ms. {'Held' if held else 'Missed'}.")
    finish("middleware_cost", {"rounds": rounds, "held": held})
    return 0 if held else 1


if __name__ == "__main__":
    sys.exit(main())
