"""What an order is expected to bring the waiting requests: one rollout, asked from outside."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from lengthwise.data.arrays import FloatArray, IntArray
from lengthwise.scheduler.plan.rollout.rollout_state import work_for
from lengthwise.scheduler.plan.rollout.rows import snapshot
from lengthwise.scheduler.plan.search import Parts, Picture, no_limits, value_of
from lengthwise.scheduler.plan.value import CERTAIN
from lengthwise.scheduler.problem import Problem

HORIZON_S = 600.0
SPREAD, TPOT_SPREAD = 0.05, 0.03


@dataclass(frozen=True, slots=True)
class PlayedOrder:
    """Of each waiting row ``(n,)``: first token and finish in seconds, inf if beyond the horizon,
    and the chance of meeting all its objectives."""

    first_s: FloatArray
    finish_s: FloatArray
    chance: FloatArray


def played(problem: Problem, order: IntArray, horizon_s: float = HORIZON_S) -> PlayedOrder:
    """The waiting rows served in ``order``, a permutation, with nobody else arriving."""
    before = [] if problem.recovering is None else [problem.recovering]
    everybody = problem.running.concatenated(*before, problem.waiting)
    k, waiting = len(everybody), len(everybody) - len(problem.waiting)
    running = len(problem.running)
    shot = snapshot(problem, everybody, waiting, k, 0.5)
    engine, now_s = shot.engine, problem.now_s
    picture = Picture(
        engine, shot.rows, running, waiting - running, k, np.inf, now_s, now_s + horizon_s,
        CERTAIN._replace(spread=SPREAD, tpot_spread=TPOT_SPREAD), work_for(k), np.zeros(k),
    )  # fmt: skip
    parts = Parts(
        np.asarray(order, dtype=np.int64) + waiting,
        np.zeros(running, dtype=np.int64),
        no_limits(engine),
    )
    value_of(picture, parts, False)
    w = picture.work
    first_s = np.where(np.isnan(w.first_s), np.inf, w.first_s)
    return PlayedOrder(first_s[waiting:], w.finish_s[waiting:], picture.chance[waiting:])
