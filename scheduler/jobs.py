"""From a problem to the kernels' arrays: what each request needs and may hope for."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numba import njit

from scheduler import kernels as k
from scheduler.lengths import remaining_means, strata, valid_rows
from scheduler.problem import FloatArray, Problem, RequestArrays

# A slot-second estimate needs a batch: what runs now, or the full engine once requests queue.


@dataclass(frozen=True, slots=True)
class Jobs:
    """Kernel tables (see ``kernels.JOB_COLUMNS``) and per-request figures, ``(n,)`` each.

    ``token_s`` is the seconds a token takes in a full batch, prefill stalls included;
    ``slot_s`` the slot-seconds a request takes; ``latest_s`` when it must be admitted to meet
    its objectives with a length at the ``caution`` level; ``hopeful`` whether it can meet them
    at all when admitted now, with its shortest likely length; ``due_s`` its first deadline.
    """

    engine: FloatArray
    running: FloatArray
    waiting: FloatArray
    mean_tokens: FloatArray
    latest_s: FloatArray
    hopeful: FloatArray
    due_s: FloatArray
    token_s: float
    stall_s: float
    release_gap_s: float

    def __len__(self) -> int:
        return len(self.waiting)

    @property
    def slot_s(self) -> FloatArray:
        """Slot-seconds each waiting request will take."""
        return self.waiting[:, k.SLOT_S]

    @property
    def feasible(self) -> FloatArray:
        """1.0 where the mean length can still meet the objectives if admitted now."""
        return self.hopeful


def engine_numbers(problem: Problem) -> FloatArray:
    """The engine's row for the kernels."""
    return np.array(
        [
            *problem.step_time.coefficients,
            float(problem.capacity.max_num_seqs),
            float(problem.capacity.kv_tokens),
            problem.now_s,
        ]
    )


@njit(cache=True)
def _fill(
    table: FloatArray,
    prefill: FloatArray,
    context: FloatArray,
    tokens: FloatArray,
    max_batched: float,
    arrival: FloatArray,
    ttft: FloatArray,
    tpot: FloatArray,
    e2e: FloatArray,
    weight: FloatArray,
    lengths: FloatArray,
) -> None:
    for i in range(len(table)):
        chunks = max(1.0, np.ceil(prefill[i] / max_batched))
        table[i, k.PREFILL] = prefill[i]
        table[i, k.CONTEXT] = context[i]
        table[i, k.SLOT_STEPS] = chunks - 1.0 + max(1.0, np.ceil(tokens[i]))
        table[i, k.CHUNKS] = chunks
        table[i, k.TTFT_BY] = arrival[i] + ttft[i]
        table[i, k.E2E_BY] = arrival[i] + e2e[i]
        table[i, k.TPOT] = tpot[i]
        objectives = ttft[i] < np.inf or e2e[i] < np.inf or tpot[i] < np.inf
        table[i, k.WEIGHT] = weight[i] if objectives else 0.0
        for s in range(k.STRATA_COUNT):
            table[i, k.LENGTHS + s] = lengths[i, s]


def _table(
    rows: RequestArrays, tokens: FloatArray, lengths: FloatArray, batched: int
) -> FloatArray:
    table = np.zeros((len(rows), len(k.JOB_COLUMNS)))
    context = rows.prompt_tokens + rows.generated_tokens
    _fill(
        table,
        rows.prefill_left_tokens,
        context,
        tokens,
        float(batched),
        rows.arrival_s,
        rows.ttft_s,
        rows.tpot_s,
        rows.e2e_s,
        rows.weight,
        lengths,
    )
    return table


@njit(cache=True)
def _prospects(
    table: FloatArray,
    engine: FloatArray,
    token_s: float,
    step_s: float,
    caution: float,
    latest: FloatArray,
    hopeful: FloatArray,
    due: FloatArray,
) -> None:
    """Fill slot-seconds, latest start, hope and first deadline of every row."""
    now, slots = engine[k.NOW], engine[k.SLOTS]
    place = caution * k.STRATA_COUNT - 0.5  # between the stratum midpoints
    low = int(min(max(np.floor(place), 0.0), k.STRATA_COUNT - 2.0))
    share = min(max(place - low, 0.0), 1.0)
    for i in range(len(table)):
        job = table[i]
        stall = engine[k.PREFILL_STEP] * job[k.CHUNKS] + engine[k.PREFILL_TOKEN] * job[k.PREFILL]
        first = stall + step_s * job[k.CHUNKS]
        job[k.SLOT_S] = token_s * job[k.SLOT_STEPS] + slots * stall
        cautious = job[k.LENGTHS + low] * (1.0 - share) + job[k.LENGTHS + low + 1] * share
        latest[i] = min(
            job[k.TTFT_BY] - first,
            job[k.E2E_BY] - first - token_s * (cautious - 1.0),
        )
        best = min(job[k.TTFT_BY] - first, job[k.E2E_BY] - first - token_s * (job[k.LENGTHS] - 1.0))
        hopeful[i] = 1.0 if best >= now and job[k.WEIGHT] > 0.0 else 0.0
        due[i] = min(job[k.TTFT_BY], job[k.E2E_BY])


def prepare(problem: Problem, caution: float = 0.5) -> Jobs:
    """Tables and figures of a problem; ``caution`` in [0, 1] is the length level to be safe at.

    Raises ValueError on quantiles or times that are not numbers.
    """
    waiting, running = problem.waiting, problem.running
    for rows in (waiting, running):
        for name in ("arrival_s", "prompt_tokens", "generated_tokens", "ttft_s", "e2e_s"):
            if np.isnan(getattr(rows, name)).any():
                raise ValueError(f"{name} must be numbers, got NaN")
    levels = np.ascontiguousarray(problem.levels, dtype=np.float64)
    rows_w, rows_r = valid_rows(waiting.quantiles), valid_rows(running.quantiles)
    left_w = remaining_means(levels, rows_w, waiting.generated_tokens)
    left_r = remaining_means(levels, rows_r, running.generated_tokens)
    engine = engine_numbers(problem)
    batched = problem.capacity.max_num_batched_tokens
    lengths = strata(levels, rows_w)
    if waiting.generated_tokens.any():  # preempted requests: only what is left is to come
        lengths = np.maximum(1.0, lengths - waiting.generated_tokens[:, None])
    table_w = _table(waiting, left_w, lengths, batched)
    table_r = _table(running, left_r, np.zeros((len(running), k.STRATA_COUNT)), batched)

    mean_left = float(left_w.mean()) if len(waiting) else 1.0
    mean_prompt = float(waiting.prompt_tokens.mean()) if len(waiting) else 1.0
    batch = float(min(problem.capacity.max_num_seqs, len(waiting) + len(running)))
    context = mean_prompt + mean_left / 2.0
    batch = max(1.0, min(batch, problem.capacity.kv_tokens / max(context, 1.0)))
    step_s = problem.step_time.step_s(0.0, batch, batch * context)
    prefill = problem.step_time.prefill_step_s + problem.step_time.prefill_token_s * mean_prompt
    stall_s = prefill * batch / mean_left
    token_s = step_s + stall_s
    n = len(waiting)
    latest, hopeful, due = np.empty(n), np.empty(n), np.empty(n)
    _prospects(table_w, engine, token_s, step_s, caution, latest, hopeful, due)
    return Jobs(
        engine=engine,
        running=table_r,
        waiting=table_w,
        mean_tokens=left_w,
        latest_s=latest,
        hopeful=hopeful,
        due_s=due,
        token_s=token_s,
        stall_s=stall_s,
        release_gap_s=mean_left * token_s / batch,
    )
