"""Routers times policies on fleets of several instances, in the simulator.

    python -m benchmarks.simulator.fleets.fleet_arms --out fleet.jsonl

A cell is a fleet (how many instances, of which profiles in turn), a workload, a load and a policy
that all instances serve by; its arms are the routers, on the same requests, seed by seed.
Differences are to the base router, paired over seeds, with 95 % intervals. ``--conditions all``
plays what may happen as well: states late, lost or out of order, an instance that dies, joins,
hangs, slows or begins anew, two fronts. ``--pooled`` adds one engine of all slots as a bound,
where the instances are equal and nothing happens.
"""

from __future__ import annotations

import argparse
import os
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.common import finish, interval, plain_parser, played, print_table
from benchmarks.simulator.cells import predictor_of
from lengthwise.scheduler.fleet.make_router import ROUTERS, make_router
from lengthwise.scheduler.profile import load_profile
from lengthwise.scheduler.simulator.fleet_run import simulate_fleet
from lengthwise.scheduler.simulator.fleet_terms import (
    FleetConditions,
    FleetPlace,
    pooled_profile,
)
from lengthwise.scheduler.simulator.run import simulate
from lengthwise.training.bench.comparison.workload_source import (
    WorkloadSource,
    length_rows,
    open_workload,
    to_sim,
)
from lengthwise.training.bench.runners.fleet_runner import fleet_capacity_rps
from lengthwise.training.bench.runners.simulator_runner import simulated_policy

FLEETS = ("shape-many-slots", "shape-many-slots,shape-slow-steps")
POOLED = "pooled"


@dataclass(frozen=True, slots=True)
class Happening:
    """How states travel, what befalls some places (by number), and how many fronts there are."""

    conditions: FleetConditions = field(default_factory=FleetConditions)
    places: Mapping[int, Mapping[str, Any]] = field(default_factory=dict)
    fronts: int = 1


def on_one(**what: Any) -> Happening:
    """This befalls instance 1, and is found out half a second later."""
    return Happening(FleetConditions(detect_s=0.5), {1: what})


CONDITIONS: dict[str, Happening] = {
    "as usual": Happening(),
    "states 0.5 s late": Happening(FleetConditions(state_delay_s=0.5)),
    "states 2 s late": Happening(FleetConditions(state_delay_s=2.0)),
    "states 4 s late": Happening(FleetConditions(state_delay_s=4.0)),
    "states 10 s late": Happening(FleetConditions(state_delay_s=10.0)),
    "states out of order": Happening(FleetConditions(state_jitter_s=1.0)),
    "half of the states lost": Happening(FleetConditions(state_loss=0.5)),
    "no states at all": Happening(FleetConditions(state_loss=1.0)),
    "one dies": on_one(dies_s=20.0),
    "one joins": Happening(places={-1: {"joins_s": 20.0}}),
    "one begins anew": on_one(restarts_s=20.0),
    "one hangs for 10 s": on_one(hangs_s=(20.0, 30.0)),
    "one hangs and dies 30 s later": on_one(hangs_s=(20.0, np.inf), dies_s=50.0),
    "one slows to a third": on_one(slows_s=20.0),
    "one slows to a third, refitted after 5 s": on_one(slows_s=20.0, refit_s=5.0),
    "two fronts": Happening(fronts=2),
}


@dataclass(frozen=True, slots=True)
class FleetCell:
    """One setting and one draw of its requests, played by all routers."""

    instances: int
    profiles: str
    workload: str
    load: float
    policy: str
    lengths: str
    seed: int
    requests: int
    routers: tuple[str, ...]
    conditions: str = "as usual"
    pooled: bool = False


@lru_cache(maxsize=8)
def source_of(workload: str, profile: str) -> WorkloadSource:
    return open_workload(workload, profile=load_profile(profile))


@lru_cache(maxsize=16)
def capacity_of(workload: str, profiles: tuple[str, ...]) -> float:
    kinds = [load_profile(name) for name in profiles]
    return fleet_capacity_rps(source_of(workload, profiles[0]), kinds)


