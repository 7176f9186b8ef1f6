"""Real engine cores in warped time as a runner: stock vLLM's scheduler and ours, no server.

Each run is a job for a player process (see `scheduler/vllm_adapter/emulated`) on fresh engines.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any

import numpy as np

from lengthwise.data.arrays import FloatArray
from lengthwise.data.errors import InputError
from lengthwise.data.max_wait import MAX_WAIT_S
from lengthwise.data.workload import WorkloadRequest
from lengthwise.scheduler.policies.make import make_policy
from lengthwise.scheduler.profile import EngineProfile
from lengthwise.scheduler.serving.settings import make_settings
from lengthwise.scheduler.serving.wire.answer_length import DEFAULT_LEVELS
from lengthwise.scheduler.vllm_adapter.emulated.emulated_steps import StepSummary
from lengthwise.scheduler.vllm_adapter.emulated.options import context_tokens, emulable_profile
from lengthwise.scheduler.vllm_adapter.emulated.player import (
    ROUTES,
    Job,
    JobOutcome,
    JobRequest,
    profiles_in_turn,
)
from lengthwise.scheduler.vllm_adapter.emulated.player_process import PlayerProcess
from lengthwise.training.bench.comparison.arms import STOCK_ARM, Arm
from lengthwise.training.bench.comparison.compare import Comparison, PlanTimes, Run, Tick, no_tick
from lengthwise.training.bench.comparison.workload_source import (
    WorkloadSource,
    check_fit,
    cut_at_max_tokens,
)
from lengthwise.training.bench.results.emulation import (
    emulation_of,
    load_average,
    profile_sha256,
    step_figures,
)
from lengthwise.training.bench.results.provenance import describe_machine, engine_version
from lengthwise.training.bench.results.result import Provenance
from lengthwise.training.bench.runners.modeled import median_tokens, queue_samples, to_records
from lengthwise.training.bench.runners.simulator_runner import FIXED_SEARCH, KnownLengths
from lengthwise.training.bench.runners.simulator_runner import plan_times as times_of

if TYPE_CHECKING:
    from lengthwise.predictor.model import LengthPredictor

KnownFeatures = Callable[[Sequence[WorkloadRequest]], np.ndarray]


@dataclass(frozen=True, slots=True)
class WarpSettings:
    """How warped time is played.

    `instances` engines side by side behind each of the `routers`, which are the arms'; without
    any, and for stock vLLM, behind `route`. `search_steps`: of the
    annealing a plan, None for its own number. `host_factor` charges the clock with the host's
    processor time so many times; 0 makes a run repeat to the bit. `planned_profile`: what our
    planner takes the engine for, None for what it is. `jobs`: player processes.
    """

    instances: int = 1
    route: str = ROUTES[0]
    routers: tuple[str, ...] = ()
    search_steps: int | None = None
    host_factor: float = 0.0
    planned_profile: str | None = None
    max_wait_s: float = MAX_WAIT_S
    seed: int = 0
    jobs: int = 1

    def __post_init__(self) -> None:
        for name in ("instances", "max_wait_s", "jobs"):
            value = getattr(self, name)
            if not (value > 0 and math.isfinite(value)):
                raise InputError(f"{name} must be above 0, got {value:g}")
        if self.search_steps is not None and self.search_steps < 0:
            raise InputError(f"search_steps must not be negative, got {self.search_steps}")
        if self.route not in ROUTES:
            raise InputError(f"route must be one of {', '.join(ROUTES)}, got {self.route!r}")
        if not 0 <= self.host_factor <= 100:
            raise InputError(f"host_factor must lie from 0 to 100, got {self.host_factor:g}")


class WarpedRunner:
    """Plays the requests on emulated engines; stock vLLM is the base.

    `device` names their profiles or files, with commas, which the instances take in turn; `profile`
    is the first. In `predictor_dir` our schedulers find the classes' lengths; `features` are what
    learned lengths were read from. Runs do not disturb each other: `compare` may have as many
    workers as players.
    """

    provenance: Provenance = "emulated, warped"

    def __init__(
        self,
        players: Sequence[PlayerProcess],
        device: str,
        profile: EngineProfile,
        model_dir: Path,
        lengths: KnownLengths,
        settings: WarpSettings | None = None,
        predictor_dir: Path | None = None,
        features: KnownFeatures | None = None,
    ) -> None:
        self.profile = profile
        self.settings = settings or WarpSettings()
        names = profiles_in_turn(device, self.settings.instances)
        self.profiles = [emulable_profile(name) for name in names]
        self.engine = f"{engine_version()}, device {self._device_names}"
        routed = self.settings.route if self.settings.routers else None
        self.base_arms: tuple[Arm, ...] = (replace(STOCK_ARM, router=routed),)
        self._device = device
        self._model_dir = model_dir
        self._lengths = lengths
        self._predictor_dir = predictor_dir
        self._features = features
        self._load = load_average()
        self._outcomes: dict[str, list[JobOutcome]] = defaultdict(list)
        self._players: SimpleQueue[PlayerProcess] = SimpleQueue()
        for player in players:
            self._players.put(player)

    @property
    def _device_names(self) -> str:
        return ", ".join(dict.fromkeys(profile.name for profile in self.profiles))

    def start(self, source: WorkloadSource) -> None:
        """Nothing to get ready."""

    def run(
        self, arm: Arm, requests: Sequence[WorkloadRequest], repeat: int, tick: Tick = no_tick
    ) -> Run:
        """One run of one arm on fresh engines; InputError for a request they cannot hold."""
        for profile in self.profiles:
            check_fit(requests, profile)
            check_context(requests, context_tokens(profile))
        seed = self.settings.seed + repeat
        told = None if arm.is_stock else self._lengths(arm, requests)
        rows = None if told is None else cut_at_max_tokens(told[0], requests)
        features = None
        if self._features is not None and arm.lengths == "learned":
            features = self._features(requests)
        job = Job(
            profile=self._device,
            model_dir=str(self._model_dir),
            requests=tuple(job_requests(requests, rows, features)),
            settings=None if arm.is_stock else self._server_settings(arm, seed),
            instances=self.settings.instances,
            route=arm.router or self.settings.route,
            levels=DEFAULT_LEVELS if told is None else tuple(map(float, told[1])),
            host_factor=self.settings.host_factor,
            seed=seed,
        )
        player = self._players.get()
        try:
            outcome = player.run(job)
        finally:
            self._players.put(player)
        self._outcomes[arm.label].append(outcome)
        self._load = max(self._load, load_average())
        for _ in requests:
            tick()
        predicted = None
        if told is not None and arm.lengths == "learned":
            predicted = median_tokens(*told)
        first_s, last_s = _seconds(outcome.first_s), _seconds(outcome.last_s)
        return Run(
            repeat,
            to_records(requests, first_s, last_s, outcome.tokens, repeat, predicted),
            queue_samples(requests, first_s, last_s, outcome.virtual_s),
            None if arm.is_stock else plan_times(outcome),
        )

    def describe(self) -> dict[str, Any]:
        """Profile, how it was played, and the machine."""
        settings = self.settings
        return {
            "profile": self._device_names,
            "profile_provenance": self.profile.provenance,
            "planned_profile": settings.planned_profile,
            "machine": describe_machine(),
            "instances": settings.instances,
            "route": settings.route if settings.instances > 1 else None,
            "routers": list(settings.routers) or None,
            "search_steps": settings.search_steps,
            "max_wait_s": settings.max_wait_s,
        }

    def judged(self, outcome: Comparison) -> Comparison:
        """The outcome of a comparison by this runner, with what its steps say of it."""
        steps = {
            label: [StepSummary(**values) for run in runs for values in run.steps]
            for label, runs in self._outcomes.items()
        }
        facts = emulation_of(
            self.profile,
            [summary for own in steps.values() for summary in own],
            load_average=self._load,
            instances=self.settings.instances,
            host_factor=self.settings.host_factor,
        )
        if len(set(self.profiles)) > 1:
            several = dict.fromkeys(profile_sha256(profile) for profile in self.profiles)
            names = {"profile": self._device_names, "profile_sha256": ", ".join(several)}
            facts = facts.model_copy(update=names)
        diagnostics = {
            label: checks | step_figures(steps[label]) | run_figures(self._outcomes[label])
            for label, checks in outcome.result.diagnostics.items()
        }
        result = outcome.result.model_copy(update={"emulation": facts, "diagnostics": diagnostics})
        return replace(outcome, result=result)

    def _server_settings(self, arm: Arm, seed: int) -> dict[str, Any]:
        params = {**FIXED_SEARCH.get(arm.policy, {}), **dict(arm.params)}
        if arm.policy == "sa":
            steps = self.settings.search_steps
            own = getattr(make_policy("sa", budget_s=None), "iterations", None)
            params.setdefault("iterations", own if steps is None else steps)
        values: dict[str, Any] = {
            "policy": arm.policy,
            "policy_params": params,
            # rows are told for these too, since without a predictor the engine has no classes
            "lengths": "class" if arm.lengths == "none" else arm.lengths,
            "predictor_dir": None if self._predictor_dir is None else str(self._predictor_dir),
            "max_wait_s": self.settings.max_wait_s,
            "profile": self.settings.planned_profile,  # None: what each engine is
            "refit_steps": 0,
            "seed": seed,
        }
        return make_settings(values).model_dump(mode="json")


def check_context(requests: Sequence[WorkloadRequest], most_tokens: int) -> None:
    """InputError for a request that is longer than the engine's context."""
    for index, request in enumerate(requests):
        if request.prompt_tokens + request.output_tokens > most_tokens:
            raise InputError(
                f"request {index} has {request.prompt_tokens} prompt and {request.output_tokens} "
                f"output tokens; this engine's context has {most_tokens}"
            )


