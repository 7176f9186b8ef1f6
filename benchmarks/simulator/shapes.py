"""Engines of every shape in the simulator: every policy in every cell, paired, resumable.

    python -m benchmarks.simulator.shapes --out shapes.jsonl
    python -m benchmarks.simulator.shapes --out shapes.jsonl --again sa --policies fcfs sa
    python -m benchmarks.simulator.shapes_table shapes.jsonl > shapes.md

A cell is a shape, a workload, a load and what is known of the lengths; each run is a line of the
file, keyed by cell, seed and policy, and is played once: after a change of the planner only its
own runs are named with ``--again``. A policy may have parameters: ``sa:iterations=0``. ``sa``
searches a fixed number of steps a plan, so that results do not depend on the machine. Shapes
called ``holdout-*`` are kept aside for final judgement and played only when named.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.simulator.cells import predictor_of
from benchmarks.simulator.grid import PAPER_STEPS, Bar, code_version, read_lines
from benchmarks.simulator.grid_tables import BLIND, RULES
from lengthwise.data.arena.workloads import ARENA, arena_workload
from lengthwise.data.workload import WorkloadRequest
from lengthwise.scheduler.policies.make import make_policy
from lengthwise.scheduler.policies.policy import Policy
from lengthwise.scheduler.profile import EngineProfile, load_profile, profile_names
from lengthwise.scheduler.simulator.run import simulate
from lengthwise.scheduler.simulator.sim_workload import SimResult, SimWorkload
from lengthwise.training.bench.comparison.workload_source import (
    capacity_rps,
    length_rows,
    open_workload,
    to_sim,
)

LOADS = (0.8, 1.2, 1.6)
LENGTHS = ("oracle", "learned", "class")
ANY_LENGTHS = "any"  # of the runs of policies that know nothing of lengths
KEPT_ASIDE = "holdout-"


@dataclass(frozen=True, slots=True)
class Run:
    """One policy in one cell with one draw of the requests."""

    shape: str
    workload: str
    load: float
    lengths: str
    seed: int
    requests: int
    policy: str

    @property
    def key(self) -> str:
        """What tells it from all others in the file."""
        return json.dumps(list(asdict(self).values()))


def wanted(args: argparse.Namespace, done: set[str]) -> Iterator[list[Run]]:
    """What is left to do, cut into the runs on the same requests and shape, seed by seed.

    Workloads stand outside the shapes: what a predictor says of the requests serves all of them.
    """
    for seed in range(args.first_seed, args.first_seed + args.seeds):
        for workload in args.workloads:
            for shape in args.shapes:
                runs = []
                for load in args.loads:
                    for policy in args.policies:
                        kinds = (ANY_LENGTHS,) if name_of(policy) in BLIND else args.lengths
                        runs += [
                            Run(shape, workload, load, lengths, seed, args.requests, policy)
                            for lengths in kinds
                        ]
                if left := [run for run in runs if run.key not in done]:
                    yield left


def name_of(policy: str) -> str:
    """The policy's name without its parameters."""
    return policy.partition(":")[0]


def policy_of(spec: str, seed: int) -> Policy:
    """A policy from ``NAME`` or ``NAME:key=value,...`` with a fixed amount of search."""
    name, _, given = spec.partition(":")
    params: dict[str, Any] = {}
    for pair in filter(None, given.split(",")):
        key, _, value = pair.partition("=")
        try:
            params[key] = json.loads(value)
        except ValueError:
            params[key] = tuple(filter(None, value.split("+")))  # parts=order+limits
    if name == "sa":
        return make_policy(name, seed=seed, **params)
    if name == "sa-paper":
        params = {"steps_per_temperature": PAPER_STEPS} | params
        policy = make_policy(name, budget_s=None, seed=seed, **params)
        policy.nominal_s = make_policy("sa").nominal_s  # to plan as often
        return policy
    return make_policy(name, **params)


@lru_cache(maxsize=128)
def _capacity_rps(workload: str, shape: str) -> float:
    profile = load_profile(shape)
    return capacity_rps(open_workload(workload, profile=profile), profile)


@lru_cache(maxsize=4)
def _drawn(workload: str, shape: str, seed: int, requests: int) -> list[WorkloadRequest]:
    """The requests at one a second."""
    return open_workload(workload, profile=load_profile(shape)).draw(requests, 1.0, seed)


