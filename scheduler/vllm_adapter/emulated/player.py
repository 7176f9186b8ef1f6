"""A process that plays jobs on emulated engines in warped time: ``python -m`` this module.

Warped time replaces functions of ``time``, so it needs a process of its own, and that process
imports vLLM once for many jobs. A line on standard input names a job file; a line on standard
output answers with the outcome file, or with the error. All other output goes to standard error.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, TextIO

from lengthwise.data.max_wait import MAX_WAIT_S
from lengthwise.scheduler.serving.wire.answer_length import DEFAULT_LEVELS
from lengthwise.scheduler.vllm_adapter.emulated.warp import WarpClock
from lengthwise.scheduler.vllm_adapter.vllm_config import SCHEDULER_CLASS

ROUTES = ("least-outstanding", "round-robin", "power-of-two", "prefix")  # need no states


@dataclass(frozen=True, slots=True)
class JobRequest:
    """A request of a job; ``xargs`` are what a server's middleware would have added.

    Without ``max_tokens`` an answer may fill the engine's context.
    """

    arrival_s: float
    prompt_tokens: int
    output_tokens: int
    prefix: str | None = None
    prefix_tokens: int = 0
    max_tokens: int | None = None
    xargs: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Job:
    """One run: ``settings`` of our scheduler, None for vLLM's own.

    The ``instances`` are of the profiles that ``profile`` names, with commas, in turn; what our
    planner takes each for is its own where the settings name none. ``route`` is a router's name,
    of ROUTES with vLLM's own scheduler; ``levels`` are those of the requests' quantiles.
    """

    profile: str
    model_dir: str
    requests: tuple[JobRequest, ...]
    settings: Mapping[str, Any] | None = None
    instances: int = 1
    route: str = ROUTES[0]
    levels: tuple[float, ...] = DEFAULT_LEVELS
    host_factor: float = 0.0
    async_scheduling: bool = True
    seed: int = 0

    def write(self, path: Path) -> Path:
        """Write the job as JSON; return the path."""
        path.write_text(json.dumps(asdict(self)), encoding="utf-8")
        return path

    @classmethod
    def read(cls, path: Path) -> Job:
        """The inverse of ``write``."""
        values = json.loads(path.read_text(encoding="utf-8"))
        values["requests"] = tuple(JobRequest(**row) for row in values["requests"])
        values["levels"] = tuple(values["levels"])
        return cls(**values)


@dataclass(frozen=True, slots=True)
class JobOutcome:
    """What happened, a row a request in the order of the job's; seconds from the job's start.

    ``first_s`` and ``last_s`` are None without a token. ``steps`` has the fields of
    ``StepSummary`` for each engine, ``status`` what our schedulers say of themselves;
    ``prefill_tokens`` counts what was computed, again or for the first time, not what was cached.
    ``router`` is the router's status.
    """

    first_s: list[float | None]
    last_s: list[float | None]
    tokens: list[int]
    engine: list[int]
    steps: list[dict[str, Any]]
    status: list[dict[str, Any] | None]
    plan_s: list[float]
    preemptions: int
    prefill_tokens: int
    host_cpu_ms_p50: float
    host_cpu_ms_p99: float
    virtual_s: float
    cpu_s: float
    router: dict[str, Any]

    def write(self, path: Path) -> Path:
        """Write the outcome as JSON; return the path."""
        path.write_text(json.dumps(asdict(self)), encoding="utf-8")
        return path

    @classmethod
    def read(cls, path: Path) -> JobOutcome:
        """The inverse of ``write``."""
        return cls(**json.loads(path.read_text(encoding="utf-8")))


def run_job(job: Job, clock: WarpClock) -> JobOutcome:
    """Play one job on fresh engines, by the process's installed clock."""
    clock.restart(job.host_factor)
    with tempfile.TemporaryDirectory(prefix="lengthwise-player-") as scratch:
        return _played(job, clock, Path(scratch))


