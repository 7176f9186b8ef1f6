"""From a problem to the rollout's rows: what each request needs, and how sure that is."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from scheduler.compiled import njit
from scheduler.lengths import STRATA, cdf_at, quantile_at, remaining_mean
from scheduler.plan.rollout import Engine, Rows
from scheduler.problem import FloatArray, IntArray, Problem, RequestArrays

GOLDEN = 0.6180339887498949


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A problem as the rollout sees it.

    Rows ``[0, running)`` run, ``[running, expected)`` wait, the rest are expected arrivals.
    ``token_s`` is the seconds a token takes in a full batch, prefill stalls included.
    """

    engine: Engine
    rows: Rows
    running: int
    expected: int
    now_s: float
    token_s: float


def engine_of(problem: Problem) -> Engine:
    """The engine's numbers for the rollout."""
    capacity = problem.capacity
    return Engine(
        *problem.step_time.coefficients,
        float(capacity.max_num_seqs),
        float(capacity.kv_tokens),
        float(capacity.max_num_batched_tokens),
        1.0,
    )


@njit
def _lengths(
    levels: FloatArray,
    quantiles: FloatArray,
    generated: FloatArray,
    sampled: int,
    places: FloatArray,
    need: FloatArray,
    strata: FloatArray,
) -> None:
    """Tokens to come of every row: one number, and equally likely values.

    The first ``sampled`` rows, those that run, get a length at a level of their own, evenly
    spread over the rows: so slots come free one by one, as they do, while means would free them
    all at once. The others get their mean.
    """
    last = len(levels) - 1
    for i in range(len(need)):
        row, done = quantiles[i], generated[i]
        if row[0] == row[last]:  # a length that is known
            left = max(1.0, row[0] - done)
            if row[0] <= done:
                left = max(1.0, 0.5 * done)
            need[i] = left
            strata[i, :] = left
            continue
        past = cdf_at(levels, row, done) if done > 0.0 else 0.0
        if past >= 1.0 - 1e-6:
            need[i] = max(1.0, 0.5 * done)
            strata[i, :] = need[i]
            continue
        for s in range(len(places)):
            at = past + (1.0 - past) * places[s]
            strata[i, s] = max(1.0, quantile_at(levels, row, at) - done)
        if i < sampled:
            u = (0.5 + i * GOLDEN) % 1.0
            need[i] = max(1.0, quantile_at(levels, row, past + (1.0 - past) * u) - done)
        else:
            need[i] = remaining_mean(levels, row, done)


def full_batch_token_s(problem: Problem, mean_prompt: float, mean_need: float, n: int) -> float:
    """Seconds a token takes when as many run as may and would, prefill stalls included."""
    context = mean_prompt + mean_need / 2.0
    capacity = problem.capacity
    batch = max(1.0, min(capacity.max_num_seqs, n, capacity.kv_tokens / max(context, 1.0)))
    step_s = problem.step_time.step_s(0.0, batch, batch * context)
    prefill_s = problem.step_time.prefill_step_s + problem.step_time.prefill_token_s * mean_prompt
    return step_s + prefill_s * batch / max(mean_need, 1.0)


def snapshot(
    problem: Problem, everybody: RequestArrays, expected: int, start_quantile: float
) -> Snapshot:
    """The rollout's view of ``everybody``: running, waiting, expected arrivals, in that order."""
    k, running = len(everybody), len(problem.running)
    need, strata = np.empty(k), np.empty((k, len(STRATA)))
    places = np.array(STRATA)
    quantiles = np.maximum.accumulate(np.maximum(everybody.quantiles, 1.0), axis=1)
    _lengths(
        np.ascontiguousarray(problem.levels, dtype=np.float64),
        quantiles,
        everybody.generated_tokens,
        running,
        places,
        need,
        strata,
    )
    objectives = (
        np.isfinite(everybody.ttft_s) | np.isfinite(everybody.tpot_s) | np.isfinite(everybody.e2e_s)
    )
    waiting = slice(running, expected) if expected > running else slice(0, k)
    mean_prompt = float(everybody.prefill_left_tokens[waiting].mean()) if k else 1.0
    mean_need = float(need[waiting].mean()) if k else 1.0
    token_s = full_batch_token_s(problem, mean_prompt, mean_need, k)
    engine = engine_of(problem)
    left = everybody.prefill_left_tokens
    place = start_quantile * len(STRATA) - 0.5
    low = int(np.clip(np.floor(place), 0, len(STRATA) - 2))
    share = float(np.clip(place - low, 0.0, 1.0))
    cautious = strata[:, low] * (1.0 - share) + strata[:, low + 1] * share
    chunks = np.maximum(1.0, np.ceil(left / engine.batched_tokens))
    first_s = chunks * (engine.base_s + engine.prefill_step_s) + engine.prefill_token_s * left
    ttft_by_s = everybody.arrival_s + everybody.ttft_s
    e2e_by_s = everybody.arrival_s + everybody.e2e_s
    latest_s = np.minimum(
        np.where(np.isnan(everybody.first_token_s), ttft_by_s - first_s, np.inf),
        e2e_by_s - first_s - token_s * (cautious - 1.0),
    )
    rows = Rows(
        arrival_s=everybody.arrival_s,
        left=left.copy(),
        target=everybody.prompt_tokens + everybody.generated_tokens,
        need=np.ceil(need),
        generated=everybody.generated_tokens,
        first_s=everybody.first_token_s,
        ttft_by_s=ttft_by_s,
        tpot_s=everybody.tpot_s,
        e2e_by_s=e2e_by_s,
        weight=np.where(objectives, np.maximum(everybody.weight, 0.0), 0.0),
        latest_s=latest_s,
        strata=strata,
    )
    return Snapshot(engine, rows, running, expected, problem.now_s, token_s)


def waiting_rows(shot: Snapshot) -> IntArray:
    """Row numbers of those waiting and expected."""
    return np.arange(shot.running, len(shot.rows.need), dtype=np.int64)
