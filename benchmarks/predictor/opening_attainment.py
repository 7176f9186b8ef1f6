"""What answers' openings are worth: attainment in the simulator with second estimates and without.

    python -m benchmarks.predictor.opening_attainment --out opening.jsonl --seeds 3
    python -m benchmarks.predictor.opening_attainment --out opening.jsonl --table

``sa`` with learned lengths plans the same requests four times: with what the prompts say; with
estimates after 16 and 48 tokens, from the openings of the very answers, come so many tokens late;
with the answers' true lengths from the same moments on, which no estimate can beat; and with true
lengths from the first. Requests are of the side of the split that the predictor has not seen.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.common import finish, interval, plain_parser, played, print_table
from lengthwise.data.arena.workloads import arena_workload
from lengthwise.data.sources.load import load_table
from lengthwise.data.splits import split_table
from lengthwise.data.tokens import load_counter
from lengthwise.data.workload import WorkloadRequest
from lengthwise.predictor.features.opening_text import opening_of
from lengthwise.predictor.fitting.fit import fit_predictor
from lengthwise.predictor.model import LengthPredictor
from lengthwise.scheduler.policies.make import make_policy
from lengthwise.scheduler.profile import load_profile
from lengthwise.scheduler.simulator.opening_estimates import OpeningEstimates
from lengthwise.scheduler.simulator.run import simulate
from lengthwise.training.bench.comparison.workload_source import (
    capacity_rps,
    length_rows,
    open_workload,
    to_sim,
)

PREDICTORS = Path(".lengthwise") / "opening-predictors"
# of which "prompt" is what all others are compared with
ARMS = ("prompt", "opening", "true after", "oracle")
SHAPES = ("tiny-cpu", "shape-many-slots", "shape-little-memory", "shape-slow-steps")


@dataclass(frozen=True, slots=True)
class Draw:
    """One draw of a cell's requests, on which every arm is played."""

    shape: str
    workload: str
    load: float
    seed: int
    requests: int
    late_tokens: int
    arms: tuple[str, ...] = ARMS


@lru_cache(maxsize=2)
def predictor_of(source: str) -> LengthPredictor:
    """The default predictor of a source with openings, trained once."""
    directory = PREDICTORS / source
    if not (directory / "card.json").is_file():
        parts = split_table(load_table(source))
        fit_predictor(parts["train"], parts["calibration"], openings=True).save(directory)
    return LengthPredictor.load(directory)


@lru_cache(maxsize=2)
def answers_of(source: str) -> dict[tuple[str, int], str]:
    """Answers by prompt and length."""
    table = load_table(source)
    keys = zip(table["prompt"], table["output_tokens"].tolist(), strict=True)
    return dict(zip(keys, table["response"], strict=True))


def openings_of(requests: list[WorkloadRequest], source: str, late_tokens: int) -> OpeningEstimates:
    """What the predictor says of the answers once they have begun."""
    predictor, answers = predictor_of(source), answers_of(source)
    count = load_counter(load_table(source).attrs["tokenizer"])
    shape = (len(predictor.opening_tokens), len(requests), len(predictor.levels))
    quantiles = np.full(shape, np.nan)
    for k, tokens in enumerate(predictor.opening_tokens):
        places = [i for i, r in enumerate(requests) if r.output_tokens > tokens]
        there = [requests[i] for i in places]
        said = predictor.reestimate(
            [opening_of(answers[r.prompt or "", r.output_tokens], tokens, count) for r in there],
            tokens,
            [r.prompt or "" for r in there],
            [r.slo.slo_class for r in there],
            [r.readable_tokens for r in there],
        )
        quantiles[k, places] = said.quantiles
    return OpeningEstimates(np.array(predictor.opening_tokens) + late_tokens, quantiles)


