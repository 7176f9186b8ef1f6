"""The compiled rollout: the twin of ``rollout.py`` on arrays, and its cost with restarts.

A job is a row of JOB_COLUMNS. The slots in use form a binary heap of integer keys
``end_step << SEQ_BITS | seq``, where seq numbers the running rows first, then the positions of
the order; so the key alone gives the end, its tie-break and, through the order, its row.
Admission of position p costs O(log m); nothing walks single steps.
"""

from __future__ import annotations

import math

import numpy as np

from lengthwise.data.arrays import FloatArray, IntArray, njit

JOB_COLUMNS = (
    "prefill_tokens",
    "context_tokens",
    "slot_steps",  # chunks - 1 + answer tokens, whole
    "chunks",
    "first_token_by_s",  # arrival + ttft
    "finish_by_s",  # arrival + e2e
    "tpot_s",
    "weight",
    "slot_s",  # slot-seconds the request will take, its prefill's stall of all slots included
    "dilation",  # how much longer a wait gets by the arrivals that will go before, as a share
    "length_0",  # equally likely lengths of the answer in tokens
    "length_1",
    "length_2",
    "length_3",
    "length_4",
)
PREFILL, CONTEXT, SLOT_STEPS, CHUNKS, TTFT_BY, E2E_BY, TPOT, WEIGHT, SLOT_S = range(9)
DILATION, LENGTHS = 9, 10
STRATA_COUNT = len(JOB_COLUMNS) - LENGTHS

# Engine numbers, one array: step-time coefficients, then limits, then the clock.
BASE, PREFILL_STEP, PREFILL_TOKEN, DECODE_SEQ, CONTEXT_TOKEN, SLOTS, KV, NOW = range(8)

# Objective numbers, one array; see objective.Objective.
PRICE, PATIENCE, SPREAD, RELEASE_GAP, STALL, LATENCY, MODE = range(7)
ATTAINMENT_MODE, G_MODE = 0.0, 1.0

SEQ_BITS = 22
SEQ_MASK = (1 << SEQ_BITS) - 1

# A restart point's numbers, one array.
_T, _STEP, _CTX, _ACTIVE, _PREFILLED_AT, _COST, _LATENCY_SUM, _STATE = range(8)
RESTART_EVERY = 8
SQRT3 = math.sqrt(3.0)


@njit(inline="always")
def _push(heap: IntArray, size: int, key: int) -> None:
    i = size
    while i > 0:
        parent = (i - 1) >> 1
        if heap[parent] <= key:
            break
        heap[i] = heap[parent]
        i = parent
    heap[i] = key


@njit(inline="always")
def _pop(heap: IntArray, size: int) -> int:
    top = heap[0]
    size -= 1
    key = heap[size]
    i = 0
    while True:
        child = 2 * i + 1
        if child >= size:
            break
        if child + 1 < size and heap[child + 1] < heap[child]:
            child += 1
        if key <= heap[child]:
            break
        heap[i] = heap[child]
        i = child
    heap[i] = key
    return int(top)


@njit
def _span_s(engine: FloatArray, steps: float, active: float, context: float) -> float:
    """Seconds of ``steps`` decode steps of ``active`` sequences that start with ``context``."""
    start = engine[BASE] + engine[DECODE_SEQ] * active + engine[CONTEXT_TOKEN] * context
    growth = engine[CONTEXT_TOKEN] * active
    return float(steps * start + growth * steps * (steps - 1.0) / 2.0)


