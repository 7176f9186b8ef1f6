"""From a problem to the kernels' arrays: what each request needs and may hope for."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from lengthwise.data.arrays import BoolArray, FloatArray, IntArray, njit
from lengthwise.data.lengths import cdf_at, fresh_mean, remaining_mean, strata_places
from lengthwise.scheduler.plan import kernels as k
from lengthwise.scheduler.problem import Problem, RequestArrays

# What _fill answers when it cannot go on.
_FINE, _NOT_A_NUMBER = 0, 1


@dataclass(frozen=True, slots=True)
class Jobs:
    """Kernel tables (see ``kernels.JOB_COLUMNS``) and per-request figures, ``(n,)`` each.

    ``token_s`` is the seconds a token takes in a batch of ``batch``, as many as may and would
    run, prefill stalls included.
    ``latest_s`` is when a request must be admitted to meet its objectives with a length at the
    ``caution`` level, ``chance`` the probability that it meets them when admitted now,
    ``can_meet`` whether it does with its mean length; ``due_s`` is its first deadline.
    """

    engine: FloatArray
    running: FloatArray
    waiting: FloatArray
    mean_tokens: FloatArray
    latest_s: FloatArray
    due_s: FloatArray
    chance: FloatArray
    can_meet: BoolArray
    batch: float
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
    def weight(self) -> FloatArray:
        """Class weight of each waiting request; 0 for best effort."""
        return self.waiting[:, k.WEIGHT]


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


@njit
def _fill(
    levels: FloatArray,
    quantiles: FloatArray,
    above: IntArray,
    share: FloatArray,
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
    due: FloatArray,
) -> int:
    """Fill the table but for its slot-seconds.

    ``above`` and ``share`` are ``lengths.strata_places``; empty, they leave the lengths out.
    Rows are repaired on the way: at least one token, non-decreasing.
    """
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
        chunks = max(1.0, np.ceil(left[i] / max_batched))
        table[i, k.PREFILL] = left[i]
        table[i, k.CONTEXT] = prompt[i] + generated[i]
        table[i, k.SLOT_STEPS] = chunks - 1.0 + max(1.0, np.ceil(mean[i]))
        table[i, k.CHUNKS] = chunks
        table[i, k.TTFT_BY] = arrival[i] + ttft[i]
        table[i, k.E2E_BY] = arrival[i] + e2e[i]
        table[i, k.TPOT] = tpot[i]
        objectives = ttft[i] < np.inf or e2e[i] < np.inf or tpot[i] < np.inf
        table[i, k.WEIGHT] = max(weight[i], 0.0) if objectives else 0.0
        due[i] = min(table[i, k.TTFT_BY], table[i, k.E2E_BY])
        for s in range(len(above)):
            c = above[s]
            length = np.exp(logs[c - 1] + share[s] * (logs[c] - logs[c - 1])) - generated[i]
            # a preempted request has part of its answer: only the rest is to come
            table[i, k.LENGTHS + s] = max(1.0, length)
    return _FINE


@njit
def _shorten(
    levels: FloatArray,
    quantiles: FloatArray,
    generated: FloatArray,
    table: FloatArray,
    mean: FloatArray,
    now: float,
    token_s: float,
) -> None:
    """Slot steps of requests that give up their slot at their deadline: E[min(left, till then)].

    A deadline that has passed shortens nothing: who takes such a slot back is another question.
    """
    last = len(levels) - 1
    for i in range(len(table)):
        budget = (table[i, k.E2E_BY] - now) / token_s - table[i, k.CHUNKS] + 1.0
        end = generated[i] + budget
        if budget < 1.0 or end >= quantiles[i, last]:
            continue
        alive = 1.0 - cdf_at(levels, quantiles[i], generated[i]) if generated[i] > 0.0 else 1.0
        if alive <= 1e-6:
            continue
        beyond = (1.0 - cdf_at(levels, quantiles[i], end)) / alive
        expected = mean[i] - beyond * remaining_mean(levels, quantiles[i], end)
        table[i, k.SLOT_STEPS] = table[i, k.CHUNKS] - 1.0 + max(1.0, np.ceil(expected))


@njit
def _prospects(
    table: FloatArray,
    engine: FloatArray,
    mean: FloatArray,
    token_s: float,
    step_s: float,
    caution: float,
    latest: FloatArray,
    chance: FloatArray,
    can_meet: BoolArray,
) -> None:
    """Fill slot-seconds, latest start and chance of every row."""
    objective = np.zeros(k.MODE + 1)
    objective[k.STALL] = token_s - step_s
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
        token_by = job[k.TTFT_BY] - first
        end_by = job[k.E2E_BY] - first
        latest[i] = min(token_by, end_by - token_s * (cautious - 1.0))
        chance[i] = k.meet_probability(objective, job, 0.0, now + first, step_s)
        can_meet[i] = min(token_by, end_by - token_s * (mean[i] - 1.0)) >= now


def _table(
    problem: Problem, rows: RequestArrays, with_lengths: bool
) -> tuple[FloatArray, FloatArray, FloatArray]:
    """(table, mean tokens left, first deadline)."""
    n = len(rows)
    table, mean, due = np.zeros((n, len(k.JOB_COLUMNS))), np.empty(n), np.empty(n)
    levels = np.ascontiguousarray(problem.levels, dtype=np.float64)
    above, share = strata_places(levels)
    used = len(above) if with_lengths else 0
    outcome = _fill(
        levels,
        rows.quantiles,
        above[:used],
        share[:used],
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
        due,
    )
    if outcome == _NOT_A_NUMBER:
        raise ValueError("requests must be numbers: NaN or infinity where only objectives may be")
    return table, mean, due


def prepare(problem: Problem, caution: float = 0.5, yielding: bool = False) -> Jobs:
    """Tables and figures of a problem; ``caution`` in [0, 1] is the length level to be safe at.

    With ``yielding`` a request holds its slot no longer than until its deadline (``preemption``).
    Raises ValueError on quantiles or times that are not numbers.
    """
    waiting, mean, due = _table(problem, problem.waiting, True)
    running, running_mean, _ = _table(problem, problem.running, False)
    engine = engine_numbers(problem)
    n = len(waiting)
    mean_left = float(mean.sum() / n) if n else 1.0
    mean_prompt = float(problem.waiting.prompt_tokens.sum() / n) if n else 1.0
    # A duration needs a batch: the full engine, as far as requests and the KV cache fill it.
    context = mean_prompt + mean_left / 2.0
    batch = min(
        problem.capacity.max_num_seqs, n + len(running), problem.capacity.kv_tokens / context
    )
    batch = max(1.0, batch)
    step_s = problem.step_time.step_s(0.0, batch, batch * context)
    prefill_s = problem.step_time.prefill_step_s + problem.step_time.prefill_token_s * mean_prompt
    stall_s = prefill_s * batch / mean_left
    token_s = step_s + stall_s
    if yielding:
        for rows, table, left in (
            (problem.waiting, waiting, mean),
            (problem.running, running, running_mean),
        ):
            _shorten(
                problem.levels, rows.quantiles, rows.generated_tokens,
                table, left, problem.now_s, token_s,
            )  # fmt: skip
    latest = np.empty(n)
    chance, can_meet = np.empty(n), np.empty(n, dtype=np.bool_)
    _prospects(waiting, engine, mean, token_s, step_s, caution, latest, chance, can_meet)
    return Jobs(
        engine=engine,
        running=running,
        waiting=waiting,
        mean_tokens=mean,
        latest_s=latest,
        due_s=due,
        chance=chance,
        can_meet=can_meet,
        batch=batch,
        token_s=token_s,
        stall_s=stall_s,
        release_gap_s=mean_left * token_s / batch,
    )
