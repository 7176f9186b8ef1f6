"""Engines and workloads drawn at random: whether a rule beats ``sa`` where nobody looked before.

    python -m benchmarks.simulator.drawn_cells --out drawn.jsonl --first-cell 0 --cells 100

A cell is an engine (every coefficient, slots, memory, step budget, prefix cache, speculation, CUDA
graphs), a mix of classes with objectives of every kind or none, prompts plain, with documents or
in sessions, arrivals and a load, all drawn from the cell's number. Each is played with every rule
and ``sa`` on the same requests, ``--draws`` times. Finished cells in ``--out`` are not played
again.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.common import finish, interval, note, plain_parser, print_table, processes
from benchmarks.simulator.cells import predictor_of
from benchmarks.simulator.grid import code_version, read_lines
from benchmarks.simulator.grid_tables import RULES
from benchmarks.simulator.shapes import figures, policy_of
from lengthwise.data.arena.sessions import Sessions, SystemPrompt
from lengthwise.data.arena.workloads import (
    ARRIVALS,
    ArenaClass,
    ArenaWorkload,
    GpuScale,
)
from lengthwise.data.locations import pack_path
from lengthwise.data.slo import Slo
from lengthwise.data.sources.load import load_table
from lengthwise.data.table import PromptTable
from lengthwise.data.workload import WorkloadRequest
from lengthwise.scheduler.problem import Capacity
from lengthwise.scheduler.profile import EngineProfile, PrefixCache, Speculation
from lengthwise.scheduler.simulator.run import simulate
from lengthwise.scheduler.step_time import StepTimeModel
from lengthwise.training.bench.comparison.workload_source import (
    WorkloadSource,
    capacity_rps,
    length_rows,
    to_sim,
)

SOURCES = ("gpt35", "llama31_8b")
KINDS = {"e2e": 0.35, "ttft tpot": 0.3, "ttft": 0.1, "tpot": 0.05, "ttft tpot e2e": 0.1, "": 0.1}
BELOW = 0.5  # points
MAX_WAIT_S = 120.0
Line = dict[str, Any]


@dataclass(frozen=True)
class DrawnCell:
    """An engine and what is asked of it."""

    number: int
    profile: EngineProfile
    workload: ArenaWorkload
    arrivals: str
    load: float

    def __str__(self) -> str:
        capacity, step = self.profile.capacity, self.profile.step_time
        classes = ", ".join(
            f"{c.share:.2f} {c.slo.slo_class} "
            + (" ".join(f"{k}<{v:.2g}" for k, v in _limits(c.slo).items()) or "no objective")
            for c in self.workload.classes
        )
        form = "sessions" if self.workload.sessions else "plain"
        form = "documents" if self.workload.document_tokens else form
        return (
            f"{capacity.max_num_seqs} slots, {capacity.kv_tokens // 1000}k KV, "
            f"{1e3 * step.base_s:.0f} ms base ({1e3 * step.eager_s:.0f} eager), "
            f"{1e6 * step.decode_seq_s:.0f} us a sequence, "
            f"{1e6 * step.prefill_token_s:.0f} us a prompt token"
            f"{', prefix cache' if self.profile.prefix_cache else ''}"
            f"{', speculation' if self.profile.speculation else ''}; {self.workload.source} {form} "
            f"x{self.workload.gpu.prompts:.1f}: {classes}; {self.arrivals} {self.load:.2f}"
        )


def _limits(slo: Slo) -> dict[str, float]:
    given = {"ttft": slo.ttft_s, "tpot": slo.tpot_s, "e2e": slo.e2e_s}
    return {name: limit for name, limit in given.items() if limit is not None}


def _between(rng: np.random.Generator, low: float, high: float) -> float:
    """As likely in any factor of the range as in another."""
    return float(np.exp(rng.uniform(np.log(low), np.log(high))))


def drawn_cell(number: int) -> DrawnCell:
    """The cell of this number."""
    rng = np.random.default_rng([20_251_126, number])
    between = partial(_between, rng)
    profile = _with_graphs(_drawn_engine(number, rng), number)
    source = SOURCES[int(rng.integers(2))]
    have = sorted(_table(source)["slo_class"].unique())
    names = rng.choice(have, int(rng.integers(1, len(have) + 1)), replace=False)
    shares = rng.dirichlet(np.full(len(names), 2.0))
    classes = []
    for name, share in zip(names, shares, strict=True):
        kind = str(rng.choice(list(KINDS), p=list(KINDS.values()))).split()
        slo = Slo(
            ttft_s=between(1.0, 15.0) if "ttft" in kind else None,
            tpot_s=0.05 if "tpot" in kind else None,  # scaled to the engine's full step
            e2e_s=between(3.0, 90.0) if "e2e" in kind else None,
            slo_class=str(name),
        )
        classes.append(ArenaClass(float(share), slo))
    form = rng.choice(["plain", "documents", "sessions"], p=[0.5, 0.2, 0.3])
    least = int(between(500, 4000))
    prompts = tuple(
        SystemPrompt(f"system-{i}", int(between(300, 5000)), 1.0 / i)
        for i in range(1, int(rng.integers(2, 12)))
    )
    sessions = Sessions(prompts, int(between(16, 512)), between(2.0, 20.0), int(between(200, 6000)))
    workload = ArenaWorkload(
        f"drawn-{number}",
        source,
        tuple(classes),
        GpuScale(prompts=between(1.0, 8.0) if form == "plain" else 1.0,
                 full_steps=between(1.1, 3.0)),
        document_tokens=(least, int(least * between(1.5, 8.0))) if form == "documents" else None,
        sessions=sessions if form == "sessions" else None,
    )  # fmt: skip
    arrivals = str(rng.choice(ARRIVALS, p=[0.5, 0.25, 0.25]))
    cell = DrawnCell(number, profile, workload, arrivals, between(0.5, 2.2))
    longest = max(r.prompt_tokens + r.output_tokens for r in requests_of(cell, 600, 1.0, 0))
    capacity = replace(
        profile.capacity, kv_tokens=max(profile.capacity.kv_tokens, int(1.5 * longest))
    )
    return replace(cell, profile=replace(profile, capacity=capacity))


def _drawn_engine(number: int, rng: np.random.Generator) -> EngineProfile:
    between = partial(_between, rng)
    slots = int(between(16, 768))
    accepted = float(rng.uniform(1.2, 3.0))
    return EngineProfile(
        name=f"drawn-{number}",
        step_time=StepTimeModel(
            base_s=between(0.003, 0.04),
            prefill_step_s=between(0.0002, 0.002),
            prefill_token_s=between(8e-6, 3e-4),
            decode_seq_s=between(2e-5, 4e-4),
            context_token_s=between(5e-9, 1.2e-7),
        ),
        capacity=Capacity(
            max_num_seqs=slots,
            kv_tokens=int(slots * 700 * between(0.4, 4.0)),
            max_num_batched_tokens=int(rng.choice([2048, 4096, 8192, 16384])),
        ),
        provenance="drawn at random",
        prefix_cache=PrefixCache() if rng.random() < 0.5 else None,
        speculation=Speculation(accepted) if rng.random() < 0.25 else None,
        scale="gpu",
    )


def _with_graphs(profile: EngineProfile, number: int) -> EngineProfile:
    """Every second engine replays CUDA graphs, so that a step with prompts has a floor."""
    rng = np.random.default_rng([20_251_127, number])
    if rng.random() < 0.5:
        return profile
    eager_s = _between(rng, 0.01, 0.08)
    graph_tokens = float(rng.choice([0, 256, 512]))
    step_time = replace(profile.step_time, eager_s=eager_s, graph_tokens=graph_tokens)
    return replace(profile, step_time=step_time)


@lru_cache(maxsize=2)
def _table(source: str) -> PromptTable:
    return load_table(source if pack_path(source) else "synthetic")


def source_of(cell: DrawnCell, arrivals: str) -> WorkloadSource:
    """Where the cell's requests come from, scaled to its engine."""
    workload = cell.workload
    table = _table(workload.source)
    return WorkloadSource(
        workload.name, workload.source, table, arrivals=arrivals, profile=cell.profile,
        workload=workload,
    )  # fmt: skip


