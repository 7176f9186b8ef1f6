"""What requests cost an engine on which as many run as may and would: seconds, each counted once.

A step's seconds are shared by those who cause or hold them. Its fixed part falls on slots alike
where slots bind, and where memory does on the tokens that nobody else uses; reading a context falls
on who has it; what a step takes longer because it computes a prompt falls on the prompts in it, of
which there are a Poisson number.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from lengthwise.data.arrays import FloatArray, njit
from lengthwise.scheduler.plan.rollout.decode_time import decode_s, more_s
from lengthwise.scheduler.plan.rollout.rollout_state import Engine, Rows


class Costs(NamedTuple):
    """Seconds of the whole engine: of an output token, more for each token of context meanwhile,
    and for each that no other request shares; of a prompt, besides its tokens; of a prompt token.
    """

    answer_token_s: float
    context_token_s: float
    own_token_s: float
    prompt_s: float
    prompt_token_s: float


class FullBatch(NamedTuple):
    """``size`` is how many run, ``token_s`` the seconds a token takes, prefill stalls included."""

    size: float
    token_s: float
    costs: Costs


@njit(inline="always")
def token_cost_s(costs: Costs, context: float, shared: float, need: float) -> float:
    """Seconds of the engine that each of ``need`` output tokens behind a ``context`` costs, of
    which ``shared`` tokens are, or will be, in memory for others too."""
    mean = context + need / 2.0
    return costs.answer_token_s + costs.context_token_s * mean + costs.own_token_s * (mean - shared)


@njit(inline="always")
def work_s(costs: Costs, token_s: float, left: float, need: float) -> float:
    """Seconds of the engine for ``left`` prompt tokens and ``need`` of the answer, at ``token_s``
    each."""
    prompt_s = costs.prompt_s if left > 0.0 else 0.0
    return prompt_s + costs.prompt_token_s * left + token_s * need


@njit
def all_work_s(costs: Costs, rows: Rows) -> FloatArray:
    """Seconds of the engine that each row will take, ``(k,)``."""
    seconds = np.empty(len(rows.need))
    for i in range(len(seconds)):
        shared = rows.shared[i] + rows.saved[i]
        token_s = token_cost_s(costs, rows.target[i], shared, rows.need[i])
        seconds[i] = work_s(costs, token_s, rows.left[i], rows.need[i])
    return seconds


def full_batch(
    engine: Engine,
    mean_prompt: float,
    mean_shared: float,
    mean_left: float,
    mean_need: float,
    most: int,
) -> FullBatch:
    """The full batch of at most ``most`` requests of this size, in tokens.

    ``mean_shared`` tokens of a context are in memory once for all, ``mean_left`` of a prompt must
    be computed, ``mean_need`` are to come. How many fit is reckoned as if nothing were shared: the
    pace of more would have requests taken for late that limits on the batch still meet.
    """
    context = mean_prompt + mean_need / 2.0
    by_memory = engine.kv_tokens / max(context, 1.0)
    by_slots = min(engine.slots, most)
    size = max(1.0, min(by_slots, by_memory))
    step_s = decode_s(engine, 1.0, size, size * context)
    stall_s = more_s(engine, mean_left, size, step_s)
    fixed_s = engine.base_s / size / engine.tokens_per_step
    sequence_s = engine.decode_seq_s / engine.tokens_per_step
    memory_binds = by_memory <= by_slots
    prompts = engine.tokens_per_step * size / max(mean_need, 1.0)  # in a step
    floor_s = max(stall_s - engine.prefill_token_s * mean_left, 0.0)
    return FullBatch(
        size,
        step_s / engine.tokens_per_step + stall_s * size / max(mean_need, 1.0),
        Costs(
            answer_token_s=sequence_s + (0.0 if memory_binds else fixed_s),
            context_token_s=engine.context_token_s / engine.tokens_per_step,
            own_token_s=fixed_s / max(context - mean_shared, 1.0) if memory_binds else 0.0,
            prompt_s=floor_s * (1.0 - math.exp(-prompts)) / prompts,
            prompt_token_s=engine.prefill_token_s,
        ),
    )
