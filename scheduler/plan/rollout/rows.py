"""From a problem to the rollout's rows: what each request needs, and how sure that is."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from lengthwise.data.arrays import FloatArray, njit
from lengthwise.data.lengths import STRATA, to_come
from lengthwise.scheduler.plan.rollout.decode_time import decode_s, more_s
from lengthwise.scheduler.plan.rollout.rollout_state import Engine, Rows
from lengthwise.scheduler.problem import Problem, RequestArrays

GOLDEN = 0.6180339887498949


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A problem as the rollout sees it.

    Rows ``[0, running)`` run, ``[running, waiting)`` recover, ``[waiting, expected)`` wait and
    the rest are expected arrivals. ``batch`` is how many run when as many do as may and would,
    ``token_s`` the seconds a token takes then, prefill stalls included, and ``answer_token_s`` the
    seconds of the engine that an output token costs then: its share of a step without prompts.
    """

    engine: Engine
    rows: Rows
    running: int
    waiting: int
    expected: int
    now_s: float
    token_s: float
    answer_token_s: float
    batch: float

    def __len__(self) -> int:
        return len(self.rows.need)

    @property
    def work_s(self) -> FloatArray:
        """Seconds of the whole engine that each row will take."""
        return self.engine.prefill_token_s * self.rows.left + self.answer_token_s * self.rows.need

    @property
    def slot_s(self) -> FloatArray:
        """Slot-seconds each row will take, the stall of all slots by its prefill included."""
        return self.batch * self.work_s

    def last_chance_s(self) -> FloatArray:
        """When each row starts at the latest if anything is to be met: alone, and its answer as
        short as one in ten.

        Later than ``rows.latest_s``, which is for choosing: whoever is past this is hardly met.
        Infinite where that is, for those whose turn has come late or not.
        """
        rows, engine = self.rows, self.engine
        first_s = first_token_s(engine, np.maximum(rows.left - rows.saved, 1.0))
        more_s = engine.base_s / engine.tokens_per_step * (rows.strata[:, 0] - 1.0)
        first_by_s = np.where(np.isnan(rows.first_s), rows.ttft_by_s, np.inf)
        last_s = np.minimum(first_by_s, rows.e2e_by_s - more_s) - first_s
        return np.where(np.isinf(rows.latest_s), np.inf, last_s)


@njit
def _lengths(
    levels: FloatArray,
    quantiles: FloatArray,
    generated: FloatArray,
    sampled: int,
    need: FloatArray,
    strata: FloatArray,
) -> None:
    """Tokens to come of every row: one number, and equally likely values.

    The first ``sampled`` rows, those that run, get a length at a level of their own, evenly
    spread over the rows: so slots come free one by one, as they do, while means would free them
    all at once. The others get their mean.
    """
    for i in range(len(need)):
        level = (0.5 + i * GOLDEN) % 1.0 if i < sampled else -1.0
        need[i] = to_come(levels, quantiles[i], generated[i], level, strata[i])


def engine_of(problem: Problem, pace: float = 1.0) -> Engine:
    """The engine's numbers for the rollout, every step ``pace`` times as long."""
    capacity = problem.capacity
    limits = (capacity.max_num_seqs, capacity.kv_tokens, capacity.max_num_batched_tokens)
    decode = (problem.tokens_per_step, problem.decode_budget_tokens)
    clock = problem.step_time.slowed(pace)
    return Engine._make((*clock.numbers, *map(float, limits), *map(float, decode)))


def first_token_s(engine: Engine, left: FloatArray) -> FloatArray:
    """Seconds to the first token of prompts with ``left`` tokens to compute, each alone."""
    chunks = np.maximum(1.0, np.ceil(left / engine.batched_tokens))
    return chunks * (engine.base_s + engine.prefill_step_s) + engine.prefill_token_s * left


