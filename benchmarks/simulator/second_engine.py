"""Stock vLLM and stock LMDeploy, each with its own order and with ours, where stock drowns.

    make lmdeploy
    python -m benchmarks.simulator.second_engine --out second_engine.jsonl
    python -m benchmarks.simulator.second_engine --out second_engine.jsonl --summary

On every shape the least of ``--loads`` is taken at which arrival order meets less than ``--below``
on the simulated vLLM; all arms then get the same requests there. vLLM is the simulator's, LMDeploy
its own engine loop and scheduler on the same step times (``scheduler/lmdeploy_adapter``). Each run
is a line of the file and is played once. Ratios are of means over seeds, their intervals Student's
t at 95 % of the jackknife over seeds.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
from scipy.special import stdtrit

from benchmarks.common import finish, note, plain_parser, print_table, processes
from benchmarks.simulator.cells import predictor_of
from benchmarks.simulator.grid import Bar, code_version, read_lines
from benchmarks.simulator.shapes import KEPT_ASIDE, Run, build, figures, requests_of
from lengthwise.data.arena.workloads import arena_workload
from lengthwise.data.max_wait import MAX_WAIT_S
from lengthwise.scheduler.lmdeploy_adapter.lmdeploy_environment import environment_python
from lengthwise.scheduler.lmdeploy_adapter.lmdeploy_player import ALONE, is_lmdeploy
from lengthwise.scheduler.profile import load_profile, profile_names
from lengthwise.training.bench.runners.simulator_runner import Play
from lengthwise.training.bench.runners.simulator_runner import play as play_one
from lengthwise.training.workspace import Workspace

LOADS = (1.2, 1.6, 2.0, 2.5, 3.0, 4.0, 6.0)
STOCK = ("fcfs", ALONE)

Line = dict[str, Any]


def with_order(stock: str, policy: str) -> str:
    """The arm of the same engine under a policy's order."""
    return f"{ALONE}+{policy}" if is_lmdeploy(stock) else policy


def play(run: Run) -> Line:
    """A line of the file."""
    workload, profile = build(run)
    began = time.process_time()
    result = play_one(Play(workload, profile, run.policy, (), run.seed, None, MAX_WAIT_S))
    classes = sorted({request.slo.slo_class for request in requests_of(run)})
    cpu_s = time.process_time() - began
    return {"key": run.key, **asdict(run), "cpu_s": cpu_s, **figures(workload, result, classes)}


def playable(shape: str) -> bool:
    """Whether LMDeploy's arm can play it."""
    return not shape.startswith(KEPT_ASIDE) and load_profile(shape).speculation is None


class File:
    """The finished runs; what is asked for and not there is played by the pool and added."""

    def __init__(self, path: Path, pool: Any | None) -> None:
        self.path, self.pool = path, pool
        self.lines = {line["key"]: line for line in read_lines(path)}

    def of(self, runs: Sequence[Run]) -> list[Line]:
        """The runs' lines, in their order; without a pool those that are there."""
        todo = [run for run in runs if run.key not in self.lines]
        if todo and self.pool is not None:
            version, bar = code_version(), Bar(len(todo))
            with self.path.open("a") as file, bar.bars:
                for line in self.pool.imap_unordered(play, todo):
                    self.lines[line["key"]] = line
                    file.write(json.dumps(line | {"code": version}) + "\n")
                    file.flush()
                    bar.advance(1)
        return [self.lines[run.key] for run in runs if run.key in self.lines]


def drowning(shape: str, args: argparse.Namespace, file: File) -> float | None:
    """The least load at which arrival order meets less than ``--below``; None: at none."""
    for load in args.loads:
        runs = list(
            seeds_of(Run(shape, args.workload, load, "any", 0, args.requests, "fcfs"), args)
        )
        found = [line["attainment"] for line in file.of(runs)]
        if len(found) == len(runs) and np.mean(found) < args.below:
            return float(load)
    return None


def cells_of(
    args: argparse.Namespace, file: File
) -> dict[str, tuple[float, dict[str, list[Line]]]]:
    """Each shape's load and the four arms' lines there; a shape without all of them is left out."""
    cells = {}
    for shape in args.shapes:
        load = drowning(shape, args, file)
        if load is None:
            note(f"{shape}: no load at which arrival order meets less than {args.below:.0%}")
            continue
        row = {}
        for arm in (arm for stock in STOCK for arm in (stock, with_order(stock, args.policy))):
            known = "any" if arm in STOCK else args.lengths
            first = Run(shape, args.workload, load, known, 0, args.requests, arm)
            row[arm] = file.of(list(seeds_of(first, args)))
        if all(len(lines) == args.seeds for lines in row.values()):
            cells[shape] = (load, row)
    return cells


