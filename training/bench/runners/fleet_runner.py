"""Several modelled engines behind a router as a runner: the arms are routers times policies."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from lengthwise.data.errors import InputError
from lengthwise.data.max_wait import MAX_WAIT_S
from lengthwise.data.workload import WorkloadRequest
from lengthwise.scheduler.fleet.fleet_router import FleetRouter
from lengthwise.scheduler.fleet.make_router import ROUTERS, make_router
from lengthwise.scheduler.policies.policy import Policy
from lengthwise.scheduler.profile import EngineProfile
from lengthwise.scheduler.simulator.fleet_run import simulate_fleet
from lengthwise.scheduler.simulator.fleet_terms import FleetPlace, FleetResult
from lengthwise.scheduler.simulator.sim_workload import SimWorkload
from lengthwise.training.bench.comparison.arms import Arm
from lengthwise.training.bench.comparison.compare import Run, Tick, no_tick
from lengthwise.training.bench.comparison.workload_source import (
    WorkloadSource,
    capacity_rps,
    check_fit,
    cut_at_max_tokens,
    to_sim,
)
from lengthwise.training.bench.results.result import Provenance
from lengthwise.training.bench.runners.simulator_runner import (
    KnownLengths,
    policy_seed,
    run_of,
    simulated_policy,
)


def parse_routers(text: str) -> tuple[str, ...]:
    """Comma-separated names of routers, each once; InputError for one that does not exist."""
    names = tuple(part.strip() for part in text.split(",") if part.strip())
    for name in names:
        if name not in ROUTERS:
            raise InputError(f"unknown router {name!r}: must be one of {', '.join(ROUTERS)}")
    if not names or len(set(names)) < len(names):
        raise InputError(f"give each router once, got {text!r}")
    return names


def routed(arms: Sequence[Arm], routers: Sequence[str]) -> tuple[Arm, ...]:
    """Every arm behind every router; the arms as they are where there is none."""
    if not routers:
        return tuple(arms)
    return tuple(replace(arm, router=router) for router in routers for arm in arms)


def fleet_capacity_rps(source: WorkloadSource, profiles: Sequence[EngineProfile]) -> float:
    """Requests/s that are load 1 of a fleet: those of its instances together."""
    by_name = {profile.name: capacity_rps(source, profile) for profile in profiles}
    return sum(by_name[profile.name] for profile in profiles)


@dataclass(frozen=True, slots=True)
class FleetPlay:
    """One run, as it is handed to another process."""

    workload: SimWorkload
    profiles: tuple[EngineProfile, ...]
    router: str
    policy: str
    params: tuple[tuple[str, Any], ...]
    seed: int
    plan_budget_s: float | None
    max_wait_s: float


def play_fleet(task: FleetPlay) -> FleetResult:
    """The run's outcome; without a plan budget it depends on the task alone."""

    def policy_of(i: int) -> Policy | None:
        # the first like one engine by itself
        if task.policy == "fcfs":
            return None  # what an engine does by itself, and nothing to plan
        return simulated_policy(task.policy, task.seed + i, task.plan_budget_s, **dict(task.params))

    router: FleetRouter = make_router(
        task.router,
        task.workload.levels,
        policy=task.policy,
        rng=np.random.default_rng(task.seed),
        max_wait_s=task.max_wait_s,
    )
    return simulate_fleet(
        task.workload,
        router,
        [FleetPlace(profile) for profile in task.profiles],
        policy_of,
        max_wait_s=task.max_wait_s,
    )


class FleetRunner:
    """Plays the requests on several engines behind each arm's router; see `SimulatorRunner`."""

    provenance: Provenance = "modeled"
    base_arms: tuple[Arm, ...] = ()

    def __init__(
        self,
        profiles: Sequence[EngineProfile],
        lengths: KnownLengths,
        *,
        plan_budget_s: float | None = None,
        max_wait_s: float = MAX_WAIT_S,
        seed: int = 0,
        pool: Executor | None = None,
    ) -> None:
        self.profiles = tuple(profiles)
        kinds = ", ".join(dict.fromkeys(profile.name for profile in profiles))
        self.engine = f"simulator, {len(profiles)} instances, profile {kinds}"
        self._lengths = lengths
        self._plan_budget_s = plan_budget_s
        self._max_wait_s = max_wait_s
        self._seed = seed
        self._pool = pool

    def start(self, source: WorkloadSource) -> None:
        """Nothing to get ready."""

    def run(
        self, arm: Arm, requests: Sequence[WorkloadRequest], repeat: int, tick: Tick = no_tick
    ) -> Run:
        """One run of one arm; InputError for a request that an instance cannot hold."""
        for profile in self.profiles:
            check_fit(requests, profile)
        if arm.router is None:
            raise InputError(f"arm {arm.label!r} has no router")
        rows, levels = self._lengths(arm, requests)
        task = FleetPlay(
            to_sim(requests, cut_at_max_tokens(rows, requests), levels),
            self.profiles,
            arm.router,
            arm.policy,
            arm.params,
            policy_seed(arm, self._seed + repeat),
            self._plan_budget_s,
            self._max_wait_s,
        )
        done = (
            play_fleet(task) if self._pool is None else self._pool.submit(play_fleet, task).result()
        )
        for _ in requests:
            tick()
        return run_of(arm, requests, repeat, done, rows, levels)

    def describe(self) -> dict[str, Any]:
        """Instances and search."""
        budget_s = self._plan_budget_s
        return {
            "instances": len(self.profiles),
            "profile": ",".join(dict.fromkeys(profile.name for profile in self.profiles)),
            "profile_provenance": self.profiles[0].provenance,
            "plan_budget_ms": None if budget_s is None else budget_s * 1e3,
            "max_wait_s": self._max_wait_s,
        }
