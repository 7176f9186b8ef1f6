"""What the rules sort by: how long each waiting request will be, until when, and whether it can.

The figures assume the full batch's pace for everybody; what a plan does to the pace is the
rollout's to say (``rollout``).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from lengthwise.data.arrays import BoolArray, FloatArray, njit
from lengthwise.data.lengths import fresh_mean, remaining_mean
from lengthwise.scheduler.problem import Problem

# Engine numbers, one array: step-time coefficients, then the clock.
BASE, PREFILL_STEP, PREFILL_TOKEN, DECODE_SEQ, CONTEXT_TOKEN, NOW = range(6)

# A waiting request's row.
PREFILL, CONTEXT, CHUNKS, TTFT_BY, E2E_BY, TPOT = range(6)
COLUMNS = 6

_FINE, _NOT_A_NUMBER = 0, 1


@dataclass(frozen=True, slots=True)
class Jobs:
    """Figures of the waiting requests, ``(n,)`` each; ``waiting`` is ``(n, COLUMNS)``.

    ``mean_tokens`` are to come on the mean, ``due_s`` is the first deadline, ``can_meet`` whether
    the objectives hold with the mean length when admitted now. ``token_s`` is the seconds a
    token takes in a full batch, prefill stalls included; ``release_gap_s`` those between two
    slots that come free.
    """

    engine: FloatArray
    waiting: FloatArray
    mean_tokens: FloatArray
    due_s: FloatArray
    can_meet: BoolArray
    token_s: float
    release_gap_s: float

    def __len__(self) -> int:
        return len(self.waiting)


@njit(nogil=True)
def _fill(
    levels: FloatArray,
    quantiles: FloatArray,
    max_batched: float,
    arrival: FloatArray,
    prompt: FloatArray,
    left: FloatArray,
    generated: FloatArray,
    ttft: FloatArray,
    tpot: FloatArray,
    e2e: FloatArray,
    weight: FloatArray,
    table: FloatArray,
    mean: FloatArray,
) -> int:
    """Fill the table and the means; rows are repaired: at least one token, non-decreasing."""
    q = len(levels)
    row, logs = np.empty(q), np.empty(q)
    for i in range(len(table)):
        most = 1.0
        for c in range(q):
            if not np.isfinite(quantiles[i, c]):
                return _NOT_A_NUMBER
            most = max(most, quantiles[i, c])
            # equal neighbours are common (certain lengths) and need no second logarithm
            logs[c] = logs[c - 1] if c > 0 and most == row[c - 1] else np.log(most)
            row[c] = most
        times = arrival[i] + weight[i]
        if not np.isfinite(times) or np.isnan(ttft[i]) or np.isnan(e2e[i]) or np.isnan(tpot[i]):
            return _NOT_A_NUMBER
        if not np.isfinite(prompt[i] + left[i] + generated[i]):
            return _NOT_A_NUMBER
        if generated[i] > 0.0:
            mean[i] = remaining_mean(levels, row, generated[i])
        else:
            mean[i] = fresh_mean(levels, row, logs)
        table[i, PREFILL] = left[i]
        table[i, CONTEXT] = prompt[i] + generated[i]
        table[i, CHUNKS] = max(1.0, np.ceil(left[i] / max_batched))
        table[i, TTFT_BY] = arrival[i] + ttft[i]
        table[i, E2E_BY] = arrival[i] + e2e[i]
        table[i, TPOT] = tpot[i]
    return _FINE


@njit(nogil=True)
def _can_meet(
    table: FloatArray,
    engine: FloatArray,
    mean: FloatArray,
    token_s: float,
    step_s: float,
    can_meet: BoolArray,
) -> None:
    """Whether each row meets its TTFT and e2e objectives when admitted now."""
    for i in range(len(table)):
        job = table[i]
        stall = engine[PREFILL_STEP] * job[CHUNKS] + engine[PREFILL_TOKEN] * job[PREFILL]
        first = stall + step_s * job[CHUNKS]
        token_by = job[TTFT_BY] - first
        end_by = job[E2E_BY] - first
        can_meet[i] = min(token_by, end_by - token_s * (mean[i] - 1.0)) >= engine[NOW]


def prepare(problem: Problem) -> Jobs:
    """The figures of a problem; ValueError on quantiles or times that are not numbers."""
    rows = problem.waiting
    n = len(rows)
    table, mean = np.zeros((n, COLUMNS)), np.empty(n)
    outcome = _fill(
        np.ascontiguousarray(problem.levels, dtype=np.float64),
        rows.quantiles,
        float(problem.capacity.max_num_batched_tokens),
        rows.arrival_s,
        rows.prompt_tokens,
        rows.prefill_left_tokens,
        rows.generated_tokens,
        rows.ttft_s,
        rows.tpot_s,
        rows.e2e_s,
        rows.weight,
        table,
        mean,
    )
    if outcome == _NOT_A_NUMBER:
        raise ValueError("requests must be numbers: NaN or infinity where only objectives may be")
    engine = np.array([*problem.step_time.coefficients, problem.now_s])
    mean_left = float(mean.sum() / n) if n else 1.0
    mean_prompt = float(rows.prompt_tokens.sum() / n) if n else 1.0
    # A duration needs a batch: the full engine, as far as requests and the KV cache fill it.
    context = mean_prompt + mean_left / 2.0
    batch = max(
        1.0,
        min(
            problem.capacity.max_num_seqs,
            n + len(problem.running),
            problem.capacity.kv_tokens / context,
        ),
    )
    step_s = problem.step_time.step_s(0.0, batch, batch * context)
    prefill_s = problem.step_time.more_s(mean_prompt, batch, step_s)
    token_s = step_s + prefill_s * batch / mean_left
    can_meet = np.empty(n, dtype=np.bool_)
    _can_meet(table, engine, mean, token_s, step_s, can_meet)
    return Jobs(
        engine=engine,
        waiting=table,
        mean_tokens=mean,
        due_s=np.minimum(table[:, TTFT_BY], table[:, E2E_BY]),
        can_meet=can_meet,
        token_s=token_s,
        release_gap_s=mean_left * token_s / batch,
    )