def play(draw: Draw) -> dict[str, Any]:
    """Attainment of every arm."""
    profile = load_profile(draw.shape)
    source = open_workload(draw.workload, profile=profile)
    rate_rps = draw.load * capacity_rps(source, profile)
    requests = [
        replace(r, arrival_s=r.arrival_s / rate_rps)
        for r in source.draw(draw.requests, 1.0, draw.seed)
    ]
    pack = arena_workload(draw.workload).default_source
    rows, levels = length_rows(requests, "learned", predictor_of(pack))
    openings = openings_of(requests, pack, draw.late_tokens)
    true, _ = length_rows(requests, "oracle", predictor_of(pack))
    after = OpeningEstimates(openings.after_tokens[:1], true[None])
    told = {
        "prompt": (rows, None),
        "opening": (rows, openings),
        "true after": (rows, after),
        "oracle": (true, None),
    }
    found = {}
    for arm in draw.arms:
        known, later = told[arm]
        workload = to_sim(requests, known, levels)
        result = simulate(workload, make_policy("sa", seed=draw.seed), profile, openings=later)
        found[arm] = {
            "attainment": float(result.met(workload).mean()),
            "mean_e2e_s": float(result.e2e_s(workload).mean()),
            "yields": result.yields,
            "preemptions": result.preemptions,
        }
    return {"shape": draw.shape, "workload": draw.workload, "load": draw.load,
            "seed": draw.seed, "arms": found}  # fmt: skip


def draws_of(options: argparse.Namespace) -> list[Draw]:
    """Every cell and seed."""
    return [
        Draw(
            shape,
            workload,
            load,
            seed,
            options.requests,
            options.late_tokens,
            ("prompt", *options.arms),
        )
        for seed in range(options.first_seed, options.first_seed + options.seeds)
        for shape in options.shapes
        for workload in options.workloads
        for load in options.loads
    ]


def show(lines: list[dict[str, Any]]) -> dict[str, Any]:
    """A row a cell: attainment by what the prompts say, and points above it."""
    cells: dict[tuple[str, str, float], list[dict[str, Any]]] = {}
    for line in lines:
        cells.setdefault((line["shape"], line["workload"], line["load"]), []).append(line["arms"])
    arms = [arm for arm in lines[0]["arms"] if arm != "prompt"]
    body, all_gains = [], {arm: [] for arm in arms}
    for cell, runs in sorted(cells.items()):
        row = [*cell, f"{100 * np.mean([run['prompt']['attainment'] for run in runs]):.1f}"]
        for arm in arms:
            gains = [100 * (r[arm]["attainment"] - r["prompt"]["attainment"]) for r in runs]
            all_gains[arm] += gains
            mean, half = interval(gains)
            row.append(f"{mean:+.1f} ± {half:.1f}")
        body.append(row)
    means = {arm: interval(gains) for arm, gains in all_gains.items()}
    body.append(["all", "", "", "", *(f"{m:+.2f} ± {h:.2f}" for m, h in means.values())])
    print_table(["shape", "workload", "load", "prompt, %", *(f"{arm}, points" for arm in arms)],
                body)  # fmt: skip
    return {arm: {"points": mean, "half": half} for arm, (mean, half) in means.items()}


def main() -> None:
    parser = plain_parser(__doc__)
    parser.add_argument("--out", type=Path, required=True, help="a line a draw")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--requests", type=int, default=400)
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--late-tokens", type=int, default=4, help="that an estimate comes late")
    parser.add_argument("--shapes", nargs="+", default=list(SHAPES))
    parser.add_argument("--workloads", nargs="+", default=["mixed", "paper"])
    parser.add_argument("--loads", nargs="+", type=float, default=[0.8, 1.2, 1.6])
    parser.add_argument("--arms", nargs="+", default=list(ARMS[1:]), choices=ARMS[1:])
    parser.add_argument("--table", action="store_true", help="only the table of what is there")
    options = parser.parse_args()
    if options.table:
        lines = [json.loads(line) for line in options.out.read_text().splitlines()]
    else:
        for workload in options.workloads:  # trained once, before the workers need it
            predictor_of(arena_workload(workload).default_source)
        lines = played(play, draws_of(options), options.jobs, options.out)
    finish("opening_attainment", show(lines))


if __name__ == "__main__":
    main()
