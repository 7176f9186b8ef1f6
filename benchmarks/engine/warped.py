"""vLLM's own scheduler in warped time beside the simulator: the same requests, the same policies.

    python -m benchmarks.engine.warped --out warped.jsonl
    python -m benchmarks.engine.warped --out warped.jsonl --table

Stock vLLM, some rules and ``sa`` on every shape, workload and load, each on an emulated device in
warped time and in the simulator; a run of both is a line of the file and is played once. Stock
stands beside the simulator's arrival order. A run counts where its steps took at most 1.02 times
what the profile says. Asked for: attainment within 5 points, the same ranking.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.common import finish, note, plain_parser, print_table
from benchmarks.simulator.grid import code_version, read_lines
from benchmarks.simulator.shapes import LOADS, Run, build, policy_of, requests_of
from lengthwise.data.arena.workloads import ARENA
from lengthwise.data.errors import InputError
from lengthwise.scheduler.profile import load_profile, profile_names
from lengthwise.scheduler.simulator.run import simulate
from lengthwise.scheduler.vllm_adapter.emulated.emulated_steps import StepSummary
from lengthwise.scheduler.vllm_adapter.emulated.player import Job, JobOutcome
from lengthwise.scheduler.vllm_adapter.emulated.player_process import PlayerProcess
from lengthwise.scheduler.vllm_adapter.server.tiny import TINY_NAME, build_tiny_model
from lengthwise.training.bench.comparison.arms import STOCK, Arm
from lengthwise.training.bench.results.records import RequestRecord
from lengthwise.training.bench.runners.simulator_runner import lengths_of
from lengthwise.training.bench.runners.warped_runner import WarpedRunner, WarpSettings
from lengthwise.training.workspace import Workspace

POLICIES = (STOCK, "feasible-edf", "feasible-sjf", "sa")
CLOSE = 5.0  # points
APART = 5.0  # points between two arms from where their ranking must be the same

Line = dict[str, Any]


class ListeningPlayer(PlayerProcess):
    """A player that keeps its last outcome."""

    last: JobOutcome

    def run(self, job: Job) -> JobOutcome:
        """Play the job."""
        self.last = super().run(job)
        return self.last


def attained(records: Sequence[RequestRecord]) -> dict[str, Any]:
    """Attainment, by class too, and latencies."""
    classes: dict[str, list[bool]] = defaultdict(list)
    for record in records:
        classes[record.slo_class].append(record.met)
    done = [record for record in records if record.ok]
    return {
        "attainment": float(np.mean([record.met for record in records])),
        "per_class": {name: float(np.mean(met)) for name, met in sorted(classes.items())},
        "mean_ttft_s": float(np.mean([record.ttft_s for record in done])),
        "mean_e2e_s": float(np.mean([record.e2e_s for record in done])),
    }


def warped(run: Run, player: ListeningPlayer, model_dir: Path) -> Line:
    """The run's figures on the emulated device."""
    runner = WarpedRunner(
        [player], run.shape, load_profile(run.shape), model_dir, lengths_of(None),
        WarpSettings(seed=run.seed),
    )  # fmt: skip
    arm = Arm(run.policy, "none" if run.policy == STOCK else "oracle")
    played = runner.run(arm, requests_of(run), 0)
    outcome = player.last
    steps = [StepSummary(**values) for values in outcome.steps]
    return attained(played.records) | {
        "valid": all(summary.valid for summary in steps),
        "step_ratio": max((s.step_ratio for s in steps if s.step_ratio is not None), default=None),
        "preemptions": outcome.preemptions,
        "prefill_tokens": outcome.prefill_tokens,
        "plans": len(outcome.plan_s),
    }


def simulated(run: Run) -> Line:
    """The run's figures in the simulator."""
    workload, profile = build(run)
    policy = policy_of("fcfs" if run.policy == STOCK else run.policy, run.seed)
    result = simulate(workload, policy, profile)
    met = result.met(workload)
    classes = sorted({request.slo.slo_class for request in requests_of(run)})
    return {
        "attainment": float(met.mean()),
        "per_class": {
            name: float(met[workload.class_id == i].mean()) for i, name in enumerate(classes)
        },
        "mean_ttft_s": float(result.ttft_s(workload).mean()),
        "mean_e2e_s": float(result.e2e_s(workload).mean()),
        "preemptions": result.preemptions,
        "prefill_tokens": result.prefilled_tokens,
        "plans": len(result.plan_s),
    }


def gap(line: Line) -> float:
    """Points of attainment that warped time is above the simulator."""
    return 100.0 * float(line["warped"]["attainment"] - line["simulated"]["attainment"])


def place_of(line: Line) -> tuple[str, str, float]:
    """The line's cell."""
    return line["shape"], line["workload"], line["load"]