def requests_of(cell: DrawnCell, n: int, rate_rps: float, seed: int) -> list[WorkloadRequest]:
    """``n`` requests of the cell at its kind of arrivals."""
    return source_of(cell, cell.arrivals).draw(n, rate_rps, seed)


def play(
    job: tuple[int, int, str, int, tuple[str, ...]], max_wait_s: float = MAX_WAIT_S
) -> list[Line]:
    """A line for every policy in one cell with one draw of its requests."""
    number, seed, lengths, n, policies = job
    cell = drawn_cell(number)
    rate_rps = cell.load * capacity_rps(source_of(cell, "poisson"), cell.profile)
    requests = requests_of(cell, n, rate_rps, seed)
    predictor = predictor_of(cell.workload.default_source) if lengths == "learned" else None
    workload = to_sim(requests, *length_rows(requests, lengths, predictor))
    classes = sorted({r.slo.slo_class for r in requests})
    lines = []
    for policy in policies:
        result = simulate(workload, policy_of(policy, seed), cell.profile, max_wait_s=max_wait_s)
        lines.append(
            {"cell": number, "seed": seed, "lengths": lengths, "requests": n, "policy": policy,
             "load": cell.load, "what": str(cell), "wait_bound_s": max_wait_s,
             **figures(workload, result, classes)}
        )  # fmt: skip
    return lines


def lines_of(path: Path, max_wait_s: float) -> list[Line]:
    """The file's lines of runs under this bound on waiting."""
    return [x for x in read_lines(path) if x.get("wait_bound_s", MAX_WAIT_S) == max_wait_s]