def snapshot(
    problem: Problem,
    everybody: RequestArrays,
    waiting: int,
    expected: int,
    start_quantile: float,
    pace: float = 1.0,
) -> Snapshot:
    """The rollout's view of ``everybody``: running, recovering, waiting and expected rows.

    ``waiting`` and ``expected`` say where the last two begin; ``start_quantile`` is the length
    level that the latest start is computed at. Raises ValueError on times or quantiles that are
    not numbers.
    """
    rows = everybody
    for name in ("arrival_s", "prompt_tokens", "prefill_left_tokens", "generated_tokens", "weight"):
        if not np.isfinite(getattr(rows, name)).all():
            raise ValueError(f"{name} must be finite, got {getattr(rows, name)}")
    if not np.isfinite(rows.quantiles).all():
        raise ValueError("quantiles must be finite")
    if np.isnan(rows.ttft_s + rows.tpot_s + rows.e2e_s).any():
        raise ValueError("objectives must be numbers, infinite where there is none")
    running = len(problem.running)
    need, strata = np.empty(len(rows)), np.empty((len(rows), len(STRATA)))
    _lengths(
        np.ascontiguousarray(problem.levels, dtype=np.float64),
        np.maximum.accumulate(np.maximum(rows.quantiles, 1.0), axis=1),
        rows.generated_tokens,
        running,
        need,
        strata,
    )
    engine = engine_of(problem, pace)
    queued = slice(waiting, None) if waiting < len(rows) else slice(None)
    batch, token_s, answer_token_s = _full_batch(
        engine,
        _mean(rows.prompt_tokens[queued]),
        _mean(rows.prefill_left_tokens[queued]),
        _mean(need[queued]),
        len(rows),
    )
    # a first token that nobody timed came in time; one that is on its way comes with a step
    untimed = np.isnan(rows.first_token_s) & (rows.generated_tokens > 0.0)
    begun_s = np.where(untimed, rows.arrival_s, rows.first_token_s)
    left = np.maximum(rows.prefill_left_tokens, np.isnan(begun_s))
    left[waiting:] = np.maximum(left[waiting:], 1.0)
    first_s = first_token_s(engine, left)
    place = float(np.clip(start_quantile * len(STRATA) - 0.5, 0.0, len(STRATA) - 1.0))
    low = min(int(place), len(STRATA) - 2)
    cautious = strata[:, low] + (place - low) * (strata[:, low + 1] - strata[:, low])
    ttft_by_s, e2e_by_s = rows.arrival_s + rows.ttft_s, rows.arrival_s + rows.e2e_s
    latest_s = np.minimum(
        np.where(np.isnan(begun_s), ttft_by_s - first_s, np.inf),
        e2e_by_s - first_s - token_s * (cautious - 1.0),
    )
    has_objective = np.minimum(np.minimum(rows.ttft_s, rows.tpot_s), rows.e2e_s) < np.inf
    prefix = rows.prefix_id.copy()
    known = prefix >= 0
    prefix[known] = np.unique(prefix[known], return_inverse=True)[1]
    return Snapshot(
        engine,
        Rows(
            arrival_s=rows.arrival_s,
            left=left,
            target=rows.prompt_tokens + rows.generated_tokens,
            shared=np.minimum(rows.cached_tokens, rows.prompt_tokens - 1.0).clip(0.0),
            need=np.ceil(need),
            generated=rows.generated_tokens,
            first_s=begun_s,
            ttft_by_s=ttft_by_s,
            tpot_s=rows.tpot_s,
            e2e_by_s=e2e_by_s,
            weight=np.where(has_objective, np.maximum(rows.weight, 0.0), 0.0),
            latest_s=latest_s,
            strata=strata,
            prefix=prefix,
            saved=np.maximum(rows.prefix_tokens - rows.cached_tokens, 0.0) * known,
        ),
        running,
        waiting,
        expected,
        problem.now_s,
        token_s,
        answer_token_s,
        batch,
    )


def _mean(values: FloatArray) -> float:
    return float(values.mean()) if len(values) else 1.0


def _full_batch(
    engine: Engine, mean_prompt: float, mean_left: float, mean_need: float, n: int
) -> tuple[float, float, float]:
    """How many run when as many do as may and would; see ``Snapshot`` for the other two."""
    context = mean_prompt + mean_need / 2.0
    batch = max(1.0, min(engine.slots, n, engine.kv_tokens / max(context, 1.0)))
    token_s = decode_s(engine, 1.0, batch, batch * context) / engine.tokens_per_step
    prefill_s = more_s(engine, mean_left, batch, decode_s(engine, 1.0, batch, batch * context))
    return batch, token_s + prefill_s * batch / max(mean_need, 1.0), token_s / batch
