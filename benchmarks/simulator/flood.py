"""A victim and a flooder on one engine, in the simulator: what the flood costs the victim.

    python -m benchmarks.simulator.flood --seeds 5 --out fairness.jsonl

The victim keeps its load, the flooder's grows from nothing to several times the engine's capacity;
both send the same mix. Figures are of requests that arrive while both send; what is queued then
is served after.
"""

from __future__ import annotations

import argparse
import os
from dataclasses import replace
from pathlib import Path

import numpy as np

from benchmarks.common import finish, interval, plain_parser, played
from benchmarks.simulator.cells import Cell, build, load_one_rps
from lengthwise.scheduler.guards.fairness import TenantFairness, jain_index
from lengthwise.scheduler.simulator.run import simulate
from lengthwise.scheduler.simulator.sim_workload import SimWorkload
from lengthwise.training.bench.runners.simulator_runner import simulated_policy

VICTIM, FLOODER = 0, 1
FLOODS = (0.0, 0.5, 1.0, 2.0, 4.0)
ARMS = ("fcfs", "feasible-edf", "sa", "sa fair")
PER_REQUEST = (
    "arrival_s",
    "prompt_tokens",
    "output_tokens",
    "ttft_s",
    "tpot_s",
    "e2e_s",
    "weight",
    "class_id",
    "quantiles",
)


def merged(parts: list[SimWorkload]) -> SimWorkload:
    """Several tenants' workloads as one; a part's number is its tenant id."""
    order = np.argsort(np.concatenate([part.arrival_s for part in parts]), kind="stable")
    columns = {
        name: np.concatenate([getattr(part, name) for part in parts])[order] for name in PER_REQUEST
    }
    tenant = np.repeat(np.arange(len(parts)), [len(part) for part in parts])[order]
    return SimWorkload(**columns, levels=parts[0].levels, tenant_id=tenant)


def tenant_workload(args: argparse.Namespace, load: float, seed: int) -> SimWorkload:
    rate = load * load_one_rps(args.workload, args.profile)
    cell = Cell(args.workload, load, args.arrivals, args.lengths, seed, 1, args.profile)
    return build(replace(cell, requests=max(1, round(rate * args.seconds))))[0]


def play(job: tuple[argparse.Namespace, float, int, str]) -> dict[str, object]:
    args, flood, seed, arm = job
    parts = [tenant_workload(args, args.victim, seed)]
    if flood > 0:
        parts.append(tenant_workload(args, flood, 1000 + seed))
    workload = merged(parts)
    _, profile = build(Cell(args.workload, 1.0, args.arrivals, args.lengths, seed, 1, args.profile))
    policy = simulated_policy(arm.split()[0], seed)
    fairness = TenantFairness() if arm.endswith("fair") else None
    result = simulate(workload, policy, profile, fairness=fairness)
    met, e2e_s = result.met(workload), result.e2e_s(workload)
    tenant = workload.tenant_id
    assert tenant is not None
    ids = np.unique(tenant)
    attained = [float(met[tenant == t].mean()) for t in ids]
    return {
        "flood": flood,
        "seed": seed,
        "arm": arm,
        "victim": attained[VICTIM],
        "flooder": attained[FLOODER] if flood > 0 else None,
        "jain": jain_index(np.array(attained)),
        "all": float(met.mean()),
        "victim_e2e_s": float(e2e_s[tenant == VICTIM].mean()),
        "max_wait_s": float((result.admitted_s - workload.arrival_s).max()),
        "end_s": result.end_s,
    }


def summary(lines: list[dict]) -> str:
    """Markdown: a row for each flood and arm; the last column is paired with fcfs."""
    out = [
        "| flood | policy | victim (95 %) | flooder | all | Jain | victim e2e s "
        "| victim − fcfs (95 %) |",
        "|" + "---|" * 8,
    ]
    for flood in sorted({line["flood"] for line in lines}):
        base = {x["seed"]: x["victim"] for x in lines if (x["flood"], x["arm"]) == (flood, "fcfs")}
        for arm in ARMS:
            rows = [x for x in lines if (x["flood"], x["arm"]) == (flood, arm)]
            if not rows:
                continue
            mean, half = interval([x["victim"] for x in rows])
            gain, gain_half = interval([x["victim"] - base[x["seed"]] for x in rows])

            def average(name: str, rows: list[dict] = rows) -> float:
                return float(np.mean([x[name] for x in rows]))

            flooder = f"{average('flooder'):.3f}" if flood > 0 else ""
            paired = "" if arm == "fcfs" else f"{100 * gain:+.1f} ± {100 * gain_half:.1f}"
            out.append(
                f"| {flood:g} | {arm} | {mean:.3f} ± {half:.3f} | {flooder} | {average('all'):.3f} "
                f"| {average('jain'):.3f} | {average('victim_e2e_s'):.1f} | {paired} |"
            )
    return "\n".join(out)


def main() -> None:
    parser = plain_parser(__doc__)
    parser.add_argument(
        "--out", type=Path, default=Path(os.devnull), help="keep each run as a line of this file"
    )
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=150.0, help="how long both send")
    parser.add_argument("--victim", type=float, default=0.2, help="share of the capacity")
    parser.add_argument("--floods", nargs="+", type=float, default=list(FLOODS))
    parser.add_argument("--arms", nargs="+", default=list(ARMS))
    parser.add_argument("--workload", default="mixed")
    parser.add_argument("--arrivals", default="poisson")
    parser.add_argument("--lengths", default="learned")
    parser.add_argument("--profile", default="tiny-cpu")
    parser.add_argument("--jobs", type=int, default=1)
    args = parser.parse_args()

    jobs = [
        (args, flood, seed, arm)
        for seed in range(args.seeds)
        for flood in args.floods
        for arm in args.arms
    ]
    lines = played(play, jobs, args.jobs, args.out)
    print(summary(lines), end="\n\n")
    finish("flood", lines)


if __name__ == "__main__":
    main()