def play(cell: FleetCell) -> dict[str, Any]:
    """The cell with each router's attainment and times."""
    kinds = cell.profiles.split(",")
    names = tuple(kinds[i % len(kinds)] for i in range(cell.instances))
    source = source_of(cell.workload, names[0])
    requests = source.draw(cell.requests, cell.load * capacity_of(cell.workload, names), cell.seed)
    predictor = predictor_of(source.source_label) if cell.lengths == "learned" else None
    rows, levels = length_rows(requests, cell.lengths, predictor)
    workload = to_sim(requests, rows, levels)
    happening = CONDITIONS[cell.conditions]
    places = [FleetPlace(load_profile(name)) for name in names]
    for i, what in happening.places.items():
        places[i] = FleetPlace(places[i].profile, **what)
    arms = {}
    for name in cell.routers:
        routers = [
            make_router(name, levels, policy=cell.policy, rng=np.random.default_rng(cell.seed + r))
            for r in range(happening.fronts)
        ]
        result = simulate_fleet(
            workload,
            routers,
            places,
            lambda i: None if cell.policy == "fcfs" else simulated_policy(cell.policy, i),
            conditions=happening.conditions,
            rng=np.random.default_rng(cell.seed),
        )
        decide_us = 1e6 * np.array(result.decide_s)
        arms[name] = {
            "attainment": float(result.met(workload).mean()),
            "lost": int(result.lost.sum()),
            "sent_again": int((result.sends > 1).sum()),
            "mean_ttft_s": float(np.nanmean(result.first_token_s - workload.arrival_s)),
            "decide_us_p50": float(np.median(decide_us)),
            "decide_us_p99": float(np.quantile(decide_us, 0.99)),
        }
    if cell.pooled and len(kinds) == 1 and happening == CONDITIONS["as usual"]:
        engine = pooled_profile(places[0].profile, cell.instances)
        alone = simulate(workload, simulated_policy(cell.policy, 0), engine)
        arms[POOLED] = {
            "attainment": float(alone.met(workload).mean()),
            "lost": 0,
            "sent_again": 0,
            "mean_ttft_s": float(np.nanmean(alone.first_token_s - workload.arrival_s)),
            "decide_us_p50": float("nan"),
            "decide_us_p99": float("nan"),
        }
    return asdict(cell) | {"arms": arms}


def cells_of(args: argparse.Namespace) -> list[FleetCell]:
    conditions = list(CONDITIONS) if "all" in args.conditions else args.conditions
    return [
        FleetCell(
            instances, profiles, workload, load, policy, args.lengths, seed,
            args.requests * instances, tuple(args.routers), condition, args.pooled,
        )
        for instances in args.instances
        for profiles in args.profiles
        for workload in args.workloads
        for load in args.loads
        for policy in args.policies
        for condition in conditions
        for seed in range(args.first_seed, args.first_seed + args.seeds)
    ]  # fmt: skip


def summary(lines: Sequence[dict[str, Any]], base: str) -> list[dict[str, Any]]:
    """A row a cell and router: attainment, its difference to the base's, what was lost."""
    groups: dict[tuple[Any, ...], list[dict[str, Any]]] = defaultdict(list)
    for line in lines:
        names = ("instances", "profiles", "workload", "load", "policy", "conditions")
        groups[tuple(line[name] for name in names)].append(line["arms"])
    rows = []
    for cell, draws in groups.items():
        for router in draws[0]:
            difference, half = interval(
                [100 * (arms[router]["attainment"] - arms[base]["attainment"]) for arms in draws]
            )
            own = [arms[router] for arms in draws]
            rows.append(
                {
                    "cell": cell,
                    "router": router,
                    "attainment": 100 * float(np.mean([arm["attainment"] for arm in own])),
                    "difference": difference,
                    "half": half,
                    "lost": sum(arm["lost"] for arm in own),
                    "decide_us_p50": float(np.median([arm["decide_us_p50"] for arm in own])),
                }
            )
    return rows


def main() -> None:
    """Play the cells, print the table, end in the document."""
    parser = plain_parser(__doc__)
    parser.add_argument("--out", type=Path, required=True, help="a line a cell and seed")
    parser.add_argument("--instances", type=int, nargs="+", default=[4, 8])
    parser.add_argument("--profiles", nargs="+", default=list(FLEETS), help="in turn, by comma")
    parser.add_argument("--workloads", nargs="+", default=["mixed", "agents", "documents"])
    parser.add_argument("--loads", type=float, nargs="+", default=[0.8, 1.2])
    parser.add_argument("--policies", nargs="+", default=["fcfs", "feasible-edf", "sa"])
    parser.add_argument("--routers", nargs="+", choices=ROUTERS, default=list(ROUTERS))
    parser.add_argument("--base", choices=ROUTERS, default="least-outstanding")
    parser.add_argument("--lengths", default="class", help="oracle, learned, class or none")
    parser.add_argument("--requests", type=int, default=500, help="an instance")
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--pooled", action="store_true", help="one engine of all slots as well")
    parser.add_argument(
        "--conditions", nargs="+", choices=[*CONDITIONS, "all"], default=["as usual"]
    )
    args = parser.parse_args()
    if args.base not in args.routers:
        parser.error(f"the base {args.base} is not among the routers")
    os.environ["OMP_NUM_THREADS"] = "1"  # of the workers: a core each
    rows = summary(played(play, cells_of(args), args.jobs, args.out), args.base)
    print_table(
        ["instances", "profiles", "workload", "load", "policy", "conditions", "router", "met, %",
         f"less {args.base}", "lost", "decision, µs"],
        [
            [*row["cell"], row["router"], f"{row['attainment']:.1f}",
             f"{row['difference']:+.1f} ± {row['half']:.1f}", row["lost"],
             f"{row['decide_us_p50']:.0f}"]
            for row in rows
        ],
    )  # fmt: skip
    finish("fleet_arms", rows)


if __name__ == "__main__":
    main()
