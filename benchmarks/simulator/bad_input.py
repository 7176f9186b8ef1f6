"""What a policy makes of input that is wrong, against arrival order on the same requests.

    python -m benchmarks.simulator.bad_input --shapes shape-few-slots --seeds 2

Asked for: never more than 2 points of attainment below arrival order, nobody waiting beyond the
bound by more than arrival order makes them, everybody served. Exits with 1 where that fails.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from benchmarks.common import finish, print_table
from benchmarks.simulator.shapes import Run, build, policy_of
from lengthwise.scheduler.profile import EngineProfile
from lengthwise.scheduler.simulator.run import simulate
from lengthwise.scheduler.simulator.sim_workload import SimWorkload
from lengthwise.scheduler.step_time import COEFFICIENTS

MOST_BELOW = 0.02
SLACK_S, SLACK_SHARE = 0.5, 0.01  # a slot comes free a few steps sooner or later


@dataclass(frozen=True)
class Setting:
    """What arrives, the engine, and what the policy is told of both."""

    workload: SimWorkload
    profile: EngineProfile
    believed: EngineProfile | None = None


def slower(profile: EngineProfile, factor: float) -> EngineProfile:
    """The profile with every step ``factor`` times as long."""
    model = profile.step_time
    return replace(
        profile,
        step_time=replace(model, **{name: factor * getattr(model, name) for name in COEFFICIENTS}),
    )


def _told(factor: float) -> Callable[[Setting], Setting]:
    return lambda s: replace(s, believed=slower(s.profile, factor))


def _lengths(factor: float) -> Callable[[Setting], Setting]:
    def changed(s: Setting) -> Setting:
        rows = np.maximum(1.0, factor * s.workload.quantiles)
        return replace(s, workload=replace(s.workload, quantiles=rows))

    return changed


def _mixed_up(s: Setting) -> Setting:
    rows = np.random.default_rng(0).permutation(s.workload.quantiles)
    return replace(s, workload=replace(s.workload, quantiles=rows))


def _objectives(**values: float) -> Callable[[Setting], Setting]:
    def changed(s: Setting) -> Setting:
        w = s.workload
        given = {
            name: np.where(np.isfinite(getattr(w, name)), value, np.inf)
            for name, value in values.items()
        }
        return replace(s, workload=replace(w, **given))

    return changed


def _slots(slots: int) -> Callable[[Setting], Setting]:
    def changed(s: Setting) -> Setting:
        capacity, w = s.profile.capacity, s.workload
        share = min(1.0, slots / capacity.max_num_seqs)
        return Setting(
            replace(w, arrival_s=w.arrival_s / share**0.8),
            replace(s.profile, capacity=replace(capacity, max_num_seqs=slots)),
        )

    return changed


def _alike(s: Setting) -> Setting:
    """All arrive in ten bursts, at the very same times."""
    w = s.workload
    step_s = float(w.arrival_s[-1]) / 10.0
    return replace(s, workload=replace(w, arrival_s=np.floor(w.arrival_s / step_s) * step_s))


CASES: dict[str, Callable[[Setting], Setting]] = {
    "right": lambda s: s,
    "profile thrice too slow": _told(3.0),
    "profile thrice too fast": _told(1.0 / 3.0),
    "lengths tenfold": _lengths(10.0),
    "lengths a tenth": _lengths(0.1),
    "lengths of others": _mixed_up,
    "all hopeless": _objectives(ttft_s=1e-3, e2e_s=1e-3),
    "TPOT below a step": _objectives(tpot_s=1e-4),
    "no objectives": _objectives(ttft_s=np.inf, tpot_s=np.inf, e2e_s=np.inf),
    "one slot": _slots(1),
    "4,096 slots": _slots(4096),
    "arrivals at once": _alike,
}


def played(setting: Setting, policy: Any, max_wait_s: float) -> dict[str, float]:
    """One run's figures."""
    result = simulate(
        setting.workload, policy, setting.profile, max_wait_s=max_wait_s, believed=setting.believed
    )
    waits = result.admitted_s - setting.workload.arrival_s
    return {
        "attainment": float(result.met(setting.workload).mean()),
        "unserved": int((~np.isfinite(result.finish_s)).sum()),
        "over_s": float(max(0.0, np.nanmax(waits) - max_wait_s)),
        "mean_e2e_s": float(np.nanmean(result.e2e_s(setting.workload))),
        "output_tokens_per_s": float(result.output_tokens.sum() / result.end_s),
    }


def failures(arm: dict[str, float], fcfs: dict[str, float]) -> list[str]:
    """What is asked for and does not hold."""
    found = []
    if arm["attainment"] < fcfs["attainment"] - MOST_BELOW:
        found.append("attainment")
    if arm["over_s"] > (1.0 + SLACK_SHARE) * fcfs["over_s"] + SLACK_S:
        found.append("wait")
    if arm["unserved"]:
        found.append("unserved")
    return found


def main() -> None:
    """The table, and the figures as JSON."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument(
        "--shapes", nargs="+", default=["shape-few-slots", "shape-little-memory", "tiny-cpu"]
    )
    parser.add_argument("--workloads", nargs="+", default=["mixed"])
    parser.add_argument("--cases", nargs="+", default=list(CASES))
    parser.add_argument("--policy", default="sa")
    parser.add_argument("--lengths", default="oracle")
    parser.add_argument("--load", type=float, default=1.3)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--requests", type=int, default=1000)
    parser.add_argument("--max-wait-s", type=float, default=60.0)
    args = parser.parse_args()
    lines, table, failed = [], [], 0
    for shape in args.shapes:
        for workload in args.workloads:
            for case in args.cases:
                for seed in range(args.seeds):
                    run = Run(shape, workload, args.load, args.lengths, seed, args.requests, "")
                    setting = CASES[case](Setting(*build(run)))
                    fcfs = played(setting, policy_of("fcfs", seed), args.max_wait_s)
                    arm = played(setting, policy_of(args.policy, seed), args.max_wait_s)
                    wrong = failures(arm, fcfs)
                    failed += bool(wrong)
                    lines.append(
                        {"shape": shape, "workload": workload, "case": case, "seed": seed}
                        | {"fcfs": fcfs, "arm": arm, "failures": wrong}
                    )
                    points = 100.0 * (arm["attainment"] - fcfs["attainment"])
                    cells = [f"{fcfs['attainment']:.1%}", f"{arm['attainment']:.1%}"]
                    cells += [f"{points:+.1f}", f"{fcfs['over_s']:.1f}", f"{arm['over_s']:.1f}"]
                    cells += [f"{arm['mean_e2e_s'] / fcfs['mean_e2e_s']:.2f}"]
                    table.append([shape, workload, case, seed, *cells, ", ".join(wrong)])
    head = ["shape", "workload", "case", "seed", "met, fcfs", "met", "points"]
    head += ["over the bound s, fcfs", "over", "mean e2e ratio", "fails"]
    print_table(head, table)
    finish("bad_input", lines)
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