def _played(job: Job, clock: WarpClock, scratch: Path) -> JobOutcome:
    import time

    import numpy as np

    from lengthwise.scheduler.fleet.make_router import make_router
    from lengthwise.scheduler.profile import load_profile
    from lengthwise.scheduler.vllm_adapter.emulated import fleet
    from lengthwise.scheduler.vllm_adapter.emulated.emulated_front import EngineRequest, Front
    from lengthwise.scheduler.vllm_adapter.emulated.prompts import prompt_token_ids
    from lengthwise.scheduler.vllm_adapter.worker.replay import write_replay_table

    names = [f"q{index}" for index in range(len(job.requests))]
    table = scratch / "lengths.json"
    write_replay_table(
        table, {name: r.output_tokens for name, r in zip(names, job.requests, strict=True)}
    )
    prompts = prompt_token_ids(job.requests, job.seed)
    profiles = profiles_in_turn(job.profile, job.instances)
    engines = [
        fleet.Engine(
            fleet.make_core(
                profile,
                job.model_dir,
                settings=_of_engine(job.settings, profile),
                scheduler_cls=None if job.settings is None else SCHEDULER_CLASS,
                replay_table=table,
                async_scheduling=job.async_scheduling,
            )
        )
        for profile in profiles
    ]
    context_tokens = min(int(e.core.vllm_config.model_config.max_model_len) for e in engines)
    paced = [
        plans for engine in engines if (plans := fleet.paced_planner(engine, clock)) is not None
    ]
    requests = [
        EngineRequest(
            name,
            r.arrival_s,
            prompt,
            r.max_tokens or max(1, context_tokens - len(prompt)),
            dict(r.xargs),
            r.prefix,
            r.prefix_tokens,
        )
        for name, r, prompt in zip(names, job.requests, prompts, strict=True)
    ]
    levels = np.array(job.levels)
    router = make_router(
        job.route,
        levels,
        policy="fcfs" if job.settings is None else str(job.settings.get("policy", "sa")),
        rng=np.random.default_rng(job.seed),
        max_wait_s=float((job.settings or {}).get("max_wait_s", MAX_WAIT_S)),
    )
    front = Front(router, engines, [load_profile(name) for name in profiles], levels)
    clock.restart(job.host_factor)
    began_cpu_s = time.process_time()
    served = fleet.play(clock, engines, requests, front)
    cpu_s = time.process_time() - began_cpu_s
    clock.set(max(engine.at_s for engine in engines))
    rows = [served[name] for name in names]
    host_ms = 1e3 * np.concatenate([engine.host_cpu_s for engine in engines])
    outcome = JobOutcome(
        first_s=[row.first_s for row in rows],
        last_s=[row.last_s for row in rows],
        tokens=[row.tokens for row in rows],
        engine=[row.engine for row in rows],
        steps=[asdict(engine.steps()) for engine in engines],
        status=[engine.status() for engine in engines],
        plan_s=[seconds for plans in paced if plans for seconds in plans.plan_s],
        preemptions=sum(engine.preemptions for engine in engines),
        prefill_tokens=sum(engine.prefill_tokens for engine in engines),
        host_cpu_ms_p50=float(np.quantile(host_ms, 0.5)),
        host_cpu_ms_p99=float(np.quantile(host_ms, 0.99)),
        virtual_s=max((row.last_s for row in rows if row.last_s is not None), default=0.0),
        cpu_s=cpu_s,
        router=front.status(clock.now()),
    )
    for engine in engines:
        engine.close()
    return outcome


def profiles_in_turn(names: str, instances: int) -> list[str]:
    """The profile of each instance: those named, with commas, in turn."""
    each = [name.strip() for name in names.split(",")]
    return [each[i % len(each)] for i in range(instances)]


def _of_engine(settings: Mapping[str, Any] | None, profile: str) -> Mapping[str, Any] | None:
    if settings is None or settings.get("profile") is not None:
        return settings
    return {**settings, "profile": profile}


@contextmanager
def _answers_alone() -> Iterator[TextIO]:
    """The standard output for our answers; what libraries print goes to standard error."""
    kept = os.fdopen(os.dup(1), "w", encoding="utf-8", buffering=1)
    os.dup2(2, 1)
    try:
        yield kept
    finally:
        kept.close()


def main() -> None:
    """Play the jobs named on standard input until it ends."""
    with _answers_alone() as answers, WarpClock().installed() as clock:
        for line in sys.stdin:
            path = Path(line.strip())
            try:
                outcome = run_job(Job.read(path), clock).write(path.with_suffix(".outcome.json"))
                answer: dict[str, str] = {"outcome": str(outcome)}
            except Exception as error:  # the caller says what was wrong with the job
                answer = {"error": f"{type(error).__name__}: {error}"}
            print(json.dumps(answer), file=answers)


if __name__ == "__main__":
    main()
