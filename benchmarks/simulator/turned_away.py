"""What turning away (or downgrading) the hopeless does for the rest, in the simulator.

    python -m benchmarks.simulator.turned_away --seeds 3 --jobs 1

Arena cells under overload, with learned lengths. ``met of all`` counts a shed request as missed,
and a downgraded one by the objectives it came with; ``met of the rest`` is over those not acted
on.
"""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np

from benchmarks.common import finish, interval, plain_parser, played
from benchmarks.simulator.cells import WORKLOADS, Cell, build
from lengthwise.scheduler.guards.admission import AdmissionControl, AdmissionRule
from lengthwise.scheduler.policies.make import make_policy
from lengthwise.scheduler.simulator.run import simulate
from lengthwise.training.bench.runners.simulator_runner import simulated_policy

LOADS = (1.1, 1.4, 2.0)
SHARES = (0.1, 0.3, 0.5)

Job = tuple[Cell, str, float, float]


def play(job: Job) -> dict[str, object]:
    cell, mode, share, threshold = job
    workload, profile = build(cell)
    admission, judge = None, None
    if mode != "off":
        admission = AdmissionControl(AdmissionRule(mode, threshold, share))
        judge = make_policy("sa", seed=cell.seed, iterations=1)
    policy = simulated_policy("sa", cell.seed)
    result = simulate(workload, policy, profile, admission=admission, admission_policy=judge)
    met, e2e_s = result.met(workload), result.e2e_s(workload)
    acted = np.array([action != "admit" for action in result.actions] or [False] * len(workload))
    waits = result.admitted_s - workload.arrival_s
    return {
        "workload": cell.workload,
        "load": cell.load,
        "seed": cell.seed,
        "mode": mode,
        "max_share": share if mode != "off" else None,
        "met_all": float(met.mean()),
        "met_rest": float(met[~acted].mean()),
        "acted_share": float(acted.mean()),
        "mean_e2e_s": float(np.nanmean(e2e_s)),
        "rest_e2e_s": float(e2e_s[~acted].mean()),
        "max_wait_s": float(np.nanmax(waits)),
    }


def summary(lines: list[dict]) -> str:
    """Markdown: a row for each cell and setting; the difference is paired with off."""
    out = [
        "| workload | load | mode | cap | acted on | met of all | − off (95 %) | met of the rest "
        "| e2e s, served | e2e s, the rest | longest wait s |",
        "|" + "---|" * 11,
    ]
    settings = list(
        dict.fromkeys((x["workload"], x["load"], x["mode"], x["max_share"]) for x in lines)
    )
    for workload, load, mode, share in settings:
        cell = [x for x in lines if (x["workload"], x["load"]) == (workload, load)]
        off = {x["seed"]: x["met_all"] for x in cell if x["mode"] == "off"}
        rows = [x for x in cell if (x["mode"], x["max_share"]) == (mode, share)]
        gain, half = interval([x["met_all"] - off[x["seed"]] for x in rows])
        mean = {
            name: float(np.mean([x[name] for x in rows]))
            for name in rows[0]
            if name.endswith(("_s", "_all", "_rest", "_share")) and name != "max_share"
        }
        cap = "" if share is None else f"{100 * share:.0f} %"
        paired = "" if mode == "off" else f"{100 * gain:+.1f} ± {100 * half:.1f}"
        out.append(
            f"| {workload} | {load:g} | {mode} | {cap} | {100 * mean['acted_share']:.1f} % "
            f"| {mean['met_all']:.3f} | {paired} | {mean['met_rest']:.3f} "
            f"| {mean['mean_e2e_s']:.1f} | {mean['rest_e2e_s']:.1f} | {mean['max_wait_s']:.0f} |"
        )
    return "\n".join(out)


def main() -> None:
    parser = plain_parser(__doc__)
    parser.add_argument(
        "--out", type=Path, default=Path(os.devnull), help="keep each run as a line of this file"
    )
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--requests", type=int, default=1500)
    parser.add_argument("--workloads", nargs="+", default=list(WORKLOADS))
    parser.add_argument("--loads", nargs="+", type=float, default=list(LOADS))
    parser.add_argument("--modes", nargs="+", default=["shed", "downgrade"])
    parser.add_argument("--shares", nargs="+", type=float, default=list(SHARES))
    parser.add_argument("--threshold", type=float, default=0.05)
    parser.add_argument("--jobs", type=int, default=1)
    args = parser.parse_args()

    settings = [("off", 0.0), *((mode, share) for mode in args.modes for share in args.shares)]
    jobs = [
        (Cell(workload, load, "poisson", "learned", seed, args.requests), *setting, args.threshold)
        for seed in range(args.seeds)
        for workload in args.workloads
        for load in args.loads
        for setting in settings
    ]
    lines = played(play, jobs, args.jobs, args.out)
    print(summary(lines), end="\n\n")
    finish("turned_away", lines)


if __name__ == "__main__":
    main()
