"""What a plan is worth: the expected attained weight of everybody in its rollout, less its costs.

    value = Σ weight·P(all objectives hold)
            + tokens_price·(work done) / (a request's mean work)
            - (work done again for slots taken back) / (a request's mean work)
            - latency_price·(Σ time in the system) / (a request's mean time)

A request's pace is that of the rollout; its length stays uncertain: P(e2e holds) is the share of
equally likely lengths that end in time at that pace. Who has not ended when the rollout does goes
on at its mean pace; who has not begun is admitted as the slots of those before come free.

The price of work is what keeps a plan from being put off for ever: a horizon that recedes with
the clock has room for the same work a moment later, so without it "idle now, serve later" would
be worth as much each time as serving.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from lengthwise.data.arrays import FloatArray, IntArray, njit
from lengthwise.scheduler.plan.rollout.rollout_state import (
    DECODING,
    DONE,
    END_FOUND,
    END_RUNNING,
    END_S,
    END_STEPS,
    PREFILLING,
    Engine,
    Rows,
    Work,
)

SQRT3 = math.sqrt(3.0)


class Objective(NamedTuple):
    """How outcomes are weighed; see the module's head.

    ``spread`` is the standard deviation of a predicted time as a share of how far ahead it is,
    ``tpot_spread`` that of a pace. ``mean_time_s`` and ``mean_work_s`` are a request's. Work is
    counted in seconds of the whole engine: a prompt token's own, and ``answer_token_s`` for an
    output token, its share of a full batch's step.
    """

    spread: float
    tpot_spread: float
    latency_price: float
    tokens_price: float
    mean_time_s: float
    mean_work_s: float
    answer_token_s: float


# Attainment alone, every predicted time taken at its word.
CERTAIN = Objective(1e-9, 1e-9, 0.0, 0.0, 1.0, 1.0, 1.0)


@njit(inline="always")
def ramp(slack: float, spread: float) -> float:
    """P(noise <= slack) for uniform noise of standard deviation ``spread``."""
    half = SQRT3 * spread
    if slack >= half:
        return 1.0
    if slack <= -half:
        return 0.0
    return 0.5 + slack / (2.0 * half)


@njit
def _chance(
    rows: Rows, i: int, first_s: float, finish_s: float, now_s: float, o: Objective
) -> float:
    """P(all objectives of row ``i`` hold), given its mean course."""
    begun = not np.isnan(rows.first_s[i])
    need = rows.need[i]
    p = 1.0
    if rows.ttft_by_s[i] < np.inf:
        if begun:
            p = 1.0 if first_s <= rows.ttft_by_s[i] else 0.0
        else:
            p = ramp(rows.ttft_by_s[i] - first_s, o.spread * (first_s - now_s) + 1e-6)
    if p > 0.0 and rows.tpot_s[i] < np.inf:
        tokens = rows.generated[i] + need - 1.0
        if tokens > 0.0:
            pace = (finish_s - first_s) / tokens
            p *= ramp(rows.tpot_s[i] - pace, o.tpot_spread * pace + 1e-9)
    if p > 0.0 and rows.e2e_by_s[i] < np.inf:
        start = now_s if begun else first_s
        more = need if begun else need - 1.0
        spread = o.spread * (finish_s - now_s) + 1e-6
        if more <= 0.0:
            return p * ramp(rows.e2e_by_s[i] - finish_s, spread)
        pace = (finish_s - start) / more
        met, count = 0.0, rows.strata.shape[1]
        for s in range(count):
            tokens = rows.strata[i, s] if begun else rows.strata[i, s] - 1.0
            met += ramp(rows.e2e_by_s[i] - start - pace * tokens, spread)
        p *= met / count
    return p


@njit(nogil=True)
def worth(
    engine: Engine,
    rows: Rows,
    running: int,
    recovering: int,
    order: IntArray,
    given_up: IntArray,
    begin_s: float,
    until_s: float,
    o: Objective,
    w: Work,
    chance: FloatArray,
) -> float:
    """Value of the rollout that ``w`` holds; ``chance (k,)`` is filled on the way."""
    ended_s = max(w.end[END_S], until_s)
    pace_s = (w.end[END_S] - begin_s) / max(w.end[END_STEPS], 1.0)
    pace_s = max(pace_s, engine.base_s) / engine.tokens_per_step
    slots = max(w.end[END_RUNNING], 1.0)
    prompt_token_s = engine.prefill_token_s
    attained, total_s, ahead_s, done_s, again_s = 0.0, 0.0, 0.0, 0.0, 0.0
    first_rows = running + recovering
    for place in range(-first_rows, len(order)):
        i = order[place] if place >= 0 else place + first_rows
        first, finish, phase = w.first_s[i], w.finish_s[i], w.phase[i]
        work_s = prompt_token_s * rows.left[i] + o.answer_token_s * rows.need[i]
        more_s = 0.0
        if phase != DONE:
            more_s = prompt_token_s * w.left[i] + o.answer_token_s * w.need[i]
        if phase == DECODING:
            finish = ended_s + w.need[i] * pace_s
        elif phase == PREFILLING:
            if np.isnan(first):
                first = ended_s + pace_s
            finish = max(ended_s, first) + w.need[i] * pace_s
        elif phase != DONE:
            prefill_s = engine.prefill_token_s * w.left[i]
            start = max(ended_s + ahead_s / slots, rows.arrival_s[i]) + prefill_s
            ahead_s += w.need[i] * pace_s + slots * prefill_s
            if np.isnan(first):
                first = start + pace_s
            finish = start + w.need[i] * pace_s
        total_s += min(finish, ended_s) - max(rows.arrival_s[i], begin_s)
        chance[i] = 0.0
        if rows.weight[i] > 0.0:
            chance[i] = _chance(rows, i, first, finish, begin_s, o)
        attained += rows.weight[i] * chance[i]
        done_s += max(work_s - more_s, 0.0)
        if i < running and given_up[i]:
            again_s += prompt_token_s * (rows.target[i] - rows.shared[i])
    done_s -= prompt_token_s * w.end[END_FOUND]  # computed by somebody else
    return (
        attained
        + (o.tokens_price * done_s - again_s) / o.mean_work_s
        - o.latency_price * total_s / o.mean_time_s
    )
