"""What each part of the planner brings: ``sa`` with one part off at a time, in overloaded cells.

    python -m benchmarks.simulator.ablation --seeds 4 --out ablation.jsonl

Every variant plays the same requests as the whole planner, with a fixed number of search steps a
plan. Differences are paired by cell and seed, and their intervals (Student's t) are over these
pairs. Finished runs in ``--out`` are not run again.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterable
from dataclasses import fields
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.progress import track

from benchmarks.simulator.cells import ARRIVALS, WORKLOADS, Cell, build, measures
from benchmarks.simulator.grid_tables import interval
from lengthwise.scheduler.policies.annealing import Settings
from lengthwise.scheduler.policies.make import make_policy
from lengthwise.scheduler.simulator.run import simulate

WHOLE = "all parts"
RULES = ("feasible-edf", "feasible-sjf")

# What a variant is called, and the settings that make it. A field of Settings that is named in
# none of them and not in KNOBS is put to its off value, so that a new part has a row at once.
PARTS: dict[str, dict[str, object]] = {
    "no search": {"iterations": 0},
    "no previous plan as a start": {"starts": ("selection",)},
    "no selection (search from feasible-edf and -sjf)": {"starts": ("previous", *RULES)},
    "neither selection nor search": {"starts": RULES, "iterations": 0},
    "no stand-ins for arrivals": {"stand_ins": 0},
    "no end to a burst (rate stays)": {"persistence_s": 1e9},
    "no haste": {"haste": 0.0},
    "no calm": {"calm": 0.0},
    "no price of slot time": {"price_share": 0.0},
    "no caution (mean length)": {"caution": 0.5},
    "no slot taken back": {"forlorn": -1.0},
    "no spread of start times": {"spread": 0.0},
    "no latency in the cost": {"latency": 0.0},
    "the paper's G as the cost": {"paper_g": True},
}
# Sizes and scales, not parts; foresight 0 is the same as no stand-ins.
KNOBS = frozenset({"window", "compared", "patience_s", "foresight"})


def variants() -> dict[str, dict[str, object]]:
    """Name to settings; those of PARTS whose fields exist, then the fields it does not name."""
    known = {f.name: f.default for f in fields(Settings)}
    chosen = {
        name: changed
        for name, changed in PARTS.items()
        if set(changed) <= set(known) | {"iterations"}
    }
    named = {field for changed in PARTS.values() for field in changed} | KNOBS
    for name, default in known.items():
        if name in named or not isinstance(default, bool | int | float) or not default:
            continue
        off = type(default)(0)
        try:
            Settings(**{name: off})
        except ValueError:  # a field that has no off value
            continue
        chosen[f"no {name.replace('_', ' ')}"] = {name: off}
    return chosen


def play(cell: Cell, name: str, changed: dict[str, object], iterations: int) -> dict[str, object]:
    workload, profile = build(cell)
    if name in RULES:
        policy = make_policy(name)
    else:
        policy = make_policy("sa", seed=cell.seed, **{"iterations": iterations, **changed})
    began = time.process_time()
    figures = measures(workload, simulate(workload, policy, profile))
    place = f"{cell.workload}/{cell.arrivals}/{cell.load:g}"
    return {
        "variant": name,
        "cell": place,
        "seed": cell.seed,
        "lengths": cell.lengths,
        "cpu_s": time.process_time() - began,
        **figures,
    }


def table(lines: Iterable[dict], names: Iterable[str]) -> str:
    """Markdown: mean attainment of each variant, and its paired difference to the whole."""
    found: dict[str, dict[tuple, dict]] = {}
    for line in lines:
        found.setdefault(line["variant"], {})[line["cell"], line["seed"]] = line
    whole = found[WHOLE]
    workloads = sorted({cell.split("/")[0] for cell, _ in whole})
    out = [
        "| variant | attainment | points to all parts (95 %) | "
        + " | ".join(workloads)
        + " | mean e2e s |",
        "|---|---|---|" + "---|" * (len(workloads) + 1),
    ]
    for name in [WHOLE, *names]:
        rows = found.get(name, {})
        shared = [k for k in rows if k in whole]
        if not shared:
            continue
        points = {k: 100 * (rows[k]["attainment"] - whole[k]["attainment"]) for k in shared}
        parts = [
            float(np.mean([points[k] for k in shared if k[0].startswith(f"{w}/")]))
            for w in workloads
        ]
        gain, half = interval(list(points.values()))
        met = np.mean([rows[k]["attainment"] for k in shared])
        e2e = np.mean([rows[k]["mean_e2e_s"] for k in shared])
        difference = "" if name == WHOLE else f"{gain:+.2f} ± {half:.2f}"
        each = ["" if name == WHOLE else f"{value:+.2f}" for value in parts]
        out.append(f"| {name} | {met:.4f} | {difference} | {' | '.join(each)} | {e2e:.1f} |")
    return "\n".join(out)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, help="JSON lines of finished runs, added to")
    parser.add_argument("--seeds", type=int, default=4)
    parser.add_argument("--requests", type=int, default=1500)
    parser.add_argument("--iterations", type=int, default=80, help="search steps a plan")
    parser.add_argument("--lengths", default="learned")
    parser.add_argument("--loads", nargs="+", type=float, default=[1.4, 2.0])
    parser.add_argument("--workloads", nargs="+", default=list(WORKLOADS))
    parser.add_argument("--arrivals", nargs="+", default=list(ARRIVALS))
    parser.add_argument("--variants", nargs="+", help="only these, by name")
    parser.add_argument("--profile", default="tiny-cpu")
    args = parser.parse_args()

    chosen = {**variants(), **{rule: {} for rule in RULES}}
    if args.variants:
        if unknown := set(args.variants) - set(chosen):
            parser.error(f"unknown variants {sorted(unknown)}; known are {sorted(chosen)}")
        chosen = {name: chosen[name] for name in args.variants}
    lines = []
    if args.out is not None and args.out.is_file():
        lines = [json.loads(line) for line in args.out.read_text().splitlines()]
    done = {(line["variant"], line["cell"], line["seed"]) for line in lines}
    todo = [
        (cell, name, changed)
        for seed in range(args.seeds)
        for workload in args.workloads
        for arrivals in args.arrivals
        for load in args.loads
        for cell in [
            Cell(workload, load, arrivals, args.lengths, seed, args.requests, args.profile)
        ]
        for name, changed in {WHOLE: {}, **chosen}.items()
        if (name, f"{workload}/{arrivals}/{load:g}", seed) not in done
    ]
    for cell, name, changed in track(todo, description="runs", console=Console(stderr=True)):
        line = play(cell, name, changed, args.iterations)
        lines.append(line)
        if args.out is not None:
            with args.out.open("a") as file:
                file.write(json.dumps(line) + "\n")
    print(table(lines, chosen))


if __name__ == "__main__":
    main()