def features_of(predictor: LengthPredictor) -> KnownFeatures:
    """What the predictor reads of requests' prompts, (n, f)."""

    def rows(requests: Sequence[WorkloadRequest]) -> np.ndarray:
        classes = [request.slo.slo_class for request in requests]
        tokens = [request.readable_tokens for request in requests]
        return predictor.features([request.prompt for request in requests], classes, tokens)

    return rows


def job_requests(
    requests: Sequence[WorkloadRequest],
    rows: np.ndarray | None,
    features: np.ndarray | None = None,
) -> list[JobRequest]:
    """The requests as a server's middleware would pass them on, with length quantiles (n, q) and
    what the predictor read (n, f)."""
    made = []
    for index, request in enumerate(requests):
        xargs = dict(request.slo.to_xargs())
        if rows is not None:
            row = np.maximum.accumulate(np.maximum(np.round(rows[index], 2), 1.0))
            xargs["pred_quantiles"] = row.tolist()
        if features is not None:
            xargs["lw_features"] = np.nan_to_num(features[index]).tolist()
        made.append(
            JobRequest(
                arrival_s=request.arrival_s,
                prompt_tokens=request.prompt_tokens,
                output_tokens=request.output_tokens,
                max_tokens=request.max_tokens,
                prefix=request.prefix,
                prefix_tokens=request.prefix_tokens or 0,
                xargs=xargs,
            )
        )
    return made


