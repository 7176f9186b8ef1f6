"""Parts of a plan withdrawn and returned: wrong knowledge in a run's first half, right after it.

    python -m benchmarks.simulator.wrong_input.trust_return --shapes shape-little-memory

Every arm serves the same requests. `misled` is told wrong things until half of the requests have
arrived; without trust it plans on as if its promises came true. Attainment is of the requests
that arrived in each half; away is the share of the time between its first plan and its last one
of each half that a part was withdrawn, and back how long after the half it was last so.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from benchmarks.common import finish, interval, note, plain_parser, print_table
from benchmarks.simulator.shapes import Run, build, policy_of
from benchmarks.simulator.wrong_input import misled
from lengthwise.scheduler.plan.feedback.trust import PARTS
from lengthwise.scheduler.simulator.run import simulate

CASES: dict[str, misled.Told] = {
    "steps thrice as long": misled.steps(3.0),
    "steps a third as long": misled.steps(1.0 / 3.0),
    "prompts thrice as dear": misled.step_part("prefill_token_s", 3.0),
    "prompts a third as dear": misled.step_part("prefill_token_s", 1.0 / 3.0),
    "decodes thrice as dear": misled.step_part("decode_seq_s", 3.0),
    "lengths tenfold": misled.lengths(10.0),
    "lengths a tenth": misled.lengths(0.1),
}
ARMS = ("fcfs", "sa, never misled", "misled", "misled, without trust")


@dataclass
class Watch:
    """What a planner's trust says after each plan: ``[(now_s, withdrawn parts)]``."""

    plans: list[tuple[float, frozenset[str]]] = field(default_factory=list)

    def __call__(self, now_s: float, policy: Any) -> None:
        status = policy.trust.status(now_s)
        away = frozenset(part for part in PARTS if status[part]["withdrawn_s"] > 0)
        self.plans.append((now_s, away))

    def away(self, part: str, begin_s: float, end_s: float) -> float:
        """Share of the time from ``begin_s`` to ``end_s`` that the part was withdrawn."""
        times = np.array([now_s for now_s, _ in self.plans] + [end_s])
        gone = np.array([part in away for _, away in self.plans])
        span_s = np.diff(np.clip(times, begin_s, end_s))
        return float((span_s * gone).sum() / max(end_s - begin_s, 1e-9))

    def back_s(self, part: str, after_s: float) -> float:
        """Seconds after ``after_s`` that the part was last withdrawn; 0 where it never was."""
        gone = [now_s for now_s, away in self.plans if part in away and now_s > after_s]
        return gone[-1] - after_s if gone else 0.0


def played(run: Run, case: str, arm: str) -> dict[str, Any]:
    """One arm's figures on one draw."""
    workload, profile = build(run)
    half = len(workload) // 2
    half_s = float(workload.arrival_s[half])
    watch = Watch()
    policy: Any = policy_of(
        {"fcfs": "fcfs", "misled, without trust": "sa:trust=false"}.get(arm, "sa"), run.seed
    )
    if arm != "fcfs":
        told = CASES.get(case, lambda problem: problem)
        policy = misled.Misled(policy, told, half_s, watch)
    met = simulate(workload, policy, profile).met(workload)
    line = asdict(run) | {"case": case, "arm": arm, "half_s": half_s}
    line |= {"first": float(met[:half].mean()), "second": float(met[half:].mean())}
    if watch.plans:
        halves = ((0.0, half_s), (half_s, max(half_s, watch.plans[-1][0])))
        line["away"] = {part: [watch.away(part, *span) for span in halves] for part in PARTS}
        line["back_s"] = {part: watch.back_s(part, half_s) for part in PARTS}
    return line


def rows_of(lines: list[dict[str, Any]]) -> list[list[object]]:
    """A row a cell, case and arm; means over seeds."""
    groups: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    for line in lines:
        names = ("shape", "workload", "load", "case", "arm")
        groups.setdefault(tuple(line[name] for name in names), []).append(line)
    rows = []
    for names, own in groups.items():
        halves = [interval([100 * line[half] for line in own]) for half in ("first", "second")]
        away = []
        for part in PARTS:
            shares = [line["away"][part] for line in own if "away" in line]
            if any(map(any, shares)):
                first, second = np.mean(shares, axis=0)
                back_s = np.mean([line["back_s"][part] for line in own])
                away.append(f"{part} {first:.0%}, {second:.0%}, back after {back_s:.0f} s")
        rows.append([*names, *(f"{m:.1f} ± {h:.1f}" for m, h in halves), "; ".join(away)])
    return rows


def main() -> None:
    """The table, and the figures as JSON."""
    parser = plain_parser(__doc__)
    parser.add_argument("--shapes", nargs="+", default=["shape-little-memory", "shape-many-slots"])
    parser.add_argument("--workloads", nargs="+", default=["mixed"])
    parser.add_argument("--loads", nargs="+", type=float, default=[1.4])
    parser.add_argument("--cases", nargs="+", default=list(CASES), choices=list(CASES))
    parser.add_argument("--arms", nargs="+", default=list(ARMS), choices=list(ARMS))
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--requests", type=int, default=3000)
    args = parser.parse_args()
    lines: list[dict[str, Any]] = []
    for shape in args.shapes:
        for workload in args.workloads:
            for load in args.loads:
                for seed in range(args.seeds):
                    run = Run(shape, workload, load, "oracle", seed, args.requests, "")
                    for case in args.cases:
                        for arm in args.arms:
                            again = arm in ARMS[:2] and case != args.cases[0]
                            if not again:  # what is not misled is the same for every case
                                lines.append(played(run, case if arm[0] == "m" else "", arm))
                                note(f"{shape} {workload} {load:g} {seed} {case}: {arm}")
    columns = ["shape", "workload", "load", "told", "arm", "met, first half %", "second half %"]
    print_table([*columns, "away in each half"], rows_of(lines))
    finish("trust_return", lines)


if __name__ == "__main__":
    main()
