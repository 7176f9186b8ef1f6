"""What a rollout takes and leaves: the engine, the rows, and where each row stands."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from lengthwise.data.arrays import FloatArray, IntArray

WAITING, PREFILLING, DECODING, DONE, FRONT, TAIL = range(6)
END_S, END_STEPS, END_RUNNING, END_PREEMPTIONS, END_RECOMPUTED, END_FOUND, END_STEP_S = range(7)


class Engine(NamedTuple):
    """The step-time model's numbers, limits in tokens and sequences, and what a decode is."""

    base_s: float
    prefill_step_s: float
    prefill_token_s: float
    decode_seq_s: float
    context_token_s: float
    eager_s: float
    graph_tokens: float
    slots: float
    kv_tokens: float
    batched_tokens: float
    tokens_per_step: float
    decode_budget: float


class Rows(NamedTuple):
    """Requests, ``(k,)`` each: running, recovering, waiting, then the expected by arrival.

    ``left`` is the tokens to compute before the next output token, ``target`` the context by
    then, ``shared`` those of it that a prefix cache holds for others too; ``need`` the output
    tokens to come and ``strata (k, s)`` equally likely values of it; ``latest_s`` the last
    admission that may still meet the objectives. ``prefix`` names a shared beginning (-1 none),
    of which ``saved`` tokens need not be computed once another row has done so.
    """

    arrival_s: FloatArray
    left: FloatArray
    target: FloatArray
    shared: FloatArray
    need: FloatArray
    generated: FloatArray
    first_s: FloatArray
    ttft_by_s: FloatArray
    tpot_s: FloatArray
    e2e_by_s: FloatArray
    weight: FloatArray
    latest_s: FloatArray
    strata: FloatArray
    prefix: IntArray
    saved: FloatArray


class Work(NamedTuple):
    """Scratch of a rollout and what it found.

    ``first_s`` and ``finish_s`` are inf or NaN where not reached; ``phase``, ``need`` and
    ``left`` tell where each row stands at the end; ``end`` holds the END_ figures, the last of
    which is a step's seconds, the mean of those that were taken at once.
    """

    first_s: FloatArray
    finish_s: FloatArray
    left: FloatArray
    target: FloatArray
    shared: FloatArray
    need: FloatArray
    held: FloatArray
    common: FloatArray
    began: IntArray
    ends: IntArray
    phase: IntArray
    place: IntArray
    where: IntArray
    computed: IntArray
    sharers: IntArray
    heap: IntArray
    stack: IntArray
    filling: IntArray
    front: IntArray
    missed: IntArray
    tail: IntArray
    end: FloatArray


def work_for(k: int) -> Work:
    """Scratch for rollouts of ``k`` rows."""
    floats = [np.zeros(k) for _ in range(8)]
    whole = [np.zeros(k, dtype=np.int64) for _ in range(7)]
    lists = [np.zeros(size, dtype=np.int64) for size in (4 * k + 8, 4 * k + 8, *[k + 1] * 4)]
    return Work._make((*floats, *whole, *lists, np.zeros(7)))
