"""The picture that ``sa`` plans on: who is planned, who is expected, and how outcomes are weighed.

Of a queue too long to plan, the first by feasible-edf; beside them stand-ins of the arrivals to
come (``plan.forecast``), all as the rollout's rows (``plan.rollout.rows``), up to a horizon that
follows the objectives of recent requests.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from lengthwise.data.arrays import IntArray
from lengthwise.scheduler.plan.forecast import ArrivalForecast
from lengthwise.scheduler.plan.jobs import prepare
from lengthwise.scheduler.plan.prices import work_price
from lengthwise.scheduler.plan.rollout.rollout_state import work_for
from lengthwise.scheduler.plan.rollout.rows import Snapshot, snapshot
from lengthwise.scheduler.plan.search import Picture
from lengthwise.scheduler.plan.starts.wait_bound import is_old
from lengthwise.scheduler.plan.value import Objective
from lengthwise.scheduler.policies.annealing_settings import Settings
from lengthwise.scheduler.policies.rules import feasible_edf
from lengthwise.scheduler.problem import Problem, RequestArrays


def worth_planning(problem: Problem, most: int) -> tuple[Problem, tuple[IntArray, IntArray]]:
    """The problem of at most ``most`` waiting rows, and (those, the others in their order)."""
    n = len(problem.waiting)
    if n <= most:
        return problem, (np.arange(n, dtype=np.int64), np.empty(0, dtype=np.int64))
    order = feasible_edf(problem, prepare(problem))
    chosen = np.sort(order[:most])
    return replace(problem, waiting=problem.waiting.take(chosen)), (chosen, order[most:])


def rollout_horizon_s(problem: Problem, forecast: ArrivalForecast, knobs: Settings) -> float:
    """Seconds that are played: the mean objective of recent requests, within the knobs' limits."""
    mean_s = forecast.mean_objective_s(problem)
    return float(np.clip(knobs.horizon * mean_s, knobs.shortest_horizon_s, knobs.longest_horizon_s))


def with_arrivals(
    problem: Problem,
    forecast: ArrivalForecast,
    horizon_s: float,
    knobs: Settings,
    step_pace: float,
) -> tuple[Snapshot, RequestArrays]:
    """Everybody's rows, every step ``step_pace`` times as long; who queues or is expected to."""
    coming = forecast.expected(problem, horizon_s, knobs.most_expected)
    queue = problem.waiting.concatenated(coming)
    before = [] if problem.recovering is None else [problem.recovering]
    everybody = problem.running.concatenated(*before, queue)
    waiting = len(everybody) - len(queue)
    shot = snapshot(
        problem,
        everybody,
        waiting,
        waiting + len(problem.waiting),
        knobs.start_quantile,
        step_pace,
    )
    return shot, queue


def picture_of(
    problem: Problem, shot: Snapshot, horizon_s: float, usual_rps: float, knobs: Settings
) -> Picture:
    """What every rollout of the plan shares, the prices of time and work included."""
    mean_tokens = max(1.0, float(shot.rows.need[shot.waiting :].mean()))
    objective = Objective(
        knobs.spread,
        knobs.tpot_spread,
        knobs.latency_price,
        work_price(
            shot,
            usual_rps,
            horizon_s,
            problem.max_wait_s,
            knobs.tokens_price,
            knobs.backlog_price,
            knobs.bound_price,
        ),
        mean_tokens * shot.token_s,
        max(float(shot.work_s[shot.waiting :].mean()), 1e-9),
        shot.answer_token_s,
    )
    until_s = problem.now_s + horizon_s
    return Picture(
        shot.engine, shot.rows, shot.running, shot.waiting - shot.running, shot.expected,
        float(problem.rested_steps), problem.now_s, until_s, objective, work_for(len(shot)),
        np.zeros(len(shot)),
    )  # fmt: skip


def slot_gap_s(problem: Problem, shot: Snapshot) -> float:
    """Time between two slots that come free.

    Those put off are seldom the short ones: while any are, their own lengths say it.
    """
    need = shot.rows.need[shot.waiting : shot.expected]
    old = is_old(problem.waiting.queued_s, problem.now_s, problem.max_wait_s)
    return shot.token_s * float((need[old] if old.any() else need).mean()) / shot.batch
