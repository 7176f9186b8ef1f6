"""What a long search attains that knows every arrival and every length beforehand.

The linear relaxation (``bound``) is no help on engines whose memory and step times bind: it reads
.98 to 1.0 where the best known schedule attains .14. This is the other side: a schedule that does
exist. One order of the whole run and one pair of limits are annealed on the planner's own rollout,
window after window, from the orders it is given; so it is not an upper bound either, but what
minutes of search with perfect knowledge find.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from lengthwise.data.arrays import IntArray
from lengthwise.scheduler.plan import search as s
from lengthwise.scheduler.plan.rollout import work_for
from lengthwise.scheduler.plan.rows import snapshot
from lengthwise.scheduler.plan.value import CERTAIN
from lengthwise.scheduler.problem import NO_PREFIX, Problem, RequestArrays
from lengthwise.scheduler.profile import EngineProfile
from lengthwise.scheduler.simulator.sim_workload import SimWorkload

HEAD, REACH = 64, 192
ROUND = 200
KINDS = np.array([s.SWAP, s.INSERT, s.BLOCK, s.INSERT, s.BATCH, s.PREFILL], dtype=np.int64)
LIMITS = (1.0, 0.7, 0.5)  # shares of the slots that starts are tried under


@dataclass(frozen=True, slots=True)
class Found:
    """Attained share of all requests: of the best start, and after the search."""

    start: float
    attainment: float
    steps: int


def clairvoyant(
    workload: SimWorkload,
    profile: EngineProfile,
    starts: Sequence[IntArray],
    steps: int,
    rng: np.random.Generator,
) -> Found:
    """Anneal the whole run for ``steps`` rollouts from the best of ``starts``, orders of all rows.

    Requests without an objective count as attained, as in ``SimResult.met``.
    """
    picture = _picture(workload, profile)
    engine = picture.engine
    nobody = np.zeros(0, dtype=np.int64)
    best_value, best = -np.inf, None
    for order in starts:
        for share in LIMITS:
            limits = np.array([max(1.0, round(share * engine.slots)), engine.batched_tokens])
            parts = s.Parts(np.asarray(order, dtype=np.int64).copy(), nobody, limits)
            if (value := s.value_of(picture, parts, True)) > best_value:
                best_value, best = value, parts
    if best is None:
        raise ValueError("give at least one start")
    current, trial, found = best, s.copied(best), s.copied(best)
    values = np.array([best_value, best_value])
    done, n = 0, len(workload)
    while done < steps:
        count = min(ROUND, steps - done)
        first = int(rng.integers(0, max(1, n - HEAD + 1)))
        s.anneal(
            picture, current, trial, found, values, True, first, min(HEAD, n - first),
            min(REACH, n - first), KINDS, nobody,
            s.temperatures(done / steps, (done + count) / steps, count),
            rng.random((count, s.UNIFORMS)),
        )  # fmt: skip
        done += count
    best_effort = float((picture.rows.weight == 0).sum())
    return Found((best_value + best_effort) / n, (values[1] + best_effort) / n, done)


def _picture(workload: SimWorkload, profile: EngineProfile) -> s.Picture:
    """The whole run as one plan's problem: nobody runs, everybody is expected."""
    n = len(workload)
    lengths = workload.output_tokens.astype(np.float64)[:, None]
    known = workload.prefix_id is not None and profile.prefix_cache is not None
    rows = RequestArrays.build(
        np.repeat(lengths, 2, axis=1),
        workload.arrival_s,
        prompt_tokens=workload.prompt_tokens,
        ttft_s=workload.ttft_s,
        tpot_s=workload.tpot_s,
        e2e_s=workload.e2e_s,
        prefix_id=workload.prefix_id if known else np.full(n, NO_PREFIX),
        prefix_tokens=workload.prefix_tokens if known else None,
    )
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
        shot.engine, shot.rows, 0, 0, 0, problem.now_s, end_s, CERTAIN, work_for(n), np.zeros(n)
    )