def seeds_of(run: Run, args: argparse.Namespace) -> Iterator[Run]:
    """The run with each seed."""
    for seed in range(args.first_seed, args.first_seed + args.seeds):
        yield replace(run, seed=seed)


def ratio(upper: Sequence[float], lower: Sequence[float]) -> tuple[float, float]:
    """Ratio of the means of paired values, and half its 95 % interval (nan for one pair)."""
    top, bottom = np.asarray(upper, dtype=float), np.asarray(lower, dtype=float)
    whole, n = top.mean() / bottom.mean(), len(top)
    if n < 2:
        return float(whole), float("nan")
    left_out = (top.sum() - top) / (bottom.sum() - bottom)
    pseudo = n * whole - (n - 1) * left_out
    half = stdtrit(n - 1, 0.975) * pseudo.std(ddof=1) / np.sqrt(n)
    return float(whole), float(half)


def tables(cells: dict[str, tuple[float, dict[str, list[Line]]]], policy: str) -> dict[str, Any]:
    """Print what the four arms attained and how long they took; the same as plain values."""
    arms = [arm for stock in STOCK for arm in (stock, with_order(stock, policy))]
    named = {"fcfs": "vLLM", policy: f"vLLM + {policy}", ALONE: "LMDeploy"}
    named[with_order(ALONE, policy)] = f"LMDeploy + {policy}"

    def column(row: dict[str, list[Line]], arm: str, figure: str) -> list[float]:
        return [line[figure] for line in row[arm]]

    document: dict[str, Any] = {}
    for figure, title in (("attainment", "% met"), ("mean_e2e_s", "mean e2e, s")):
        scale = 100 if figure == "attainment" else 1
        digits = 1 if figure == "attainment" else 2
        rows = []
        for shape, (load, row) in cells.items():
            means = {arm: float(np.mean(column(row, arm, figure))) for arm in arms}
            against = {
                (ours, stock): ratio(column(row, ours, figure), column(row, stock, figure))
                for ours in arms[1::2]
                for stock in STOCK
            }
            shown = [f"{mean:.2f} ± {half:.2f}" for mean, half in against.values()]
            values = [f"{scale * means[arm]:.{digits}f}" for arm in arms]
            rows.append([shape, f"{load:g}", *values, *shown])
            cell = document.setdefault(shape, {"load": load})
            cell[figure] = means
            cell[f"{figure}_ratios"] = {f"{a} / {b}": pair for (a, b), pair in against.items()}
        pairs = [f"{named[ours]} / {named[stock]}" for ours in arms[1::2] for stock in STOCK]
        print(f"{title}\n")
        print_table(["shape", "load", *(named[arm] for arm in arms), *pairs], rows)
    rows = []
    for shape, (load, row) in cells.items():
        speed = ratio(column(row, ALONE, "output_tokens_per_s"),
                      column(row, "fcfs", "output_tokens_per_s"))  # fmt: skip
        own = [float(np.mean(column(row, arm, "mean_ttft_s"))) for arm in arms]
        tpot = [1e3 * float(np.mean(column(row, arm, "mean_tpot_s"))) for arm in arms]
        rows.append([shape, f"{load:g}", f"{speed[0]:.2f} ± {speed[1]:.2f}",
                     *(f"{a:.1f} / {b:.0f}" for a, b in zip(own, tpot, strict=True))])  # fmt: skip
        document[shape]["tokens_per_s_ratio"] = speed
    print("Mean TTFT (s) / TPOT (ms); tokens/s of stock LMDeploy as a multiple of stock vLLM's\n")
    print_table(["shape", "load", "tokens/s", *(named[arm] for arm in arms)], rows)
    return document


def main() -> None:
    """Play what is missing, then print the tables."""
    shapes = [name for name in profile_names() if playable(name)]
    parser = plain_parser(__doc__)
    parser.add_argument("--out", type=Path, required=True, help="finished runs, added to")
    parser.add_argument("--shapes", nargs="+", default=shapes, help="profiles: names or files")
    parser.add_argument("--workload", default="paper")
    parser.add_argument("--loads", nargs="+", type=float, default=list(LOADS))
    parser.add_argument("--below", type=float, default=0.2)
    parser.add_argument("--lengths", default="learned")
    parser.add_argument("--policy", default="sa")
    parser.add_argument("--requests", type=int, default=1000)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--summary", action="store_true", help="only what is in the file")
    args = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"  # of the workers: a core each
    if not args.summary:
        environment_python(Workspace.current().cache)  # says now what is missing
    if args.lengths == "learned":
        predictor_of(arena_workload(args.workload).default_source)  # trained once
    with nullcontext() if args.summary else processes(args.jobs) as pool:
        cells = cells_of(args, File(args.out, pool))
    finish("second_engine", tables(cells, args.policy))


if __name__ == "__main__":
    main()
