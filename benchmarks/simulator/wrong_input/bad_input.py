"""What a policy makes of input that is wrong, against arrival order on the same requests.

    python -m benchmarks.simulator.wrong_input.bad_input --out bad_input.jsonl --seeds 5

Asked for: never more than 2 points of attainment below arrival order, nobody waiting beyond the
bound by more than arrival order makes them, everybody served. Exits with 1 where that fails.
Finished draws in ``--out`` are not played again.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.common import finish, interval, note, print_table
from benchmarks.simulator.grid import code_version, read_lines
from benchmarks.simulator.shapes import Run, build, policy_of
from benchmarks.simulator.wrong_input.misled import slower
from lengthwise.scheduler.profile import EngineProfile
from lengthwise.scheduler.simulator.run import simulate
from lengthwise.scheduler.simulator.sim_workload import SimWorkload

MOST_BELOW = 0.02
SLACK_S, SLACK_SHARE = 0.5, 0.01  # a slot comes free a few steps sooner or later


@dataclass(frozen=True)
class Setting:
    """What arrives, the engine, and what the policy is told of both."""

    workload: SimWorkload
    profile: EngineProfile
    believed: EngineProfile | None = None


def _told(factor: float) -> Callable[[Setting], Setting]:
    def changed(s: Setting) -> Setting:
        steps = slower(s.profile.step_time, factor)
        return replace(s, believed=replace(s.profile, step_time=steps))

    return changed


def _floored(s: Setting) -> Setting:
    """Steps beyond a CUDA graph take twice a full batch's, and the profile does not say so."""
    capacity, clock = s.profile.capacity, s.profile.step_time
    full_s = clock.step_s(0.0, capacity.max_num_seqs, 0.9 * capacity.kv_tokens)
    steps = replace(clock, eager_s=2.0 * full_s, graph_tokens=256.0)
    return replace(s, profile=replace(s.profile, step_time=steps), believed=s.profile)


def _prompts_beyond_memory(s: Setting) -> Setting:
    """The KV memory is told smaller than every tenth prompt."""
    told = int(np.quantile(s.workload.prompt_tokens, 0.9))
    return replace(
        s,
        believed=replace(s.profile, capacity=replace(s.profile.capacity, kv_tokens=told)),
    )


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
    "eager steps with a floor": _floored,
    "prompts beyond the KV told": _prompts_beyond_memory,
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


def compared(run: Run, case: str, max_wait_s: float) -> dict[str, Any]:
    """One draw under one case: arrival order, the run's policy, and what fails."""
    setting = CASES[case](Setting(*build(run)))
    fcfs = played(setting, policy_of("fcfs", run.seed), max_wait_s)
    arm = played(setting, policy_of(run.policy, run.seed), max_wait_s)
    line = asdict(run) | {"case": case, "max_wait_s": max_wait_s, "fcfs": fcfs, "arm": arm}
    return line | {"failures": failures(arm, fcfs)}


def key_of(run: Run, case: str, max_wait_s: float) -> str:
    """What tells a line from all others in the file."""
    return json.dumps([run.key, case, max_wait_s])


def rows_of(lines: Iterable[dict[str, Any]]) -> list[list[object]]:
    """A row a shape, workload and case over its seeds; the worst of each figure beside the mean."""
    groups: dict[tuple[str, str, str], list[dict[str, Any]]] = {}
    for line in lines:
        groups.setdefault((line["shape"], line["workload"], line["case"]), []).append(line)
    rows = []
    for names, own in groups.items():
        points = [100 * (x["arm"]["attainment"] - x["fcfs"]["attainment"]) for x in own]
        mean, half = interval(points)
        met = [100 * np.mean([x[arm]["attainment"] for x in own]) for arm in ("fcfs", "arm")]
        over = [max(x[arm]["over_s"] for x in own) for arm in ("fcfs", "arm")]
        beyond = max(x["arm"]["over_s"] - x["fcfs"]["over_s"] for x in own)
        e2e = np.mean([x["arm"]["mean_e2e_s"] / x["fcfs"]["mean_e2e_s"] for x in own])
        failed = [what for x in own for what in x["failures"]]
        told = ", ".join(f"{what} {failed.count(what)}" for what in sorted(set(failed)))
        shown = [
            f"{met[0]:.1f}",
            f"{met[1]:.1f}",
            f"{mean:+.1f} ± {half:.1f}",
            f"{min(points):+.1f}",
        ]
        shown += [f"{over[0]:.1f}", f"{over[1]:.1f}", f"{beyond:+.1f}", f"{e2e:.2f}"]
        rows.append([*names, len(own), *shown, told])
    return rows


HEAD = [
    "shape", "workload", "case", "seeds", "met %, fcfs", "met %", "points", "worst seed",
    "most over the bound s, fcfs", "most over", "most beyond fcfs's", "e2e / fcfs", "fails",
]  # fmt: skip


def main() -> None:
    """Play what is left, then the table, and the figures as JSON."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, required=True, help="finished draws, added to")
    parser.add_argument(
        "--shapes", nargs="+", default=["shape-few-slots", "shape-little-memory", "tiny-cpu"]
    )
    parser.add_argument("--workloads", nargs="+", default=["mixed"])
    parser.add_argument("--cases", nargs="+", default=list(CASES), choices=list(CASES))
    parser.add_argument("--policy", default="sa")
    parser.add_argument("--lengths", default="oracle")
    parser.add_argument("--load", type=float, default=1.3)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--requests", type=int, default=1000)
    parser.add_argument("--max-wait-s", type=float, default=60.0)
    parser.add_argument("--table", action="store_true", help="only the table of what is there")
    args = parser.parse_args()
    lines: list[dict[str, Any]] = read_lines(args.out)
    done = {line["key"] for line in lines}
    todo = [
        (Run(shape, workload, args.load, args.lengths, seed, args.requests, args.policy), case)
        for seed in range(args.seeds)
        for shape in args.shapes
        for workload in args.workloads
        for case in args.cases
    ]
    for run, case in todo if not args.table else []:
        if (key := key_of(run, case, args.max_wait_s)) in done:
            continue
        lines.append({"key": key, "code": code_version()} | compared(run, case, args.max_wait_s))
        with args.out.open("a") as file:
            print(json.dumps(lines[-1]), file=file)
        note(f"{run.shape} {run.workload} {run.seed} {case}: {lines[-1]['failures'] or 'holds'}")
    print_table(HEAD, rows_of(lines))
    finish("bad_input", lines)
    sys.exit(1 if any(line["failures"] for line in lines) else 0)


if __name__ == "__main__":
    main()