def reversals(lines: Iterable[Line]) -> list[str]:
    """Pairs of arms that differ clearly in both, and in opposite directions."""
    cells: dict[Any, dict[str, dict[str, list[float]]]] = defaultdict(
        lambda: defaultdict(lambda: {"warped": [], "simulated": []})
    )
    for line in lines:
        for where in ("warped", "simulated"):
            cells[place_of(line)][line["policy"]][where].append(100 * line[where]["attainment"])
    found = []
    for place, arms in cells.items():
        for one, other in combinations(arms, 2):
            apart = [
                float(np.mean(arms[one][where]) - np.mean(arms[other][where]))
                for where in ("warped", "simulated")
            ]
            if min(map(abs, apart)) > APART and apart[0] * apart[1] < 0:
                where = ", ".join(map(str, place))
                found.append(f"- {where}: {one} less {other} is {apart[0]:+.1f}, {apart[1]:+.1f}")
    return found


def rows_of(lines: Iterable[Line]) -> list[list[object]]:
    """A row a line: both attainments, what is between them, and what may say why."""
    rows = []
    for line in sorted(lines, key=lambda line: (*place_of(line), line["seed"])):
        both = line["warped"], line["simulated"]
        rows.append(
            [
                *(line[name] for name in ("shape", "workload", "load", "policy")),
                *(f"{100 * one['attainment']:.1f}" for one in both),
                f"{gap(line):+.1f}",
                *(f"{both[0][name] / both[1][name]:.2f}"
                  for name in ("mean_ttft_s", "mean_e2e_s", "prefill_tokens")),
                f"{both[0]['preemptions']}, {both[1]['preemptions']}",
                f"{both[0]['plans']}, {both[1]['plans']}",
                "" if both[0]["valid"] else f"INVALID, steps {both[0]['step_ratio']:.3f}",
            ]
        )  # fmt: skip
    return rows


HEAD = [
    "shape", "workload", "load", "policy", "warped %", "simulated %", "points", "TTFT ratio",
    "e2e ratio", "prefill ratio", "preempted", "plans", "",
]  # fmt: skip


def verdict(lines: Sequence[Line]) -> dict[str, Any]:
    """How near the two are over the valid runs."""
    valid = [line for line in lines if line["warped"]["valid"]]
    gaps = np.array([gap(line) for line in valid] or [np.nan])
    return {
        "runs": len(lines),
        "invalid": len(lines) - len(valid),
        "mean_gap": float(gaps.mean()),
        "mean_absolute_gap": float(np.abs(gaps).mean()),
        "largest_gap": float(np.abs(gaps).max()),
        "beyond": int((np.abs(gaps) > CLOSE).sum()),
        "reversals": reversals(valid),
    }


def main() -> None:
    """Play what is left, then the table, and the figures as JSON."""
    shapes = [name for name in profile_names() if not name.startswith("holdout-")]
    parser = plain_parser(__doc__)
    parser.add_argument("--out", type=Path, required=True, help="finished runs, added to")
    parser.add_argument("--shapes", nargs="+", default=shapes)
    parser.add_argument("--workloads", nargs="+", default=list(ARENA))
    parser.add_argument("--loads", nargs="+", type=float, default=list(LOADS))
    parser.add_argument("--policies", nargs="+", default=list(POLICIES))
    parser.add_argument("--requests", type=int, default=500)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--table", action="store_true", help="only the table of what is there")
    args = parser.parse_args()
    lines: list[Line] = read_lines(args.out)
    done = {line["key"] for line in lines}
    runs = [
        Run(shape, workload, load, "oracle", args.seed, args.requests, policy)
        for shape in args.shapes
        for workload in args.workloads
        for load in args.loads
        for policy in args.policies
    ]
    todo = [] if args.table else [run for run in runs if run.key not in done]
    if todo:
        model_dir = build_tiny_model(Workspace.current().cache / TINY_NAME)
        with ListeningPlayer() as player:
            for run in todo:
                try:
                    found = {"warped": warped(run, player, model_dir), "simulated": simulated(run)}
                except InputError as error:  # longer than the emulated model's context
                    note(f"{run.key}: {error}")
                    continue
                line = {"key": run.key, **asdict(run), "code": code_version(), **found}
                lines.append(line)
                with args.out.open("a") as file:
                    print(json.dumps(line), file=file)
                note(f"{run.key}: {gap(line):+.1f} points")
    print_table(HEAD, rows_of(lines))
    told = verdict(lines)
    print(
        f"{told['runs']} runs, {told['invalid']} invalid; warped less simulated "
        f"{told['mean_gap']:+.1f} points on the mean, {told['mean_absolute_gap']:.1f} either way, "
        f"at most {told['largest_gap']:.1f}; beyond {CLOSE:g} points: {told['beyond']}.",
        *(["Rankings reversed (warped, simulated):", *told["reversals"]]
          if told["reversals"] else ["No ranking reversed."]),
        sep="\n", end="\n\n",
    )  # fmt: skip
    finish("warped", told | {"lines": lines})


if __name__ == "__main__":
    main()
