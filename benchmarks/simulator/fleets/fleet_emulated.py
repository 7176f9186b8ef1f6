"""Routers before real engine cores in warped time, and before the simulator's engines.

    python -m benchmarks.simulator.fleets.fleet_emulated --out emulated.jsonl
    python -m benchmarks.simulator.fleets.fleet_emulated --out emulated.jsonl --table

A run is a fleet (how many instances, of which profiles in turn), a workload, a load, a policy that
all instances serve by, a router and a seed; it is a line of the file and is played once, on vLLM's
own schedulers and KV managers on emulated devices, told by the states that our scheduler publishes,
and in the simulator, on the same requests. ``pooled`` is one engine of all slots, where the
instances are equal. Asked for: the same ranking in both.
"""

from __future__ import annotations

import json
import tempfile
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.common import finish, interval, note, plain_parser, print_table
from benchmarks.engine.warped import APART, ListeningPlayer, attained
from benchmarks.simulator.fleets.fleet_arms import POOLED, capacity_of, source_of
from benchmarks.simulator.grid import code_version, read_lines
from lengthwise.data.workload import WorkloadRequest
from lengthwise.scheduler.fleet.make_router import ROUTERS
from lengthwise.scheduler.profile import load_profile
from lengthwise.scheduler.simulator.fleet_terms import pooled_profile
from lengthwise.scheduler.vllm_adapter.emulated.emulated_steps import StepSummary
from lengthwise.scheduler.vllm_adapter.emulated.player import profiles_in_turn
from lengthwise.scheduler.vllm_adapter.server.tiny import TINY_NAME, build_tiny_model
from lengthwise.training.bench.comparison.arms import Arm
from lengthwise.training.bench.runners.fleet_runner import FleetRunner
from lengthwise.training.bench.runners.simulator_runner import SimulatorRunner, lengths_of
from lengthwise.training.bench.runners.warped_runner import WarpedRunner, WarpSettings
from lengthwise.training.workspace import Workspace

BASE = "least-outstanding"
Line = dict[str, Any]


@dataclass(frozen=True, slots=True)
class FleetRun:
    """One router before one fleet, with one draw of the requests."""

    instances: int
    profiles: str
    workload: str
    load: float
    policy: str
    lengths: str
    requests: int
    seed: int
    router: str

    @property
    def key(self) -> str:
        """What tells it from all others in the file."""
        return json.dumps(list(asdict(self).values()))

    @property
    def names(self) -> tuple[str, ...]:
        """The profile of each instance."""
        return tuple(profiles_in_turn(self.profiles, self.instances))


def requests_of(run: FleetRun) -> list[WorkloadRequest]:
    """The requests, the same for every router and policy."""
    rate_rps = run.load * capacity_of(run.workload, run.names)
    return source_of(run.workload, run.names[0]).draw(run.requests, rate_rps, run.seed)


def play(run: FleetRun, player: ListeningPlayer, model_dir: Path) -> dict[str, Line]:
    """The run's figures on emulated engines and in the simulator."""
    requests, known = requests_of(run), lengths_of(None)
    profiles = [load_profile(name) for name in run.names]
    pooled = run.router == POOLED
    arm = Arm(run.policy, run.lengths, router=None if pooled else run.router)
    with tempfile.TemporaryDirectory() as scratch:
        device, instances = run.profiles, run.instances
        if pooled:
            profiles, instances = [pooled_profile(profiles[0], run.instances)], 1
            path = Path(scratch) / "pooled.json"
            path.write_text(profiles[0].to_json(), encoding="utf-8")
            device = str(path)
        settings = WarpSettings(instances=instances, seed=run.seed)
        runner = WarpedRunner([player], device, profiles[0], model_dir, known, settings)
        warped = attained(runner.run(arm, requests, 0).records)
    outcome = player.last
    steps = [StepSummary(**values) for values in outcome.steps]
    simulator = (
        SimulatorRunner(profiles[0], known, seed=run.seed)
        if pooled
        else FleetRunner(profiles, known, seed=run.seed)
    )
    return {
        "warped": warped
        | {
            "valid": all(summary.valid for summary in steps),
            "step_ratio": max((s.step_ratio for s in steps if s.step_ratio), default=None),
            "prefill_tokens": outcome.prefill_tokens,
            "cpu_s": outcome.cpu_s,
            "shares": np.bincount(outcome.engine, minlength=instances).tolist(),
            "router": outcome.router,
        },
        "simulated": attained(simulator.run(arm, requests, 0).records),
    }


def place_of(line: Line) -> tuple[Any, ...]:
    """The line's cell: all but router and seed."""
    names = ("instances", "profiles", "workload", "load", "policy", "lengths", "requests")
    return tuple(line[name] for name in names)


