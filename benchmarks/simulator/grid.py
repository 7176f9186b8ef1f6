"""The arena in the simulator: every policy in every cell, paired, resumable.

    python -m benchmarks.simulator.grid --out grid.jsonl --jobs 2
    python -m benchmarks.simulator.grid --out grid.jsonl --summary

Every draw of the requests is one comparison, as `lengthwise simulate` makes it; an arm of it is a
line of the file. Arms already there are skipped, and ``--again sa`` plays a policy anew after its
code changed. ``sa`` searches a fixed number of steps a plan and ``sa-paper`` about as many, so
that results do not depend on the machine; the rules plan as often as their cost allows.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from benchmarks.common import finish, plain_parser, processes
from benchmarks.simulator.cells import (
    ARRIVALS,
    LENGTHS,
    LOADS,
    WORKLOADS,
    Cell,
    load_one_rps,
    predictor_of,
    source_of,
)
from benchmarks.simulator.grid_tables import BLIND, RULES, by_cell, mean_of, summary
from lengthwise.data.arena.workloads import arena_workload
from lengthwise.data.workload import WorkloadRequest
from lengthwise.scheduler.profile import load_profile
from lengthwise.training.bench.comparison.arms import Arm
from lengthwise.training.bench.comparison.bench_settings import BenchSettings
from lengthwise.training.bench.comparison.compare import compare
from lengthwise.training.bench.comparison.workload_source import length_rows
from lengthwise.training.bench.runners.simulator_runner import KnownLengths, SimulatorRunner

SEARCH_STEPS = 80
PAPER_STEPS = 2  # at each of 63 temperatures
SOURCES = Path(__file__).parents[2] / "scheduler"

BOUND = "bound"
KEPT = ("attainment", "mean_e2e_s", "p99_e2e_s", "mean_ttft_s", "g_per_s", "output_tokens_per_s",
        "max_wait_s", "plan_ms_p50", "plan_ms_p99")  # fmt: skip


@dataclass(frozen=True, slots=True)
class Draw:
    """One draw of the requests, and the arms to be played on it; `bound` asks for the bound too."""

    cell: Cell  # with the first kind of lengths
    arms: tuple[Arm, ...]
    bound: bool


def key(cell: Cell, policy: str) -> str:
    """What tells a line from all others in the file."""
    return json.dumps([*asdict(cell).values(), policy])


def code_version() -> str:
    """Names the code and profiles the policies and the simulator are made of."""
    digest = hashlib.sha256()
    for path in sorted([*SOURCES.rglob("*.py"), *SOURCES.rglob("*.json")]):
        if "vllm_adapter" not in path.parts:
            digest.update(path.read_bytes())
    return digest.hexdigest()[:10]


def wanted(args: argparse.Namespace, done: set[str]) -> Iterator[Draw]:
    """What is left to do, seed by seed; who knows nothing of lengths is played once."""
    for seed in range(args.seeds):
        for workload in args.workloads:
            for arrivals in args.arrivals:
                for load in args.loads:
                    cells = [
                        Cell(workload, load, arrivals, lengths, seed, args.requests, args.profile)
                        for lengths in args.lengths
                    ]
                    arms = [
                        Arm(policy, cell.lengths)
                        for i, cell in enumerate(cells)
                        for policy in args.policies
                        if (i == 0 or policy not in BLIND) and key(cell, policy) not in done
                    ]
                    bound = key(cells[0], BOUND) not in done
                    if arms or bound:
                        yield Draw(cells[0], tuple(arms), bound)


def known_lengths(source: str, kinds: set[str]) -> KnownLengths:
    """What the predictor says of a draw is asked once, not by every arm."""
    predictor = predictor_of(source) if "learned" in kinds else None
    rows: dict[str, tuple[np.ndarray, np.ndarray]] = {}

    def known(arm: Arm, requests: Sequence[WorkloadRequest]) -> tuple[np.ndarray, np.ndarray]:
        if arm.lengths not in rows:
            asked = predictor if arm.lengths == "learned" else None
            rows[arm.lengths] = length_rows(requests, arm.lengths, asked)
        return rows[arm.lengths]

    return known


def play(draw: Draw) -> list[dict[str, Any]]:
    """A line an arm, and one for the bound."""
    cell = draw.cell
    source = source_of(cell.workload, cell.arrivals, cell.profile)
    known = known_lengths(source.source_label, {arm.lengths for arm in draw.arms})
    runner = SimulatorRunner(load_profile(cell.profile), known, seed=cell.seed)
    settings = BenchSettings(
        draw.arms, cell.workload, arrivals=cell.arrivals, load=cell.load, requests=cell.requests,
        repeats=1, seed=cell.seed, profile=cell.profile,
    )  # fmt: skip
    load_one = load_one_rps(cell.workload, cell.profile)
    arms = []
    if draw.arms:
        result = compare(source, settings, runner, capacity_rps=load_one).result
        arms = [
            (arm.lengths, arm.name or arm.policy, {name: getattr(arm, name) for name in KEPT})
            for arm in result.arms
        ]
    if draw.bound:
        requests = source.draw(cell.requests, cell.load * load_one, cell.seed)
        arms.append((cell.lengths, BOUND, {"attainment": runner.bound(requests)}))
    lines = []
    for lengths, policy, figures in arms:
        place = replace(cell, lengths=lengths)
        line = {"key": key(place, policy), **asdict(place), "policy": policy, **figures}
        lines.append(line)
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
        columns = (TextColumn("draws"), BarColumn(), MofNCompleteColumn())
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
            say = f"{self.done} of {self.total} draws, {spent:.0f} s, about {left:.0f} s to go"
            print(say, file=sys.stderr, flush=True)


def main() -> None:
    parser = plain_parser(__doc__)
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
        todo = list(wanted(args, {line["key"] for line in lines}))
        if "learned" in args.lengths:
            for workload in args.workloads:  # trained once, before the workers need it
                predictor_of(arena_workload(workload).default_source)
        os.environ["OMP_NUM_THREADS"] = "1"  # of the workers: a core each
        bar = Bar(len(todo))
        with processes(args.jobs) as pool, args.out.open("a") as file, bar.bars:
            for found in pool.imap_unordered(play, todo):
                for line in found:
                    lines.append(line | {"code": version})
                    file.write(json.dumps(lines[-1]) + "\n")
                file.flush()
                bar.advance(1)
    print(summary(lines, version), end="\n\n")
    finish("grid", {"runs": len(lines), "code": version, "attainment": attainment(lines)})


def attainment(lines: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Mean over seeds of every cell and policy."""
    return [
        dict(zip(("lengths", "workload", "arrivals", "load"), setting, strict=True))
        | {"policies": {policy: mean_of(runs) for policy, runs in row.items()}}
        for setting, row in by_cell(lines).items()
    ]


if __name__ == "__main__":
    main()
