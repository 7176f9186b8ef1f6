"""The simulator as a runner: any policy on a modelled engine, in the same terms as the real one."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Executor, ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing import get_context
from typing import TYPE_CHECKING, Any

import numpy as np

from lengthwise.data.errors import InputError
from lengthwise.data.max_wait import MAX_WAIT_S
from lengthwise.data.slo import SloTable
from lengthwise.data.workload import WorkloadRequest
from lengthwise.scheduler.lmdeploy_adapter.lmdeploy_environment import environment_python
from lengthwise.scheduler.lmdeploy_adapter.lmdeploy_player import (
    is_lmdeploy,
    player_of,
    pool_policy,
)
from lengthwise.scheduler.lmdeploy_adapter.play_messages import PoolTask
from lengthwise.scheduler.policies.make import make_policy
from lengthwise.scheduler.policies.policy import Policy
from lengthwise.scheduler.profile import EngineProfile
from lengthwise.scheduler.simulator.bound import attainment_bound
from lengthwise.scheduler.simulator.fleet_terms import FleetResult
from lengthwise.scheduler.simulator.run import simulate
from lengthwise.scheduler.simulator.sim_workload import SimResult, SimWorkload
from lengthwise.training.bench.comparison.arms import Arm
from lengthwise.training.bench.comparison.compare import PlanTimes, Run, Tick, no_tick
from lengthwise.training.bench.comparison.workload_source import (
    WorkloadSource,
    check_fit,
    cut_at_max_tokens,
    length_rows,
    to_sim,
)
from lengthwise.training.bench.results.result import Provenance
from lengthwise.training.bench.runners.modeled import median_tokens, queue_samples, to_records
from lengthwise.training.workspace import Workspace

if TYPE_CHECKING:
    from lengthwise.predictor.model import LengthPredictor

# What a policy searches where nothing limits its time: sa its own number of steps; of the paper's
# schedule, whose 63 temperatures of 100 steps take too long to plan often, about as many.
FIXED_SEARCH: Mapping[str, Mapping[str, Any]] = {"sa-paper": {"steps_per_temperature": 2}}

# what a scheduler knows of an arm's requests: quantiles (n, q) tokens at levels (q,)
KnownLengths = Callable[[Arm, Sequence[WorkloadRequest]], tuple[np.ndarray, np.ndarray]]


def lengths_of(predictor: LengthPredictor | None) -> KnownLengths:
    """Lengths by the arm's source, the learned ones from one predictor.

    InputError for learned ones of requests none of which has a prompt.
    """

    def known(arm: Arm, requests: Sequence[WorkloadRequest]) -> tuple[np.ndarray, np.ndarray]:
        if arm.lengths == "learned" and not any(request.prompt for request in requests):
            raise InputError(
                f"lengths 'learned' are predicted from prompts, and none of {len(requests)} "
                "requests has one; class, oracle and none need none"
            )
        return length_rows(requests, arm.lengths, predictor)

    return known


@dataclass(frozen=True, slots=True)
class Play:
    """One run, as it is handed to another process."""

    workload: SimWorkload
    profile: EngineProfile
    policy: str
    params: tuple[tuple[str, Any], ...]
    seed: int
    plan_budget_s: float | None
    max_wait_s: float


def play(task: Play) -> SimResult:
    """The run's outcome; without a plan budget it depends on the task alone."""
    if is_lmdeploy(task.policy):
        return player_of(environment_python(Workspace.current().cache)).play(pool_task(task))
    policy = simulated_policy(task.policy, task.seed, task.plan_budget_s, **dict(task.params))
    return simulate(task.workload, policy, task.profile, max_wait_s=task.max_wait_s)


def simulated_policy(name: str, seed: int, budget_s: float | None = None, **params: Any) -> Policy:
    """The policy by name; without a budget, seconds a plan, it searches a fixed number of steps."""
    params, nominal_s = _search(name, budget_s, params)
    policy = make_policy(name, budget_s=budget_s, seed=seed, **params)
    if nominal_s is not None:
        policy.nominal_s = nominal_s
    return policy


def pool_task(play: Play) -> PoolTask:
    """The run as LMDeploy's process is told it."""
    policy = pool_policy(play.policy)
    params, nominal_s = _search(policy, play.plan_budget_s, dict(play.params))
    return PoolTask(
        play.workload,
        play.profile,
        policy,
        params,
        play.seed,
        play.plan_budget_s,
        nominal_s,
        play.max_wait_s,
    )


