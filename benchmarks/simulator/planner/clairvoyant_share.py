"""How near ``sa`` comes to what a search attains that knows the whole run beforehand.

    python -m benchmarks.simulator.planner.clairvoyant_share --out clairvoyant.jsonl --seconds 90

In every cell, true lengths: the linear relaxation, which no schedule can exceed; every rule;
``sa``; ``sa`` told the true arrivals and with ``--iterations`` steps of search a plan; and the
whole run annealed for ``--seconds`` of processor time as one order under one pair of limits, from
the orders in which the others admitted, by its own rollout and as the simulator plays it. The
best of all that the simulator played is the best known. Finished cells in ``--out`` are not
played again.
"""

from __future__ import annotations

import json
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.common import finish, note, plain_parser, print_table
from benchmarks.simulator.grid import code_version, read_lines
from benchmarks.simulator.grid_tables import RULES
from benchmarks.simulator.shapes import Run, build, policy_of
from lengthwise.data.arrays import IntArray
from lengthwise.scheduler.policies.policy import Policy
from lengthwise.scheduler.profile import EngineProfile
from lengthwise.scheduler.simulator.bound import attainment_bound
from lengthwise.scheduler.simulator.clairvoyant import (
    FixedOrder,
    KnownArrivals,
    Progress,
    clairvoyant,
)
from lengthwise.scheduler.simulator.run import simulate
from lengthwise.scheduler.simulator.sim_workload import SimResult, SimWorkload

SHAPES = (
    "shape-many-slots", "shape-little-memory", "shape-slow-steps", "shape-prefix-cache",
    "shape-long-context", "shape-speculation",
)  # fmt: skip
UNBOUNDED_S = 1e9  # of waiting: a search that knows all owes nobody a turn


def by_time(seconds: float) -> Progress:
    """A search of so many seconds of processor time from its first step on."""
    began: list[float] = []

    def progress(done: int) -> float:
        began[:] = began or [time.process_time()]
        return (time.process_time() - began[0]) / seconds

    return progress


def admission_order(result: SimResult) -> IntArray:
    """The rows in the order in which they were first admitted."""
    return np.argsort(result.admitted_s, kind="stable").astype(np.int64)


def played(run: Run, seconds: float, iterations: int) -> dict[str, Any]:
    """One cell's figures: attained shares, and what the searches took."""
    workload, profile = build(run)
    orders = [np.arange(len(workload), dtype=np.int64)]

    def attained(policy: Policy, max_wait_s: float = 120.0) -> float:
        result = simulate(workload, policy, profile, max_wait_s=max_wait_s)
        orders.append(admission_order(result))
        return float(result.met(workload).mean())

    line: dict[str, Any] = asdict(run) | {"seconds": seconds, "iterations": iterations}
    line["bound"] = attainment_bound(workload, profile)
    line["rules"] = {rule: attained(policy_of(rule, run.seed)) for rule in RULES}
    line["sa"] = attained(policy_of("sa", run.seed))
    began = time.process_time()
    line["sa_told"] = attained(told(workload, profile, run.seed, iterations), UNBOUNDED_S)
    line["sa_told_s"] = time.process_time() - began
    rng = np.random.default_rng(run.seed)
    found = clairvoyant(workload, profile, orders, by_time(seconds), rng)
    line["whole_start"], line["whole_rollout"] = found.start, found.attainment
    line["whole_steps"] = found.steps
    line["whole"] = attained(FixedOrder(workload, found), UNBOUNDED_S)
    return line


def told(workload: SimWorkload, profile: EngineProfile, seed: int, iterations: int) -> Policy:
    """``sa`` that knows the arrivals and searches long."""
    policy: Any = policy_of(f"sa:iterations={iterations}", seed)
    policy.forecast = KnownArrivals(workload, profile)
    return policy  # type: ignore[no-any-return]


def best_known(line: dict[str, Any]) -> float:
    """The best that was played."""
    return max(*line["rules"].values(), line["sa"], line["sa_told"], line["whole"])


def row_of(line: dict[str, Any]) -> list[object]:
    """A cell's row of the table."""
    rule = max(line["rules"], key=line["rules"].get)
    shares = [line["bound"], line["rules"]["fcfs"]]
    after = [line["sa_told"], line["whole_rollout"], line["whole"], best_known(line)]
    return [
        line["shape"].removeprefix("shape-"),
        line["workload"],
        f"{line['load']:g}",
        *(f"{100 * share:.1f}" for share in shares),
        f"{100 * line['rules'][rule]:.1f} ({rule})",
        f"{100 * line['sa']:.1f}",
        *(f"{100 * share:.1f}" for share in after),
        f"{line['sa'] / max(best_known(line), 1e-9):.2f}",
    ]


HEAD = [
    "shape", "workload", "load", "bound", "arrival order", "best rule", "sa",
    "sa told, searching long", "whole run, by its rollout", "as played", "best known",
    "sa's share of it",
]  # fmt: skip


def main() -> None:
    """Play what is left, then the table, and the figures as JSON."""
    parser = plain_parser(__doc__)
    parser.add_argument("--out", type=Path, required=True, help="finished cells, added to")
    parser.add_argument("--shapes", nargs="+", default=list(SHAPES))
    parser.add_argument("--workloads", nargs="+", default=["paper", "mixed"])
    parser.add_argument("--loads", nargs="+", type=float, default=[1.2, 1.6])
    parser.add_argument("--requests", type=int, default=400)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--seconds", type=float, default=90.0)
    parser.add_argument("--iterations", type=int, default=480)
    parser.add_argument("--table", action="store_true", help="only the table of what is there")
    args = parser.parse_args()
    lines: list[dict[str, Any]] = read_lines(args.out)
    done = {line["key"] for line in lines}
    runs = [
        Run(shape, workload, load, "oracle", args.seed, args.requests, "")
        for shape in args.shapes
        for workload in args.workloads
        for load in args.loads
    ]
    for run in runs if not args.table else []:
        if run.key in done:
            continue
        line = {
            "key": run.key,
            "code": code_version(),
            **played(run, args.seconds, args.iterations),
        }
        lines.append(line)
        with args.out.open("a") as file:
            print(json.dumps(line), file=file)
        note(" ".join(map(str, row_of(line))))
    print_table(HEAD, [row_of(line) for line in lines])
    finish("clairvoyant_share", lines)


if __name__ == "__main__":
    main()