@njit
def rollout(
    engine: FloatArray, running: FloatArray, jobs: FloatArray, order: IntArray
) -> tuple[FloatArray, FloatArray]:
    """Outcomes ``(r, 4)`` and ``(n, 4)``: admitted, first token, finish, step seconds."""
    r, n = len(running), len(jobs)
    done_running = np.full((r, 4), np.nan)
    done = np.full((n, 4), np.nan)
    heap = np.empty(r + n + 1, dtype=np.int64)
    t, step, context, active, prefilled_at = engine[NOW], 0, 0.0, 0, -1
    for seq in range(r + len(order)):
        if seq < r:
            job, out = running[seq], done_running[seq]
        else:
            job, out = jobs[order[seq - r]], done[order[seq - r]]
            while active > 0 and (active >= engine[SLOTS] or context + job[CONTEXT] > engine[KV]):
                key = _pop(heap, active)
                end, who = key >> SEQ_BITS, key & SEQ_MASK
                t += _span_s(engine, end - step, active, context)
                context += active * (end - step)
                if who < r:
                    context -= running[who, CONTEXT] + running[who, SLOT_STEPS]
                    done_running[who, 2] = t
                else:
                    row = order[who - r]
                    context -= jobs[row, CONTEXT] + jobs[row, SLOT_STEPS]
                    done[row, 2] = t
                step = end
                active -= 1
        out[0] = t
        if job[PREFILL] > 0.0:
            if prefilled_at != step:
                t += engine[PREFILL_STEP] * job[CHUNKS]
                prefilled_at = step
            t += engine[PREFILL_TOKEN] * job[PREFILL]
        context += job[CONTEXT]
        _push(heap, active, ((step + int(job[SLOT_STEPS])) << SEQ_BITS) | seq)
        active += 1
        out[3] = _span_s(engine, 1.0, active, context)
        out[1] = t + job[CHUNKS] * out[3]
    while active > 0:
        key = _pop(heap, active)
        end, who = key >> SEQ_BITS, key & SEQ_MASK
        t += _span_s(engine, end - step, active, context)
        context += active * (end - step)
        if who < r:
            context -= running[who, CONTEXT] + running[who, SLOT_STEPS]
            done_running[who, 2] = t
        else:
            row = order[who - r]
            context -= jobs[row, CONTEXT] + jobs[row, SLOT_STEPS]
            done[row, 2] = t
        step = end
        active -= 1
    return done_running, done


@njit
def _ramp(slack_s: float, spread_s: float) -> float:
    """P(noise <= slack) for noise uniform with standard deviation ``spread_s``."""
    half = SQRT3 * spread_s
    if slack_s >= half:
        return 1.0
    if slack_s <= -half:
        return 0.0
    return 0.5 + slack_s / (2.0 * half)


@njit
def meet_probability(
    objective: FloatArray, job: FloatArray, wait_s: float, first_token_s: float, step_s: float
) -> float:
    """P(all objectives of the request hold) when it is admitted ``wait_s`` from now."""
    first_token_s += max(wait_s, 0.0) * job[DILATION]
    spread_s = objective[SPREAD] * math.sqrt(max(wait_s, 0.0) * objective[RELEASE_GAP]) + step_s
    p = 1.0
    if job[TTFT_BY] < np.inf:
        p = _ramp(job[TTFT_BY] - first_token_s, spread_s)
    token_s = step_s + objective[STALL]
    if job[TPOT] < np.inf:
        p *= _ramp(job[TPOT] - token_s, 0.05 * token_s)
    if p > 0.0 and job[E2E_BY] < np.inf:
        left_s = job[E2E_BY] - first_token_s + token_s
        met = 0.0
        for k in range(LENGTHS, LENGTHS + STRATA_COUNT):
            met += _ramp(left_s - token_s * job[k], spread_s)
        p *= met / STRATA_COUNT
    return p


@njit
def request_cost(
    objective: FloatArray, job: FloatArray, wait_s: float, first_token_s: float, step_s: float
) -> float:
    """What the request adds to the cost: minus its value net of the price of its slot time.

    Value w·P(met), less price x slot-seconds if that leaves anything (a request that is not
    worth its slot is left for idle time, so it costs nothing), discounted by the wait, because
    a plan for later is overtaken by arrivals; plus a small term in the wait itself.
    """
    late = wait_s / objective[PATIENCE]
    cost = objective[LATENCY] * late
    if job[WEIGHT] > 0.0:
        p = meet_probability(objective, job, wait_s, first_token_s, step_s)
        net = job[WEIGHT] * p - objective[PRICE] * job[SLOT_S]
        if net > 0.0:
            cost -= net / (1.0 + late)
    return cost


