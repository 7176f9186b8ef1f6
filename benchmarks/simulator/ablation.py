"""What each part of the planner brings: ``sa`` with one part off at a time, in overloaded cells.

    python -m benchmarks.simulator.ablation --seeds 4 --out ablation.jsonl

Every variant plays the same requests as the whole planner, with a fixed number of search steps a
plan. Differences are paired by cell and seed, and their intervals (Student's t) are over these
pairs. Finished draws in ``--out`` are not played again.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.progress import track

from benchmarks.common import finish, interval, plain_parser, table
from benchmarks.simulator.cells import ARRIVALS, WORKLOADS, Cell
from benchmarks.simulator.grid import Draw, key, play, read_lines
from lengthwise.scheduler.policies.annealing import Settings
from lengthwise.training.bench.comparison.arms import Arm

WHOLE = "all parts"
RULES = ("feasible-edf", "feasible-sjf")

# What a variant is called, and the settings that make it. A field of Settings that is named in
# none of them and not in KNOBS is put to its off value, so that a new part has a row at once.
PARTS: dict[str, dict[str, Any]] = {
    "no search": {"iterations": 0},
    "no stand-ins for arrivals": {"stand_ins": 0},
    "no haste": {"haste": 0.0},
    "no calm": {"calm": 0.0},
    "no caution (mean length)": {"caution": 0.5},
    "no slot taken back": {"forlorn": -1.0},
    "no spread of start times": {"spread": 0.0},
}
# Sizes and scales, not parts; foresight 0 is the same as no stand-ins.
KNOBS = frozenset({"window", "compared", "foresight"})


def variants() -> dict[str, dict[str, Any]]:
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


def arm_of(name: str, lengths: str, changed: Mapping[str, Any]) -> Arm:
    """A variant under its name, or a rule."""
    if name in RULES:
        return Arm(name, lengths)
    return Arm("sa", lengths, name, tuple(changed.items()))


def place_of(line: Mapping[str, Any]) -> tuple[str, int]:
    """The cell, whatever is known of lengths, and the seed."""
    return f"{line['workload']}/{line['arrivals']}/{line['load']:g}", line["seed"]


def figures(lines: Iterable[Mapping[str, Any]], names: Iterable[str]) -> list[dict[str, Any]]:
    """Attainment of each variant, and its paired difference to the whole, points."""
    found: dict[str, dict[tuple[str, int], Mapping[str, Any]]] = {}
    for line in lines:
        found.setdefault(line["policy"], {})[place_of(line)] = line
    whole = found.get(WHOLE, {})
    rows = []
    for name in [WHOLE, *names]:
        runs = {place: run for place, run in found.get(name, {}).items() if place in whole}
        if not runs:
            continue
        points = {
            place: 100 * (run["attainment"] - whole[place]["attainment"])
            for place, run in runs.items()
        }
        each: dict[str, list[float]] = {}
        for (place, _), value in sorted(points.items()):
            each.setdefault(place.split("/")[0], []).append(value)
        rows.append(
            {
                "variant": name,
                "attainment": float(np.mean([run["attainment"] for run in runs.values()])),
                "points": interval(list(points.values())),
                "by_workload": {name: float(np.mean(values)) for name, values in each.items()},
                "mean_e2e_s": float(np.mean([run["mean_e2e_s"] for run in runs.values()])),
            }
        )
    return rows


def shown(row: Mapping[str, Any]) -> list[str]:
    """One line of the table; the whole has no difference to itself."""
    whole = row["variant"] == WHOLE
    points = "" if whole else "{:+.2f} ± {:.2f}".format(*row["points"])
    each = ["" if whole else f"{value:+.2f}" for value in row["by_workload"].values()]
    return [row["variant"], f"{row['attainment']:.4f}", points, *each, f"{row['mean_e2e_s']:.1f}"]


def main() -> None:
    parser = plain_parser(__doc__)
    parser.add_argument("--out", type=Path, required=True, help="finished draws, added to")
    parser.add_argument("--seeds", type=int, default=4)
    parser.add_argument("--requests", type=int, default=1500)
    parser.add_argument("--lengths", default="learned")
    parser.add_argument("--loads", nargs="+", type=float, default=[1.4, 2.0])
    parser.add_argument("--workloads", nargs="+", default=list(WORKLOADS))
    parser.add_argument("--arrivals", nargs="+", default=list(ARRIVALS))
    parser.add_argument("--variants", nargs="+", help="only these, by name")
    parser.add_argument("--profile", default="tiny-cpu")
    args = parser.parse_args()

    chosen: dict[str, dict[str, Any]] = {**variants(), **{rule: {} for rule in RULES}}
    if args.variants:
        if unknown := set(args.variants) - set(chosen):
            parser.error(f"unknown variants {sorted(unknown)}; known are {sorted(chosen)}")
        chosen = {name: chosen[name] for name in args.variants}
    lines = read_lines(args.out)
    done = {line["key"] for line in lines}
    cells = [
        Cell(workload, load, arrivals, args.lengths, seed, args.requests, args.profile)
        for seed in range(args.seeds)
        for workload in args.workloads
        for arrivals in args.arrivals
        for load in args.loads
    ]
    with args.out.open("a") as file:
        for cell in track(cells, description="draws", console=Console(stderr=True)):
            arms = [
                arm_of(name, cell.lengths, changed)
                for name, changed in {WHOLE: {}, **chosen}.items()
                if key(cell, name) not in done
            ]
            for line in play(Draw(cell, tuple(arms), bound=False)):
                lines.append(line)
                file.write(json.dumps(line) + "\n")
            file.flush()
    rows = figures(lines, chosen)
    workloads = rows[0]["by_workload"] if rows else {}
    columns = ["variant", "attainment", "points to all parts (95 %)", *workloads, "mean e2e s"]
    print("\n".join(table(columns, [shown(row) for row in rows])), end="\n\n")
    finish("ablation", rows)


if __name__ == "__main__":
    main()
