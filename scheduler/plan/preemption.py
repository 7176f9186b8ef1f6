"""Which running requests give up their slots: those that can hardly meet their objectives any more.

A runaway answer whose deadline has passed holds a slot that a waiting request could still use to
meet its own. It is taken off the engine, loses its KV cache (its tokens are recomputed later) and
queues again behind everything that can be met. A victim set is the most forlorn k rows, for a few
k; the rollout with and without them says whether it pays:

    gain_k = cost(all run) - cost(without the k) - Σ value lost - price · recompute slot-seconds

Nobody is a victim twice, and nobody who was admitted because the bound on waiting forced it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np

from lengthwise.data.arrays import FloatArray, IntArray, njit
from lengthwise.data.lengths import cdf_at
from lengthwise.scheduler.plan import kernels as k
from lengthwise.scheduler.plan.jobs import Jobs
from lengthwise.scheduler.problem import Problem

LEAST_GAIN = 0.01  # of a met request: below that the model's errors decide


@njit
def running_chance(
    levels: FloatArray,
    quantiles: FloatArray,
    table: FloatArray,
    generated: FloatArray,
    first_token_s: FloatArray,
    now_s: float,
    token_s: float,
) -> FloatArray:
    """P(all objectives hold) of each running row ``(r,)``, if it goes on at ``token_s`` a token."""
    chance = np.ones(len(table))
    for i in range(len(table)):
        job = table[i]
        if job[k.WEIGHT] <= 0.0:
            chance[i] = 0.0  # best effort: nothing to lose
            continue
        first = first_token_s[i]
        begun = not np.isnan(first)
        if (first if begun else now_s) > job[k.TTFT_BY]:
            chance[i] = 0.0
            continue
        if begun and job[k.TPOT] < np.inf and token_s < job[k.TPOT]:
            # tokens it takes to bring the mean time per token back under its objective
            behind = (now_s - first - job[k.TPOT] * (generated[i] - 1.0)) / (job[k.TPOT] - token_s)
            if behind > 0.0:
                chance[i] = _survival(levels, quantiles[i], generated[i], behind)
        elif begun and job[k.TPOT] < np.inf:
            chance[i] = 0.0
        if job[k.E2E_BY] < np.inf:
            left = (job[k.E2E_BY] - now_s) / token_s
            within = 1.0 - _survival(levels, quantiles[i], generated[i], left) if left > 0 else 0.0
            chance[i] *= within
    return chance


@njit
def _survival(levels: FloatArray, row: FloatArray, generated: float, more: float) -> float:
    """P(length > generated + more | length > generated); 0.5 for a row past all it allows."""
    alive = 1.0 - cdf_at(levels, row, generated) if generated > 0.0 else 1.0
    if alive <= 1e-6:
        return 0.5  # it has outlived its prediction: anything may come
    return float(min(1.0, (1.0 - cdf_at(levels, row, generated + more)) / alive))


def victims(
    problem: Problem,
    jobs: Jobs,
    head: IntArray,
    cost: Callable[[Jobs, IntArray], float],
    price: float,
    forlorn: float,
) -> IntArray:
    """Rows of ``problem.running`` to preempt for ``head``, the order's first positions.

    ``cost`` is that of an order under jobs with fewer running rows; ``price`` the value of a
    slot-second; rows with a chance above ``forlorn`` go on. Empty when it does not pay.
    """
    nobody = np.empty(0, dtype=np.int64)
    running = problem.running
    free = problem.capacity.max_num_seqs - len(running)
    wanted = int(np.count_nonzero((jobs.weight * jobs.chance)[head] > 0.0)) - free
    once = running.queued_s <= running.arrival_s
    young = problem.now_s - running.arrival_s <= problem.max_wait_s
    if wanted <= 0 or not (once & young).any():
        return nobody
    chance = running_chance(
        problem.levels, running.quantiles, jobs.running, running.generated_tokens,
        running.first_token_s, problem.now_s, jobs.token_s,
    )  # fmt: skip
    rows = np.flatnonzero(once & young & (chance <= forlorn))
    if len(rows) == 0:
        return nobody
    left_s = jobs.token_s * jobs.running[rows, k.SLOT_STEPS]
    value = jobs.running[rows, k.WEIGHT] * chance[rows]
    rows = rows[np.argsort(value / left_s - 1e-9 * left_s, kind="stable")][:wanted]
    step = problem.step_time
    recompute_s = problem.capacity.max_num_seqs * (
        step.prefill_step_s + step.prefill_token_s * jobs.running[:, k.CONTEXT]
    )
    best, best_gain = nobody, 0.0
    base = cost(jobs, head)
    for count in sorted({1, len(rows) // 4, len(rows) // 2, len(rows)} - {0}):
        chosen = rows[:count]
        kept = replace(jobs, running=np.delete(jobs.running, chosen, axis=0))
        lost = float((jobs.running[chosen, k.WEIGHT] * chance[chosen]).sum())
        gain = base - cost(kept, head) - lost - price * float(recompute_s[chosen].sum())
        if gain > max(best_gain, LEAST_GAIN):
            best, best_gain = chosen, gain
    return best
