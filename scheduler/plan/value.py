"""What a plan is worth: the expected attained weight of everybody in its rollout, less latency.

    value = Σ weight·P(all objectives hold) - latency·Σ time in the system / time unit
            - recompute·tokens computed again after a plan took their slots

A request's pace is that of the rollout; its length stays uncertain: P(e2e holds) is the share of
equally likely lengths that end in time at that pace. Who has not ended when the rollout does goes
on at the last pace; who has not begun is admitted as the slots of those before it come free.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from scheduler.compiled import njit
from scheduler.plan import rollout as ro
from scheduler.plan.rollout import Engine, Rows, Work
from scheduler.problem import FloatArray, IntArray

SQRT3 = math.sqrt(3.0)


class Objective(NamedTuple):
    """How outcomes are weighed; see the module's head.

    ``spread`` is the standard deviation of a predicted time as a share of how far ahead it is,
    ``tpot_spread`` that of a pace; ``time_unit_s`` is the time that ``latency`` is the price of.
    """

    spread: float
    tpot_spread: float
    latency: float
    time_unit_s: float
    recompute: float
    tokens: float
    token_unit: float


@njit(inline="always")
def ramp(slack: float, spread: float) -> float:
    """P(noise <= slack) for uniform noise of standard deviation ``spread``."""
    half = SQRT3 * spread
    if slack >= half:
        return 1.0
    if slack <= -half:
        return 0.0
    return 0.5 + slack / (2.0 * half)


@njit(inline="always")
def _chance(
    rows: Rows, i: int, first_s: float, finish_s: float, need: float, now_s: float, o: Objective
) -> float:
    """P(all objectives of row ``i`` hold), given its mean course."""
    known = not np.isnan(rows.first_s[i])
    p = 1.0
    if rows.ttft_by_s[i] < np.inf:
        if known:
            p = 1.0 if first_s <= rows.ttft_by_s[i] else 0.0
        else:
            p = ramp(rows.ttft_by_s[i] - first_s, o.spread * (first_s - now_s) + 1e-6)
    if p > 0.0 and rows.tpot_s[i] < np.inf:
        tokens = rows.generated[i] + need - 1.0
        if tokens > 0.0:
            pace = (finish_s - first_s) / tokens
            p *= ramp(rows.tpot_s[i] - pace, o.tpot_spread * pace)
    if p > 0.0 and rows.e2e_by_s[i] < np.inf:
        start = max(now_s, first_s) if known else first_s
        more = need if known else need - 1.0
        if more > 0.0:
            pace = (finish_s - start) / more
            spread = o.spread * (finish_s - now_s) + 1e-6
            met, count = 0.0, rows.strata.shape[1]
            for s in range(count):
                tokens = rows.strata[i, s] if known else rows.strata[i, s] - 1.0
                met += ramp(rows.e2e_by_s[i] - start - pace * tokens, spread)
            p *= met / count
        else:
            p *= ramp(rows.e2e_by_s[i] - finish_s, o.spread * (finish_s - now_s) + 1e-6)
    return p


@njit(nogil=True)
def worth(
    engine: Engine,
    rows: Rows,
    running: int,
    order: IntArray,
    given_up: IntArray,
    begin_s: float,
    until_s: float,
    o: Objective,
    w: Work,
    chance: FloatArray,
) -> float:
    """Value of the rollout that ``w`` holds; ``chance (k,)`` is filled on the way."""
    k = len(rows.need)
    steps = max(w.end[ro.END_STEPS], 1.0)
    ended_s = w.end[ro.END_S]
    pace_s = max((ended_s - begin_s) / steps, engine.base_s) / engine.tokens_per_step
    slots = max(w.end[ro.END_RUNNING], 1.0)
    value, total_s, ahead_s, recompute, made = 0.0, 0.0, 0.0, 0.0, 0.0
    horizon_s = max(ended_s, until_s)
    for place in range(-running, len(order)):
        i = order[place] if place >= 0 else place + running
        first, finish = w.first_s[i], w.finish_s[i]
        need = rows.need[i]
        phase = w.phase[i]
        chance[i] = 0.0
        made += rows.need[i] - (w.need[i] if phase != ro.DONE else 0.0)
        if phase == ro.DECODING:
            finish = ended_s + w.need[i] * pace_s
        elif phase == ro.PREFILLING:
            if np.isnan(first):
                first = ended_s + pace_s
            finish = first + w.need[i] * pace_s
        elif phase != ro.DONE:
            start = max(horizon_s + ahead_s / slots, rows.arrival_s[i])
            prefill_s = engine.prefill_token_s * w.left[i]
            ahead_s += w.need[i] * pace_s + slots * prefill_s
            if np.isnan(first):
                first = start + prefill_s + pace_s
            finish = start + prefill_s + w.need[i] * pace_s
        total_s += min(finish, horizon_s) - max(rows.arrival_s[i], begin_s)
        if place < 0 and given_up[i]:
            recompute += rows.target[i]
        if rows.weight[i] > 0.0:
            chance[i] = _chance(rows, i, first, finish, need, begin_s, o)
            value += rows.weight[i] * chance[i]
    return value - o.latency * total_s / o.time_unit_s - o.recompute * recompute + o.tokens * made / o.token_unit
