"""What a long search attains that knows every arrival and every length beforehand.

The linear relaxation (``bound``) is no help on engines whose memory and step times bind: it reads
.98 to 1.0 where the best known schedule attains .14. This is the other side, schedules that do
exist: so not an upper bound either, but what minutes of search with perfect knowledge find.

- ``clairvoyant``: one order of the whole run and one pair of limits, annealed on the planner's own
  rollout, window after window, from the orders it is given. ``FixedOrder`` serves it.
- ``KnownArrivals`` in place of a planner's forecast: it then plans again and again, as ever, on
  the arrivals that will come, with limits that change over the run.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from lengthwise.data.arrays import FloatArray, IntArray
from lengthwise.scheduler.plan import search as s
from lengthwise.scheduler.plan.forecast import ArrivalForecast
from lengthwise.scheduler.plan.rollout.rollout_state import work_for
from lengthwise.scheduler.plan.rollout.rows import snapshot
from lengthwise.scheduler.plan.value import CERTAIN
from lengthwise.scheduler.problem import NO_PREFIX, Plan, Problem, RequestArrays
from lengthwise.scheduler.profile import EngineProfile
from lengthwise.scheduler.simulator.sim_workload import SimWorkload

HEAD, REACH = 64, 192
ROUND = 200
KINDS = np.array([s.SWAP, s.INSERT, s.BLOCK, s.INSERT, s.BATCH, s.PREFILL], dtype=np.int64)
LIMITS = (1.0, 0.7, 0.5)  # shares of the slots that starts are tried under

Progress = Callable[[int], float]


def by_steps(steps: int) -> Progress:
    """A search of so many rollouts."""
    return lambda done: done / steps if steps else 1.0


@dataclass(frozen=True, slots=True)
class Found:
    """Attained share of all requests by the rollout: of the best start, and after the search;
    the order ``(n,)`` and the limits (most running, most prefill tokens a step) it is that of."""

    start: float
    attainment: float
    steps: int
    order: IntArray
    limits: FloatArray


def clairvoyant(
    workload: SimWorkload,
    profile: EngineProfile,
    starts: Sequence[IntArray],
    progress: Progress,
    rng: np.random.Generator,
) -> Found:
    """Anneal the whole run from the best of ``starts``, orders of all rows.

    ``progress`` says of a number of rollouts what share of the search they are; at 1 it ends.
    Requests without an objective count as attained, as in ``SimResult.met``.
    """
    picture = _picture(workload, profile)
    engine = picture.engine
    nobody = np.zeros(0, dtype=np.int64)
    best_value, best = -np.inf, None
    for order in starts:
        for share in LIMITS:
            limits = s.no_limits(engine)
            limits[s.MAX_RUNNING] = max(1.0, round(share * engine.slots))
            parts = s.Parts(np.asarray(order, dtype=np.int64).copy(), nobody, limits)
            if (value := s.value_of(picture, parts, True)) > best_value:
                best_value, best = value, parts
    if best is None:
        raise ValueError("give at least one start")
    current, trial, found = best, s.copied(best), s.copied(best)
    values = np.array([best_value, best_value])
    done, n = 0, len(workload)
    while (share := progress(done)) < 1.0:
        first = int(rng.integers(0, max(1, n - HEAD + 1)))
        s.anneal(
            picture, current, trial, found, values, True, first, min(HEAD, n - first),
            min(REACH, n - first), KINDS, nobody, s.temperatures(share, share, ROUND),
            rng.random((ROUND, s.UNIFORMS)),
        )  # fmt: skip
        done += ROUND
    best_effort = float((picture.rows.weight == 0).sum())
    start, attained = (best_value + best_effort) / n, (values[1] + best_effort) / n
    return Found(start, attained, done, found.order, found.limits)


class FixedOrder:
    """A policy: those who wait in the order found for the whole run, the late behind, its limits.

    Rows are known by their arrival times, which must differ.
    """

    name = "fixed-order"
    nominal_s = 0.002

    def __init__(self, workload: SimWorkload, found: Found) -> None:
        if len(np.unique(workload.arrival_s)) < len(workload):
            raise ValueError("arrivals must differ to be known by")
        self._arrival_s = workload.arrival_s
        self._rank = np.argsort(found.order)
        self._limits = found.limits

    def __call__(self, problem: Problem) -> Plan:
        """The order of those who wait."""
        waiting, capacity = problem.waiting, problem.capacity
        rank = self._rank[np.searchsorted(self._arrival_s, waiting.arrival_s)]
        everybody = problem.running.concatenated(waiting)
        shot = snapshot(problem, everybody, len(problem.running), len(everybody), 0.5)
        late = shot.rows.latest_s[shot.waiting :] < problem.now_s
        most, prefill = int(self._limits[s.MAX_RUNNING]), int(self._limits[s.MAX_PREFILL])
        return Plan(
            np.lexsort((rank, late)).astype(np.int64),
            max_running=most if most < capacity.max_num_seqs else None,
            max_prefill_tokens=prefill if prefill < capacity.max_num_batched_tokens else None,
        )

    def warm_up(self) -> None:
        """Nothing to compile that matters here."""


class KnownArrivals(ArrivalForecast):
    """A forecast that is right: the requests that will come, at their times, as they are."""

    def __init__(self, workload: SimWorkload, profile: EngineProfile) -> None:
        super().__init__()
        self._rows = _rows(workload, profile, workload.quantiles)

    def expected(self, problem: Problem, horizon_s: float, most: int) -> RequestArrays:
        """The next ``most`` within ``horizon_s``, sorted by arrival, prompts uncomputed."""
        times, now_s = self._rows.arrival_s, problem.now_s
        first, last = np.searchsorted(times, [now_s, now_s + horizon_s], side="right")
        return self._rows.take(np.arange(first, min(last, first + most)))


def _rows(workload: SimWorkload, profile: EngineProfile, quantiles: FloatArray) -> RequestArrays:
    """Everybody as a newcomer; prefixes only where the engine keeps them, in whole blocks."""
    ids, tokens = workload.prefix_id, workload.prefix_tokens
    shared = {"prefix_id": np.full(len(workload), NO_PREFIX)}
    if profile.prefix_cache is not None and ids is not None and tokens is not None:
        block = profile.prefix_cache.block_tokens
        whole = np.where(ids == NO_PREFIX, 0, tokens) // block * block
        shared = {"prefix_id": ids, "prefix_tokens": whole}
    return RequestArrays.build(
        quantiles,
        workload.arrival_s,
        prompt_tokens=workload.prompt_tokens,
        ttft_s=workload.ttft_s,
        tpot_s=workload.tpot_s,
        e2e_s=workload.e2e_s,
        weight=workload.weight,
        class_id=workload.class_id,
        **shared,
    )


def _picture(workload: SimWorkload, profile: EngineProfile) -> s.Picture:
    """The whole run as one plan's problem: nobody runs, everybody is expected."""
    n = len(workload)
    lengths = np.repeat(workload.output_tokens.astype(np.float64)[:, None], 2, axis=1)
    rows = replace(_rows(workload, profile, lengths), weight=np.ones(n))
    nobody = rows.take(np.empty(0, dtype=np.int64))
    speculation = profile.speculation
    problem = Problem(
        now_s=float(workload.arrival_s[0]),
        levels=np.array([0.25, 0.75]),
        waiting=rows,
        running=nobody,
        capacity=profile.capacity,
        step_time=profile.scaled_step_time,
        max_wait_s=np.inf,
        tokens_per_step=1.0 if speculation is None else speculation.accepted_tokens,
        decode_budget_tokens=1 if speculation is None else 1 + speculation.draft_tokens,
    )
    shot = snapshot(problem, rows, 0, 0, 0.5)
    end_s = float(workload.arrival_s[-1]) + 1e6
    return s.Picture(
        shot.engine,
        shot.rows,
        0,
        0,
        0,
        np.inf,
        problem.now_s,
        end_s,
        CERTAIN,
        work_for(n),
        np.zeros(n),
    )
