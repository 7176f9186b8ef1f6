"""The arena in the simulator: every policy in every cell, paired, resumable.

    python -m benchmarks.simulator.grid --out grid.jsonl --jobs 2
    python -m benchmarks.simulator.grid --out grid.jsonl --summary > summary.md

Each finished run is a line of the file; runs already there are skipped, and ``--again sa`` plays
a policy anew after its code changed. ``sa`` searches a fixed number of steps a plan and
``sa-paper`` about as many, so that results do not depend on the machine; the rules plan as often
as their cost allows, ten times as often.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import multiprocessing
import os
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from benchmarks.simulator.cells import (
    ARRIVALS,
    LENGTHS,
    LOADS,
    WORKLOADS,
    Cell,
    build,
    measures,
    predictor_of,
)
from benchmarks.simulator.grid_tables import BLIND, RULES, summary
from lengthwise.data.arena.workloads import arena_workload
from lengthwise.scheduler.policies.base import Policy
from lengthwise.scheduler.policies.make import make_policy
from lengthwise.scheduler.simulator.bound import attainment_bound
from lengthwise.scheduler.simulator.run import simulate

SEARCH_STEPS = 80
PAPER_STEPS = 2  # at each of 63 temperatures
SOURCES = Path(__file__).parents[2] / "scheduler"

Run = tuple[Cell, str]


def key(cell: Cell, policy: str) -> str:
    return json.dumps([*asdict(cell).values(), policy])


def code_version() -> str:
    """Names the code and profiles the policies and the simulator are made of."""
    digest = hashlib.sha256()
    for path in sorted([*SOURCES.rglob("*.py"), *SOURCES.rglob("*.json")]):
        if "vllm_adapter" not in path.parts:
            digest.update(path.read_bytes())
    return digest.hexdigest()[:10]


def chunks(args: argparse.Namespace, done: set[str]) -> Iterator[list[Run]]:
    """What is left to do, cut into the runs that share requests and arrivals, seed by seed."""
    for seed in range(args.seeds):
        for workload in args.workloads:
            for arrivals in args.arrivals:
                for load in args.loads:
                    left: list[Run] = []
                    for lengths in args.lengths:
                        cell = Cell(
                            workload, load, arrivals, lengths, seed, args.requests, args.profile
                        )
                        first = lengths == args.lengths[0]
                        names = [n for n in (*args.policies, "bound") if first or n not in BLIND]
                        left += [(cell, n) for n in names if key(cell, n) not in done]
                    if left:
                        yield left


def policy_of(name: str, seed: int) -> Policy:
    """The policy with a fixed amount of search."""
    if name == "sa":
        return make_policy(name, seed=seed, iterations=SEARCH_STEPS)
    if name == "sa-paper":
        policy = make_policy(name, budget_s=None, seed=seed, steps_per_temperature=PAPER_STEPS)
        policy.nominal_s = make_policy("sa").nominal_s  # to plan as often
        return policy
    return make_policy(name)


def play(runs: list[Run]) -> list[dict[str, object]]:
    """A line a run."""
    lines = []
    for cell, name in runs:
        workload, profile = build(cell)
        began = time.process_time()
        if name == "bound":
            figures = {"attainment": attainment_bound(workload, profile)}
        else:
            figures = measures(workload, simulate(workload, policy_of(name, cell.seed), profile))
        figures["cpu_s"] = time.process_time() - began
        lines.append({"key": key(cell, name), **asdict(cell), "policy": name, **figures})
    return lines


def read_lines(path: Path) -> list[dict[str, object]]:
    """The finished runs; a last line that was cut off is taken out of the file."""
    path.touch()
    text = path.read_text()
    whole = text[: text.rfind("\n") + 1]
    if whole != text:
        path.write_text(whole)
    return [json.loads(line) for line in whole.splitlines()]


class Bar:
    """A progress bar with the time left; on no terminal a line every twentieth of the way."""

    def __init__(self, total: int) -> None:
        self.total, self.done, self.began = total, 0, time.monotonic()
        self.terminal = sys.stderr.isatty()
        columns = (TextColumn("runs"), BarColumn(), MofNCompleteColumn())
        self.bars = Progress(
            *columns,
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            console=Console(stderr=True),
            disable=not self.terminal,
        )
        self.task = self.bars.add_task("", total=total)

    def advance(self, count: int) -> None:
        before, self.done = self.done, self.done + count
        self.bars.advance(self.task, count)
        if not self.terminal and 20 * self.done // self.total > 20 * before // self.total:
            spent = time.monotonic() - self.began
            left = spent / self.done * (self.total - self.done)
            say = f"{self.done} of {self.total} runs, {spent:.0f} s, about {left:.0f} s to go"
            print(say, file=sys.stderr, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--summary", action="store_true", help="print the tables and stop")
    parser.add_argument("--again", nargs="+", default=[], help="policies whose runs are redone")
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--requests", type=int, default=1500)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--profile", default="tiny-cpu")
    parser.add_argument("--workloads", nargs="+", default=list(WORKLOADS))
    parser.add_argument("--arrivals", nargs="+", default=list(ARRIVALS))
    parser.add_argument("--loads", nargs="+", type=float, default=list(LOADS))
    parser.add_argument("--lengths", nargs="+", default=list(LENGTHS))
    parser.add_argument("--policies", nargs="+", default=[*RULES, "sa-paper", "sa"])
    args = parser.parse_args()

    lines, version = read_lines(args.out), code_version()
    if args.again and not args.summary:
        lines = [line for line in lines if line["policy"] not in args.again]
        args.out.write_text("".join(json.dumps(line) + "\n" for line in lines))
    if not args.summary:
        todo = list(chunks(args, {line["key"] for line in lines}))
        if "learned" in args.lengths:
            for workload in args.workloads:  # trained once, before the workers need it
                predictor_of(arena_workload(workload).default_source)
        os.environ["OMP_NUM_THREADS"] = "1"  # of the workers: a core each
        bar = Bar(sum(map(len, todo)))
        # not forked: the predictor's library holds threads that a fork would lose
        context = multiprocessing.get_context("spawn")
        with context.Pool(args.jobs) as pool, args.out.open("a") as file, bar.bars:
            for found in pool.imap_unordered(play, todo):
                for line in found:
                    lines.append(line | {"code": version})
                    file.write(json.dumps(lines[-1]) + "\n")
                file.flush()
                bar.advance(len(found))
    print(summary(lines, version))


if __name__ == "__main__":
    main()
