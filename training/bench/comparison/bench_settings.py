"""What a comparison is told: one set of settings for `simulate`, `bench`, `demo` and the judges."""

from __future__ import annotations

import math
from dataclasses import dataclass

from lengthwise.data.errors import InputError
from lengthwise.data.max_wait import MAX_WAIT_S
from lengthwise.training.bench.comparison.arms import Arm
from lengthwise.training.bench.comparison.workload_source import WorkloadSource
from lengthwise.training.bench.engines.generation import Generation

ARENA_DURATION_S = 60.0
ARENA_REPEATS = 3


@dataclass(frozen=True, slots=True)
class BenchSettings:
    """What is compared, on which requests, how often; the command line fills it.

    `load` is in multiples of the capacity; None keeps a file's own arrivals. Of a named workload
    `requests` a repeat are drawn, else what arrives in `duration_s` (60); a file is played whole,
    once, unless `requests` or `repeats` say otherwise. `capacity_rps` is the requests/s that are
    load 1, None for what the engine profile says. `plan_budget_ms` is the longest search for one
    plan, None for the engine's own setting, and in the simulator for a fixed number of steps.
    `profile` (a name or path), `recalibrate`, `model` and `vllm_args` say which engine. `emulate`
    is the profile of a device that takes the engine's place; `profile` is then what the planner
    takes it for. `instances` of the profiles, which take turns where several stand in `profile`
    with commas, serve behind each of the `routers`; without routers there is one instance. With
    `generation` the served model ends its answers itself, else lengths are replayed.
    """

    arms: tuple[Arm, ...]
    workload: str = "paper"
    source: str | None = None
    arrivals: str = "poisson"
    load: float | None = None
    requests: int | None = None
    duration_s: float | None = None
    repeats: int | None = None
    seed: int = 0
    capacity_rps: float | None = None
    predictor: str | None = None
    profile: str | None = None
    plan_budget_ms: float | None = None
    max_wait_s: float = MAX_WAIT_S
    timeout_s: float = 600.0
    model: str = "tiny"
    recalibrate: bool = False
    vllm_args: tuple[str, ...] = ()
    emulate: str | None = None
    instances: int = 1
    routers: tuple[str, ...] = ()
    generation: Generation | None = None

    def __post_init__(self) -> None:
        positive = {
            "load": self.load,
            "capacity": self.capacity_rps,
            "requests": self.requests,
            "duration": self.duration_s,
            "repeats": self.repeats,
            "timeout": self.timeout_s,
            "plan budget": self.plan_budget_ms,
            "max wait": self.max_wait_s,
        }
        for name, value in positive.items():
            if value is not None and not (value > 0 and math.isfinite(value)):
                raise InputError(f"{name} must be above 0, got {value:g}")
        if self.instances < 1 or (self.instances > 1 and not self.routers):
            raise InputError(f"{self.instances} instances need a router")

    def count(self, source: WorkloadSource, capacity_rps: float | None) -> int:
        """Requests per repeat."""
        most = len(source.requests) if source.table is None else None
        if self.requests is not None:
            wanted = self.requests
        elif most is not None and self.duration_s is None:
            wanted = most
        elif most is not None and self.load is None and self.duration_s is not None:
            end_s = source.requests[0].arrival_s + self.duration_s
            wanted = sum(r.arrival_s <= end_s for r in source.requests)
        else:
            seconds = self.duration_s or ARENA_DURATION_S
            wanted = max(1, round(self.rate_rps(source, capacity_rps) * seconds))
        return wanted if most is None else min(wanted, most)

    def times(self, source: WorkloadSource) -> int:
        """How often every arm runs."""
        return self.repeats or (1 if source.table is None else ARENA_REPEATS)

    def rate_rps(self, source: WorkloadSource, capacity_rps: float | None) -> float:
        """Requests/s to draw at, given what load 1 is.

        Raises:
            InputError: no load, where the workload has no pace of its own.
        """
        if self.load is None or capacity_rps is None:
            raise InputError(f"workload {source.name!r} has no pace of its own: give a load")
        return self.load * capacity_rps