def _search(
    name: str | None, budget_s: float | None, params: dict[str, Any]
) -> tuple[dict[str, Any], float | None]:
    """The policy's parameters, a fixed search where nothing limits its time, and its pace."""
    if budget_s is not None or name not in FIXED_SEARCH:
        return params, None
    # to plan as often as the other that searches
    return {**FIXED_SEARCH[name], **params}, make_policy("sa", budget_s=None).nominal_s


class SimulatorRunner:
    """Plays the requests on a profile's engine.

    `weights` is the SLO table whose weights the planner goes by (1 each without). Without
    `plan_budget_s` a plan searches a fixed number of steps, so that figures do not depend on how
    busy this machine is. `pool` plays runs in other processes, for a `compare` of several workers.
    """

    provenance: Provenance = "modeled"
    base_arms: tuple[Arm, ...] = ()

    def __init__(
        self,
        profile: EngineProfile,
        lengths: KnownLengths,
        *,
        plan_budget_s: float | None = None,
        max_wait_s: float = MAX_WAIT_S,
        weights: SloTable | None = None,
        seed: int = 0,
        pool: Executor | None = None,
    ) -> None:
        self.profile = profile
        self.engine = f"simulator, profile {profile.name}"
        self._lengths = lengths
        self._plan_budget_s = plan_budget_s
        self._max_wait_s = max_wait_s
        self._weights = weights
        self._seed = seed
        self._pool = pool

    def start(self, source: WorkloadSource) -> None:
        """Nothing to get ready."""

    def run(
        self, arm: Arm, requests: Sequence[WorkloadRequest], repeat: int, tick: Tick = no_tick
    ) -> Run:
        """One run of one arm; InputError for a request that the engine cannot hold."""
        check_fit(requests, self.profile)
        rows, levels = self._lengths(arm, requests)
        task = Play(
            to_sim(requests, cut_at_max_tokens(rows, requests), levels, self._weights),
            self.profile,
            arm.policy,
            arm.params,
            policy_seed(arm, self._seed + repeat),
            self._plan_budget_s,
            self._max_wait_s,
        )
        outcome = play(task) if self._pool is None else self._pool.submit(play, task).result()
        for _ in requests:
            tick()
        return run_of(arm, requests, repeat, outcome, rows, levels)

    def bound(self, requests: Sequence[WorkloadRequest]) -> float:
        """The attainment that no scheduler can exceed on these requests."""
        check_fit(requests, self.profile)
        return attainment_bound(to_sim(requests), self.profile)

    def describe(self) -> dict[str, Any]:
        """Profile and search."""
        budget_s = self._plan_budget_s
        return {
            "profile": self.profile.name,
            "profile_provenance": self.profile.provenance,
            "plan_budget_ms": None if budget_s is None else budget_s * 1e3,
            "max_wait_s": self._max_wait_s,
        }


def run_of(
    arm: Arm,
    requests: Sequence[WorkloadRequest],
    repeat: int,
    outcome: SimResult | FleetResult,
    rows: np.ndarray,
    levels: np.ndarray,
) -> Run:
    """What came of the requests; ``rows`` are the quantiles that the scheduler was told."""
    predicted = median_tokens(rows, levels) if arm.lengths == "learned" else None
    return Run(
        repeat,
        to_records(
            requests,
            outcome.first_token_s,
            outcome.finish_s,
            outcome.output_tokens,
            repeat,
            predicted,
        ),
        queue_samples(requests, outcome.admitted_s, outcome.finish_s, outcome.end_s),
        plan_times(outcome.plan_s),
    )


@contextmanager
def processes(jobs: int) -> Iterator[Executor | None]:
    """`jobs` processes to play in; None, to play here, where that is one."""
    if jobs == 1:
        yield None
        return
    # not forked: the predictor's library holds threads that a fork would lose
    with ProcessPoolExecutor(jobs, mp_context=get_context("spawn")) as pool:
        yield pool


def policy_seed(arm: Arm, seed: int) -> int:
    """A policy seed for each kind of arm, the same in every process and under every name."""
    return zlib.crc32(f"{arm.kind}/{seed}".encode()) & 0x7FFFFFFF


def plan_times(plan_s: Sequence[float]) -> PlanTimes:
    """Number and quantiles of the plans' times."""
    if not len(plan_s):
        return PlanTimes()
    p50, p99 = np.quantile(1e3 * np.asarray(plan_s), [0.5, 0.99])
    return PlanTimes(len(plan_s), float(p50), float(p99))