def _seconds(times: Sequence[float | None]) -> FloatArray:
    """Infinite where there is none."""
    return np.array([np.inf if at is None else at for at in times])


def plan_times(outcome: JobOutcome) -> PlanTimes:
    """Plans of all engines; their times are real ones, though the clock did not charge them."""
    fallbacks = sum(
        sum((status["plan"].get("fallbacks") or {}).values())
        for status in outcome.status
        if status is not None
    )
    return replace(times_of(outcome.plan_s), fallbacks=fallbacks)


def run_figures(runs: Sequence[JobOutcome]) -> dict[str, Any]:
    """What the engines say of an arm's runs."""
    statuses = [status for run in runs for status in run.status if status is not None]
    return {
        "preemptions": sum(run.preemptions for run in runs),
        "yields": sum(int(status["queue"].get("yields", 0)) for status in statuses),
        "prefill_tokens": sum(run.prefill_tokens for run in runs),
        **({"router": runs[-1].router} if runs and len(runs[-1].steps) > 1 else {}),
        "host_cpu_ms_p50": float(np.mean([run.host_cpu_ms_p50 for run in runs])),
        "host_cpu_ms_p99": max(run.host_cpu_ms_p99 for run in runs),
        "virtual_s": sum(run.virtual_s for run in runs),
        "cpu_s": sum(run.cpu_s for run in runs),
    }