def summary(lines: Iterable[Line]) -> list[Line]:
    """A row a cell and router: both attainments, and both differences to the base, over seeds."""
    cells: dict[Any, dict[str, dict[int, Line]]] = defaultdict(lambda: defaultdict(dict))
    for line in lines:
        cells[place_of(line)][line["router"]][line["seed"]] = line
    rows = []
    for cell, routers in cells.items():
        for router, own in routers.items():
            row: Line = {"cell": cell, "router": router, "seeds": len(own)}
            for where in ("warped", "simulated"):
                met = {seed: 100 * line[where]["attainment"] for seed, line in own.items()}
                base = {
                    seed: 100 * line[where]["attainment"]
                    for seed, line in routers.get(BASE, {}).items()
                }
                paired = [met[seed] - base[seed] for seed in met if seed in base]
                row[where] = float(np.mean(list(met.values())))
                row[f"{where}_less_base"] = interval(paired) if paired else (np.nan, np.nan)
            row["valid"] = all(line["warped"]["valid"] for line in own.values())
            rows.append(row)
    return rows


def reversals(rows: Sequence[Line]) -> list[str]:
    """Pairs of routers of a cell that differ clearly in both, and in opposite directions."""
    cells: dict[Any, list[Line]] = defaultdict(list)
    for row in rows:
        cells[row["cell"]].append(row)
    found = []
    for cell, own in cells.items():
        for one, other in combinations(own, 2):
            apart = [one[where] - other[where] for where in ("warped", "simulated")]
            if min(map(abs, apart)) > APART and apart[0] * apart[1] < 0:
                pair = f"{one['router']} less {other['router']}"
                found.append(f"- {cell}: {pair} is {apart[0]:+.1f}, {apart[1]:+.1f}")
    return found


HEAD = [
    "instances", "profiles", "workload", "load", "policy", "lengths", "requests", "router",
    "seeds", "emulated %", f"less {BASE}", "simulated %", f"less {BASE}", "apart", "",
]  # fmt: skip


def table_rows(rows: Sequence[Line]) -> list[list[object]]:
    """The rows of the table."""
    return [
        [
            *row["cell"], row["router"], row["seeds"],
            *(
                text
                for where in ("warped", "simulated")
                for text in (
                    f"{row[where]:.1f}",
                    "{:+.1f} ± {:.1f}".format(*row[f"{where}_less_base"]),
                )
            ),
            f"{row['warped'] - row['simulated']:+.1f}", "" if row["valid"] else "INVALID",
        ]
        for row in rows
    ]  # fmt: skip


def main() -> None:
    """Play what is left, then the table, and the figures as JSON."""
    parser = plain_parser(__doc__)
    parser.add_argument("--out", type=Path, required=True, help="finished runs, added to")
    parser.add_argument("--instances", type=int, nargs="+", default=[4])
    parser.add_argument("--profiles", nargs="+", default=["shape-many-slots"])
    parser.add_argument("--workloads", nargs="+", default=["mixed"])
    parser.add_argument("--loads", type=float, nargs="+", default=[1.2, 1.4])
    parser.add_argument("--policies", nargs="+", default=["feasible-edf", "sa"])
    parser.add_argument(
        "--routers", nargs="+", choices=[*ROUTERS, POOLED],
        default=["power-of-two", BASE, "predicted-latency", "gain", "gain-late"],
    )  # fmt: skip
    parser.add_argument("--lengths", default="class", help="oracle, class or none")
    parser.add_argument("--requests", type=int, default=500, help="an instance")
    parser.add_argument("--seeds", type=int, nargs="+", default=[20])
    parser.add_argument("--table", action="store_true", help="only the table of what is there")
    args = parser.parse_args()
    lines: list[Line] = read_lines(args.out)
    done = {line["key"] for line in lines}
    runs = [
        FleetRun(
            instances, profiles, workload, load, policy, args.lengths, args.requests * instances,
            seed, router,
        )
        for seed in args.seeds
        for instances in args.instances
        for profiles in args.profiles
        for workload in args.workloads
        for load in args.loads
        for policy in args.policies
        for router in args.routers
        if router != POOLED or len(set(profiles.split(","))) == 1
    ]  # fmt: skip
    todo = [] if args.table else [run for run in runs if run.key not in done]
    if todo:
        model_dir = build_tiny_model(Workspace.current().cache / TINY_NAME)
        with ListeningPlayer() as player:
            for run in todo:
                line = {"key": run.key, **asdict(run), "code": code_version()}
                line |= play(run, player, model_dir)
                lines.append(line)
                with args.out.open("a", encoding="utf-8") as file:
                    print(json.dumps(line), file=file)
                both = [100 * line[where]["attainment"] for where in ("warped", "simulated")]
                cpu_s = line["warped"]["cpu_s"]
                note(f"{run.key}: emulated {both[0]:.1f}, simulated {both[1]:.1f}, {cpu_s:.0f} s")
    rows = summary(lines)
    print_table(HEAD, table_rows(rows))
    turned = reversals(rows)
    gaps = np.array([row["warped"] - row["simulated"] for row in rows] or [np.nan])
    print(
        f"Emulated less simulated {gaps.mean():+.1f} points on the mean, "
        f"{np.abs(gaps).mean():.1f} either way, at most {np.abs(gaps).max():.1f}.",
        *(["Rankings reversed (emulated, simulated):", *turned] if turned else
          ["No ranking reversed."]),
        sep="\n", end="\n\n",
    )  # fmt: skip
    finish("fleet_emulated", {"rows": rows, "reversals": turned})


if __name__ == "__main__":
    main()