@lru_cache(maxsize=16)
def _predicted(workload: str, seed: int, requests: int) -> tuple[np.ndarray, np.ndarray]:
    """What the predictor says of the texts, which are the same for every shape."""
    drawn = open_workload(workload).draw(requests, 1.0, seed)
    return length_rows(drawn, "learned", predictor_of(arena_workload(workload).default_source))


def requests_of(run: Run) -> list[WorkloadRequest]:
    """The run's requests at their times."""
    rate_rps = run.load * _capacity_rps(run.workload, run.shape)
    drawn = _drawn(run.workload, run.shape, run.seed, run.requests)
    return [replace(request, arrival_s=request.arrival_s / rate_rps) for request in drawn]


def build(run: Run) -> tuple[SimWorkload, EngineProfile]:
    """The run's requests and engine."""
    requests = requests_of(run)
    if run.lengths == "learned":
        rows, levels = _predicted(run.workload, run.seed, run.requests)
    else:
        known = "none" if run.lengths == ANY_LENGTHS else run.lengths
        rows, levels = length_rows(requests, known, None)
    return to_sim(requests, rows, levels), load_profile(run.shape)


def figures(workload: SimWorkload, result: SimResult, classes: list[str]) -> dict[str, Any]:
    """What is kept of a run; ``classes`` names the workload's class numbers."""
    met = result.met(workload)
    e2e, ttft, tpot = result.e2e_s(workload), result.ttft_s(workload), result.tpot_s()
    plan_ms = 1e3 * np.array(result.plan_s or [0.0])
    return {
        "attainment": float(met.mean()),
        "per_class": {
            name: float(met[workload.class_id == i].mean()) for i, name in enumerate(classes)
        },
        "mean_e2e_s": float(e2e.mean()),
        "p99_e2e_s": float(np.quantile(e2e, 0.99)),
        "mean_ttft_s": float(ttft.mean()),
        "p99_ttft_s": float(np.quantile(ttft, 0.99)),
        "mean_tpot_s": float(tpot.mean()),
        "output_tokens_per_s": float(result.output_tokens.sum() / result.end_s),
        "max_wait_s": float((result.admitted_s - workload.arrival_s).max()),
        "plans": len(result.plan_s),
        "plan_ms_p50": float(np.median(plan_ms)),
        "plan_ms_p99": float(np.quantile(plan_ms, 0.99)),
        "preemptions": result.preemptions,
        "yields": result.yields,
        "prefilled_share": float(result.prefilled_tokens / workload.prompt_tokens.sum()),
    }


def play(runs: list[Run]) -> list[dict[str, Any]]:
    """A line a run."""
    lines = []
    for run in runs:
        workload, profile = build(run)
        drawn = _drawn(run.workload, run.shape, run.seed, run.requests)
        began = time.process_time()
        result = simulate(workload, policy_of(run.policy, run.seed), profile)
        cpu_s = time.process_time() - began
        classes = sorted({r.slo.slo_class for r in drawn})
        lines.append(
            {"key": run.key, **asdict(run), "cpu_s": cpu_s, **figures(workload, result, classes)}
        )
    return lines


def add_cells(parser: argparse.ArgumentParser) -> None:
    """The arguments that say which cells are played, how often, and where the lines go."""
    shapes = [name for name in profile_names() if not name.startswith(KEPT_ASIDE)]
    parser.add_argument("--out", type=Path, required=True, help="finished runs, added to")
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--requests", type=int, default=1500)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--shapes", nargs="+", default=shapes, help="profiles: names or files")
    parser.add_argument("--workloads", nargs="+", default=list(ARENA))
    parser.add_argument("--loads", nargs="+", type=float, default=list(LOADS))
    parser.add_argument("--lengths", nargs="+", default=list(LENGTHS))


def play_missing(args: argparse.Namespace) -> None:
    """Play what of ``args``'s cells and policies is not in its file yet, and add it there."""
    version = code_version()
    todo = list(wanted(args, {line["key"] for line in read_lines(args.out)}))
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
                file.write(json.dumps(line | {"code": version}) + "\n")
            file.flush()
            bar.advance(len(found))


def main() -> None:
    """Play what is left and add it to the file."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    add_cells(parser)
    parser.add_argument("--again", nargs="+", default=[], help="policies whose runs are redone")
    parser.add_argument("--policies", nargs="+", default=[*RULES, "sa"])
    args = parser.parse_args()
    if args.again:
        lines = [line for line in read_lines(args.out) if line["policy"] not in args.again]
        args.out.write_text("".join(json.dumps(line) + "\n" for line in lines))
    play_missing(args)


if __name__ == "__main__":
    main()