@njit
def start_state(engine: FloatArray, running: FloatArray, state: FloatArray, heap: IntArray) -> None:
    """Fill restart point 0: everything that runs is admitted, nothing waiting is."""
    t, context, active, prefilled = engine[NOW], 0.0, 0, -1.0
    for seq in range(len(running)):
        job = running[seq]
        if job[PREFILL] > 0.0:
            if prefilled < 0.0:
                t += engine[PREFILL_STEP] * job[CHUNKS]
                prefilled = 0.0
            t += engine[PREFILL_TOKEN] * job[PREFILL]
        context += job[CONTEXT]
        _push(heap, active, (int(job[SLOT_STEPS]) << SEQ_BITS) | seq)
        active += 1
    state[:] = 0.0
    state[_T], state[_CTX], state[_ACTIVE], state[_PREFILLED_AT] = t, context, active, prefilled


@njit
def evaluate(
    engine: FloatArray,
    objective: FloatArray,
    running: FloatArray,
    jobs: FloatArray,
    order: IntArray,
    begin: int,
    states: FloatArray,
    heaps: IntArray,
    side: IntArray,
    work: IntArray,
) -> float:
    """Cost of admitting ``jobs`` in ``order`` (in G mode its last part: see below).

    Restart points stand every RESTART_EVERY positions: ``states (2, c, 8)``,
    ``heaps (2, c, slots)``; ``side (c,)`` says which of the two copies is the accepted order's.
    The walk starts at point ``begin`` and writes later points into the other copy, so that a
    rejected proposal leaves nothing to undo and an accepted one flips ``side``.
    ``work`` is a heap to scribble on. In G mode the result is -log(met / total latency).
    """
    r, n = len(running), len(order)
    state = states[side[begin], begin]
    t, step, context = state[_T], int(state[_STEP]), state[_CTX]
    active, prefilled_at = int(state[_ACTIVE]), int(state[_PREFILLED_AT])
    cost, latency = state[_COST], state[_LATENCY_SUM]
    work[:active] = heaps[side[begin], begin, :active]
    now, slots, kv = engine[NOW], engine[SLOTS], engine[KV]
    ratio = objective[MODE] == G_MODE
    for position in range(begin * RESTART_EVERY, n):
        if position % RESTART_EVERY == 0 and position > begin * RESTART_EVERY:
            c = position // RESTART_EVERY
            state = states[1 - side[c], c]
            state[_T], state[_STEP], state[_CTX] = t, step, context
            state[_ACTIVE], state[_PREFILLED_AT] = active, prefilled_at
            state[_COST], state[_LATENCY_SUM] = cost, latency
            heaps[1 - side[c], c, :active] = work[:active]
        job = jobs[order[position]]
        while active > 0 and (active >= slots or context + job[CONTEXT] > kv):
            key = _pop(work, active)
            end, who = key >> SEQ_BITS, key & SEQ_MASK
            t += _span_s(engine, end - step, active, context)
            context += active * (end - step)
            if who < r:
                context -= running[who, CONTEXT] + running[who, SLOT_STEPS]
            else:
                row = order[who - r]
                context -= jobs[row, CONTEXT] + jobs[row, SLOT_STEPS]
            step = end
            active -= 1
        admitted = t
        if job[PREFILL] > 0.0:
            if prefilled_at != step:
                t += engine[PREFILL_STEP] * job[CHUNKS]
                prefilled_at = step
            t += engine[PREFILL_TOKEN] * job[PREFILL]
        context += job[CONTEXT]
        _push(work, active, ((step + int(job[SLOT_STEPS])) << SEQ_BITS) | (r + position))
        active += 1
        step_s = engine[BASE] + engine[DECODE_SEQ] * active + engine[CONTEXT_TOKEN] * context
        first = t + job[CHUNKS] * step_s
        if ratio:
            p = meet_probability(objective, job, admitted - now, first, step_s)
            cost += job[WEIGHT] * p
            latency += first - now + (step_s + objective[STALL]) * job[SLOT_STEPS]
        else:
            cost += request_cost(objective, job, admitted - now, first, step_s)
    if ratio:
        return float(-math.log((cost + 1e-9) / (latency + 1e-9)))
    return float(cost)
