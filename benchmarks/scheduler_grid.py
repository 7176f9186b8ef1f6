"""The arena in the simulator: every policy in every cell, paired, resumable.

    python benchmarks/scheduler_grid.py --out grid.jsonl --seeds 5 --jobs 1
    python benchmarks/scheduler_grid.py --out grid.jsonl --summary

Each finished run is a line of the file; runs already there are skipped. ``sa`` searches a fixed
number of steps a plan, so that results do not depend on the machine.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import sys
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

import numpy as np
from rich.progress import track

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.scheduler_cells import (
    ARRIVALS,
    LENGTHS,
    LOADS,
    WORKLOADS,
    Cell,
    build,
    measures,
)
from scheduler.bound import attainment_bound
from scheduler.policies import make_policy
from scheduler.simulator.run import simulate

HEURISTICS = ("fcfs", "priority", "sjf", "edf", "llf", "feasible-sjf", "feasible-edf", "hrrn")
RIVALS = ("feasible-sjf", "feasible-edf")
SEARCH_STEPS = 80
BOUND_SEEDS = 2

Run = tuple[Cell, str]


def key(cell: Cell, policy: str) -> str:
    return json.dumps([*asdict(cell).values(), policy])


def runs(args: argparse.Namespace) -> Iterator[Run]:
    for seed in range(args.seeds):
        for lengths in args.lengths:
            for workload in args.workloads:
                for arrivals in args.arrivals:
                    for load in args.loads:
                        cell = Cell(
                            workload, load, arrivals, lengths, seed, args.requests, args.profile
                        )
                        for policy in args.policies:
                            # arrival order and the classes' own know nothing of lengths
                            if policy in ("fcfs", "priority", "edf") and lengths != args.lengths[0]:
                                continue
                            yield cell, policy
                        if lengths == args.lengths[0] and seed < BOUND_SEEDS:
                            yield cell, "bound"


def play(run: Run) -> dict[str, object]:
    cell, name = run
    workload, profile = build(cell)
    if name == "bound":
        figures = {"attainment": attainment_bound(workload, profile)}
    else:
        settings = {"iterations": SEARCH_STEPS} if name == "sa" else {}
        policy = make_policy(name, seed=cell.seed, **settings)
        figures = measures(workload, simulate(workload, policy, profile))
    return {"key": key(cell, name), **asdict(cell), "policy": name, **figures}


def interval(differences: list[float]) -> tuple[float, float]:
    """Mean and half the 95 % interval of paired differences."""
    from scipy.stats import t

    values = np.array(differences)
    if len(values) < 2:
        return float(values.mean()), float("nan")
    half = t.ppf(0.975, len(values) - 1) * values.std(ddof=1) / np.sqrt(len(values))
    return float(values.mean()), float(half)


def summary(lines: list[dict]) -> str:
    """Markdown: attainment by cell, and the paired difference of ``sa`` to the best rule."""
    table: dict[tuple, dict[str, dict[int, float]]] = defaultdict(lambda: defaultdict(dict))
    blind: dict[tuple, dict[str, dict[int, float]]] = defaultdict(lambda: defaultdict(dict))
    for line in lines:
        setting = (line["workload"], line["arrivals"], line["load"])
        where = blind[setting] if line["policy"] in ("fcfs", "edf", "priority", "bound") else None
        target = table[(line["lengths"], *setting)] if where is None else where
        target[line["policy"]][line["seed"]] = line["attainment"]
    names = ["fcfs", "edf", "sjf", "llf", "hrrn", *RIVALS, "sa-paper", "sa"]
    present = [n for n in names if any(n in row for row in [*table.values(), *blind.values()])]
    out = [
        "| lengths | workload | arrivals | load | "
        + " | ".join(present)
        + " | sa − best rule (95 %) | bound |",
        "|" + "---|" * (len(present) + 6),
    ]
    sums: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for setting in sorted(table):
        row = {**table[setting], **blind[setting[1:]]}
        if "sa" not in row:
            continue
        seeds = sorted(set(row["sa"]).intersection(*(row[r] for r in RIVALS if r in row)))
        mean = {n: float(np.mean(list(row[n].values()))) for n in present if n in row}
        rules = [n for n in mean if n not in ("sa", "sa-paper")]
        best = max(rules, key=lambda n: mean[n])
        shared = [s for s in seeds if s in row[best]]
        gain, half = interval([row["sa"][s] - row[best][s] for s in shared])
        bound = float(np.mean(list(row["bound"].values()))) if "bound" in row else float("nan")
        cells = [f"{mean[n]:.3f}" if n in mean else "" for n in present]
        out.append(
            f"| {' | '.join(map(str, setting))} | {' | '.join(cells)} "
            f"| {100 * gain:+.1f} ± {100 * half:.1f} ({best}) | {bound:.3f} |"
        )
        if setting[3] >= 0.9:
            for n, value in mean.items():
                sums[setting[0]][n].append(value)
            sums[setting[0]]["bound"].append(bound)
    out += ["", "Means over the cells at load 0.9 and above:", ""]
    out += ["| lengths | " + " | ".join(present) + " | bound | share of the gap closed |"]
    out += ["|" + "---|" * (len(present) + 3)]
    for lengths, columns in sums.items():
        means = {n: float(np.mean(v)) for n, v in columns.items()}
        best = max(
            (n for n in means if n not in ("sa", "sa-paper", "bound")), key=means.__getitem__
        )
        closed = (means["sa"] - means[best]) / max(means["bound"] - means[best], 1e-9)
        cells = [f"{means[n]:.3f}" if n in means else "" for n in present]
        end = f"{means['bound']:.3f} | {closed:.2f} (over {best})"
        out.append(f"| {lengths} | {' | '.join(cells)} | {end} |")
    return "\n".join(out)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--summary", action="store_true", help="print the tables and stop")
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--requests", type=int, default=2000)
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--profile", default="tiny-cpu")
    parser.add_argument("--workloads", nargs="+", default=list(WORKLOADS))
    parser.add_argument("--arrivals", nargs="+", default=list(ARRIVALS))
    parser.add_argument("--loads", nargs="+", type=float, default=list(LOADS))
    parser.add_argument("--lengths", nargs="+", default=list(LENGTHS))
    parser.add_argument("--policies", nargs="+", default=[*HEURISTICS, "sa"])
    args = parser.parse_args()

    args.out.touch()
    lines = [json.loads(line) for line in args.out.read_text().splitlines()]
    if not args.summary:
        done = {line["key"] for line in lines}
        todo = [run for run in runs(args) if key(*run) not in done]
        with multiprocessing.Pool(args.jobs) as pool, args.out.open("a") as file:
            results = pool.imap_unordered(play, todo)
            for line in track(results, total=len(todo), description="runs"):
                file.write(json.dumps(line) + "\n")
                file.flush()
                lines.append(line)
    print(summary(lines))


if __name__ == "__main__":
    main()