def compared(lines: list[Line], policy: str) -> list[Line]:
    """A row a cell and kind of lengths: ``policy`` against the rule that is best there."""
    by_cell: dict[tuple[int, str], list[Line]] = {}
    for line in lines:
        by_cell.setdefault((line["cell"], line["lengths"]), []).append(line)
    rows = []
    for (number, lengths), here in sorted(by_cell.items()):
        seeds = sorted({line["seed"] for line in here})
        met = {(line["policy"], line["seed"]): 100 * line["attainment"] for line in here}
        if any((name, seed) not in met for name in (*RULES, policy) for seed in seeds):
            continue
        means = {rule: float(np.mean([met[rule, s] for s in seeds])) for rule in RULES}
        best = max(means, key=means.__getitem__)
        e2e = {line["policy"]: line["mean_e2e_s"] for line in here}
        tokens = {line["policy"]: line["output_tokens_per_s"] for line in here}
        gain, half = interval([met[policy, s] - met[best, s] for s in seeds])
        rows.append(
            {"cell": number, "lengths": lengths, "what": here[0]["what"], "load": here[0]["load"],
             "met": float(np.mean([met[policy, s] for s in seeds])), "best_rule": best,
             "best": means[best], "fcfs": means["fcfs"], "gain": gain, "half": half,
             "rules": {rule: gain + means[best] - means[rule] for rule in RULES},
             "e2e": e2e[policy] / e2e["fcfs"], "tokens": tokens[policy] / tokens["fcfs"]}
        )  # fmt: skip
    return rows


def show(rows: list[Line]) -> Line:
    """Print the means and the worst cells; the means as they go into the JSON line."""
    means = {}
    table = []
    for lengths in sorted({row["lengths"] for row in rows}):
        for zone, inside in (("> 1", True), ("<= 1", False)):
            here = [r for r in rows if r["lengths"] == lengths and (r["load"] > 1) == inside]
            if not here:
                continue
            gains = [row["gain"] for row in here]
            rule = min(RULES, key=lambda rule: np.mean([row["rules"][rule] for row in here]))
            found = {
                "cells": len(here), "met": float(np.mean([row["met"] for row in here])),
                "gain": float(np.mean(gains)), "worst": min(gains),
                "below": sum(gain < -BELOW for gain in gains),
                "one_rule": rule, "one_gain": float(np.mean([r["rules"][rule] for r in here])),
                "e2e": float(np.mean([row["e2e"] for row in here])),
                "tokens": float(np.mean([row["tokens"] for row in here])),
            }  # fmt: skip
            means[f"{lengths} {zone}"] = found
            table.append(
                [lengths, zone, len(here), f"{found['met']:.1f}", f"{found['gain']:+.1f}",
                 f"{found['worst']:+.1f}", found["below"], f"{found['one_gain']:+.1f} ({rule})",
                 f"{found['e2e']:.2f}", f"{found['tokens']:.3f}"]
            )  # fmt: skip
    print_table(
        ["lengths", "load", "cells", "met %", "to the best rule of each", "worst",
         f"below by {BELOW}", "to the one best rule", "e2e / fcfs", "tokens/s / fcfs"], table,
    )  # fmt: skip
    for row in sorted(rows, key=lambda row: row["gain"])[:20]:
        if row["gain"] < -BELOW:
            note(
                f"{row['cell']} {row['lengths']}: {row['gain']:+.1f} +- {row['half']:.1f} to "
                f"{row['best_rule']} ({row['met']:.1f}; fcfs {row['fcfs']:.1f}); {row['what']}"
            )
    return means


def main() -> None:
    """Play what is left, then the means and the cells below a rule."""
    parser = plain_parser(__doc__)
    parser.add_argument("--out", type=Path, required=True, help="finished runs, added to")
    parser.add_argument("--first-cell", type=int, default=0)
    parser.add_argument("--cells", type=int, default=100)
    parser.add_argument("--draws", type=int, default=1)
    parser.add_argument("--requests", type=int, default=500)
    parser.add_argument("--lengths", nargs="+", default=["oracle"], choices=["oracle", "learned"])
    parser.add_argument("--policy", default="sa", help="what is compared with the rules")
    parser.add_argument("--max-wait-s", type=float, default=MAX_WAIT_S, help="the bound on waiting")
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--table", action="store_true", help="only the tables of what is there")
    args: argparse.Namespace = parser.parse_args()
    if not args.table:
        version = code_version()
        done = {
            (line["cell"], line["seed"], line["lengths"], line["requests"], line["policy"])
            for line in lines_of(args.out, args.max_wait_s)
        }
        jobs = []
        for number in range(args.first_cell, args.first_cell + args.cells):
            for seed in range(args.draws):
                for lengths in args.lengths:
                    setting = (number, seed, lengths, args.requests)
                    left = tuple(p for p in (*RULES, args.policy) if (*setting, p) not in done)
                    if left:
                        jobs.append((*setting, left))
        with processes(args.jobs) as pool, args.out.open("a", encoding="utf-8") as file:
            for lines in pool.imap_unordered(partial(play, max_wait_s=args.max_wait_s), jobs):
                for line in lines:
                    print(json.dumps(line | {"code": version}), file=file, flush=True)
    finish("drawn_cells", show(compared(lines_of(args.out, args.max_wait_s), args.policy)))


if __name__ == "__main__":
    main()
