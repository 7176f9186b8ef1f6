"""Seconds of steps, compiled: decodes many at a time, with the time of an arithmetic series."""

from __future__ import annotations

import numpy as np

from lengthwise.data.arrays import njit
from lengthwise.scheduler.plan.rollout.rollout_state import Engine


@njit(inline="always")
def decode_s(engine: Engine, steps: float, active: float, context: float) -> float:
    """Seconds of ``steps`` steps of ``active`` decodes that start with ``context`` tokens."""
    one = engine.base_s + engine.decode_seq_s * active + engine.context_token_s * context
    growth = engine.context_token_s * active * engine.tokens_per_step
    return steps * one + growth * steps * (steps - 1.0) / 2.0


@njit(inline="always")
def more_s(engine: Engine, prefill: float, active: float, decodes_s: float) -> float:
    """Seconds that ``prefill`` prompt tokens add to a step whose decodes take ``decodes_s``."""
    added_s = engine.prefill_step_s + engine.prefill_token_s * prefill
    if prefill + active > engine.graph_tokens:
        added_s = max(added_s, engine.eager_s - decodes_s)
    return added_s


@njit(inline="always")
def steps_within(engine: Engine, seconds: float, active: float, context: float) -> int:
    """The fewest decode steps, at least 1, that take ``seconds`` or more."""
    one = decode_s(engine, 1.0, active, context)
    half = engine.context_token_s * active * engine.tokens_per_step / 2.0
    linear = one - half
    if half < 1e-9 * one:
        return max(1, int(np.ceil(min(seconds / one, 1e9))))
    return max(1, int(np.ceil((np.sqrt(linear**2 + 4.0 * half * seconds) - linear) / (2.0 * half))))
