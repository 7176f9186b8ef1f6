"""Every instance's requests as rows of the planner's rollout, side by side in one block.

Row ``[i, p]`` is the ``p``-th request of instance ``i``: first those that run, then those the
engine preempted, those that wait, and those sent since the state was taken, which arrive in the
rollout when they were sent. So the instance is reckoned forward by the rollout itself, from the
time of its last state, with its own step model.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from lengthwise.data.arrays import FloatArray, IntArray, njit
from lengthwise.data.lengths import STRATA, to_come
from lengthwise.scheduler.fleet.fleet_request import NO_LIMITS
from lengthwise.scheduler.fleet.known_requests import (
    ARRIVAL,
    CACHED,
    E2E_BY,
    MEAN,
    PREFIX_TOKENS,
    PROMPT,
    SENT,
    TPOT,
    TTFT_BY,
    WEIGHT,
    KnownColumns,
)
from lengthwise.scheduler.plan.rollout.decode_time import decode_s, more_s
from lengthwise.scheduler.plan.rollout.rollout_state import Engine, Rows
from lengthwise.scheduler.plan.rollout.rows import GOLDEN
from lengthwise.scheduler.problem import NO_PREFIX
from lengthwise.scheduler.profile import EngineProfile

START_QUANTILE = 0.7  # length level the latest start is computed at, as the planner's
FIRST_ROOM = 128

# of ``engines``
PREFILL_TOKEN_S, SLOTS, KV_TOKENS = (
    Engine._fields.index(name) for name in ("prefill_token_s", "slots", "kv_tokens")
)
# counts of an instance: running, recovering, those of the state, all
RUNNING, RECOVERING, STATED, ALL = range(4)
# figures of an instance: see FleetRows
BEGIN_S, TOKEN_S, ANSWER_TOKEN_S, SEEN_WORK_S, BOOKED_WORK_S, PACE, KV_USED, BLOCK = range(8)
# of ``valued``
VALUE, VALUED_S, UNTIL_S, MEAN_PROMPT, MEAN_NEED, WITH, WITH_SLOT = range(7)


class FleetRows(NamedTuple):
    """``columns`` are ``(m, p)``, of which ``counts (m, 4)`` are valid.

    ``owner`` is the request's slot in the known requests, ``shared_id`` its prefix as all know it.
    ``figures (m, 8)``: when the state was taken, seconds a token in a full batch, seconds of the
    engine an output token, seconds of the engine's work in the state and booked since, the share
    of a full batch's pace it works at, KV tokens needed by all there, and tokens a block of its
    prefix cache (0 for none). ``engines (m, 12)`` are `plan.rollout.rollout_state.Engine`,
    ``limits (m, 3)`` those of the plan in force (`PlanLimits`). ``valued (m, 7)``: the value of
    the plan of all there (NaN where it is not known), when and how it was found (`gain.gains`),
    and the same with one request more.
    """

    columns: Rows
    owner: IntArray
    shared_id: IntArray
    counts: IntArray
    figures: FloatArray
    engines: FloatArray
    limits: FloatArray
    valued: FloatArray


def empty_rows(instances: int, room: int = FIRST_ROOM) -> FleetRows:
    """Room for ``room`` requests on each of so many instances."""
    shape = (instances, room)
    figures = [np.zeros(shape) for _ in range(12)]
    strata, prefix = np.ones((*shape, len(STRATA))), np.zeros(shape, dtype=np.int64)
    return FleetRows(
        columns=Rows._make((*figures, strata, prefix, np.zeros(shape))),
        owner=np.zeros(shape, dtype=np.int64),
        shared_id=np.full(shape, NO_PREFIX, dtype=np.int64),
        counts=np.zeros((instances, 4), dtype=np.int64),
        figures=np.zeros((instances, 8)),
        engines=np.zeros((instances, 12)),
        limits=np.tile(NO_LIMITS, (instances, 1)),
        valued=np.full((instances, 7), np.nan),
    )


def grown_rows(rows: FleetRows, instances: int, room: int) -> FleetRows:
    """The same rows with room for at least so many instances and requests on each."""
    m, before = rows.owner.shape
    if instances <= m and room <= before:
        return rows
    grown = empty_rows(max(instances, m), before if room <= before else max(room, 2 * before))
    for ours, theirs in zip(_arrays(grown), _arrays(rows), strict=True):
        if ours.ndim > 1 and ours.shape[1] != theirs.shape[1]:
            ours[:m, :before] = theirs
        else:
            ours[:m] = theirs
    return grown


def _arrays(rows: FleetRows) -> tuple[np.ndarray, ...]:
    return (*rows.columns, *rows[1:])


def set_engine(rows: FleetRows, i: int, profile: EngineProfile) -> None:
    """Instance ``i`` is of this kind and holds nothing."""
    rows.counts[i] = 0
    rows.figures[i] = 0.0
    rows.figures[i, BEGIN_S] = -np.inf
    rows.limits[i] = NO_LIMITS
    change_engine(rows, i, profile)


def change_engine(rows: FleetRows, i: int, profile: EngineProfile) -> None:
    """Instance ``i`` is of this kind; what it holds stays."""
    capacity, drafts = profile.capacity, profile.speculation
    rows.engines[i] = (
        *profile.scaled_step_time.numbers,
        capacity.max_num_seqs,
        capacity.kv_tokens,
        capacity.max_num_batched_tokens,
        1.0 if drafts is None else drafts.accepted_tokens,
        1.0 if drafts is None else 1.0 + drafts.draft_tokens,
    )
    rows.valued[i] = np.nan
    rows.figures[i, BLOCK] = (
        0 if profile.prefix_cache is None else profile.prefix_cache.block_tokens
    )


@njit(inline="always")
def engine_at(r: FleetRows, i: int) -> Engine:
    """The instance's engine as the rollout takes it."""
    e = r.engines[i]
    return Engine(e[0], e[1], e[2], e[3], e[4], e[5], e[6], e[7], e[8], e[9], e[10], e[11])


@njit(inline="always")
def rows_at(r: FleetRows, i: int, k: int) -> Rows:
    """The instance's first ``k`` requests as the rollout takes them."""
    rows = r.columns
    return Rows(
        rows.arrival_s[i, :k],
        rows.left[i, :k],
        rows.target[i, :k],
        rows.shared[i, :k],
        rows.need[i, :k],
        rows.generated[i, :k],
        rows.first_s[i, :k],
        rows.ttft_by_s[i, :k],
        rows.tpot_s[i, :k],
        rows.e2e_by_s[i, :k],
        rows.weight[i, :k],
        rows.latest_s[i, :k],
        rows.strata[i, :k],
        rows.prefix[i, :k],
        rows.saved[i, :k],
    )


@njit
def full_batch(r: FleetRows, i: int, mean_prompt: float, mean_need: float) -> None:
    """The instance's pace when as many run as may and would, for requests of this size."""
    engine = engine_at(r, i)
    context = mean_prompt + mean_need / 2.0
    batch = max(1.0, min(engine.slots, engine.kv_tokens / max(context, 1.0)))
    step_s = decode_s(engine, 1.0, batch, batch * context)
    prefill_s = more_s(engine, mean_prompt, batch, step_s)
    r.figures[i, ANSWER_TOKEN_S] = step_s / engine.tokens_per_step / batch
    alone = max(1.0, min(batch, float(r.counts[i, ALL])))
    token_s = decode_s(engine, 1.0, alone, alone * context) / engine.tokens_per_step
    r.figures[i, TOKEN_S] = token_s + prefill_s * alone / max(mean_need, 1.0)
    running = min(batch, float(r.counts[i, RUNNING]))
    r.figures[i, PACE] = 0.0
    if running > 0.0:
        now_s = decode_s(engine, 1.0, running, running * context) / engine.tokens_per_step
        r.figures[i, PACE] = min(1.0, running * r.figures[i, ANSWER_TOKEN_S] / now_s)


@njit
def write_row(
    r: FleetRows,
    known: KnownColumns,
    i: int,
    at: int,
    slot: int,
    at_s: float,
    generated: float,
    left: float,
    cached: float,
    first_s: float,
    level: float,
) -> None:
    """Request ``slot`` as row ``at`` of instance ``i``, there from ``at_s`` on.

    ``level`` of its length, negative for the mean; ``left`` prompt tokens beyond the ``cached``.
    """
    rows, f = r.columns, known.figures[slot]
    engine = engine_at(r, i)
    strata = rows.strata[i, at]
    if generated > 0.0 or level >= 0.0:
        need = to_come(known.levels, known.quantiles[slot], generated, level, strata)
    else:
        need = f[MEAN]
        strata[:] = known.strata[slot]
    if np.isnan(first_s) and generated > 0.0:  # a first token that nobody timed came in time
        first_s = f[ARRIVAL]
    waits = np.isnan(first_s)
    if waits or at >= r.counts[i, RUNNING]:
        left = max(left, 1.0)
    chunks = max(1.0, np.ceil(left / engine.batched_tokens))
    begin = chunks * (engine.base_s + engine.prefill_step_s) + engine.prefill_token_s * left
    place = min(max(START_QUANTILE * len(strata) - 0.5, 0.0), len(strata) - 1.0)
    low = min(int(place), len(strata) - 2)
    cautious = strata[low] + (place - low) * (strata[low + 1] - strata[low])
    latest_s = f[E2E_BY] - begin - r.figures[i, TOKEN_S] * (cautious - 1.0)
    if waits:
        latest_s = min(latest_s, f[TTFT_BY] - begin)
    rows.arrival_s[i, at], rows.left[i, at] = at_s, left
    rows.target[i, at] = f[PROMPT] + generated
    rows.shared[i, at] = max(0.0, min(cached, f[PROMPT] - 1.0))
    rows.need[i, at], rows.generated[i, at] = np.ceil(need), generated
    rows.first_s[i, at], rows.ttft_by_s[i, at] = first_s, f[TTFT_BY]
    rows.tpot_s[i, at], rows.e2e_by_s[i, at] = f[TPOT], f[E2E_BY]
    rows.weight[i, at], rows.latest_s[i, at] = f[WEIGHT], latest_s
    r.owner[i, at] = slot
    block, prefix = r.figures[i, BLOCK], known.prefix[slot]
    if block < 1.0 or prefix < 0:
        r.shared_id[i, at], rows.prefix[i, at], rows.saved[i, at] = NO_PREFIX, NO_PREFIX, 0.0
        return
    r.shared_id[i, at] = prefix
    rows.prefix[i, at] = at  # rows number a prefix by who has it first
    for p in range(at):
        if r.shared_id[i, p] == prefix:
            rows.prefix[i, at] = rows.prefix[i, p]
            break
    whole = min(f[PREFIX_TOKENS], f[PROMPT] - 1.0) // block * block
    rows.saved[i, at] = max(whole - cached, 0.0)


@njit(inline="always")
def work_of(r: FleetRows, i: int, at: int) -> float:
    """Seconds of the whole engine that the row will take."""
    prefill_s = r.engines[i, PREFILL_TOKEN_S] * r.columns.left[i, at]
    return prefill_s + r.figures[i, ANSWER_TOKEN_S] * r.columns.need[i, at]


@njit
def place(
    r: FleetRows,
    known: KnownColumns,
    i: int,
    taken_s: float,
    slots: IntArray,
    running: int,
    recovering: int,
    progress: FloatArray,
    booked: IntArray,
    mean_prompt: float,
    mean_need: float,
) -> None:
    """Instance ``i`` as of ``taken_s``: its requests ``slots (n,)``, then the ``booked (b,)``.

    ``progress (4, n)``: generated, prompt tokens left, cached, first token's time. Slots that are
    -1, of requests the router does not know, are left out. There must be room.
    """
    rows = r.columns
    r.valued[i] = np.nan
    r.figures[i, BEGIN_S] = taken_s
    n, at, runs, recovers = len(slots), 0, 0, 0
    for p in range(n):
        if slots[p] >= 0:
            runs += p < running
            recovers += running <= p < running + recovering
    r.counts[i, RUNNING], r.counts[i, RECOVERING] = runs, recovers
    r.counts[i, ALL] = n + len(booked)
    full_batch(r, i, mean_prompt, mean_need)
    seen_s, booked_s, kv = 0.0, 0.0, 0.0
    for p in range(n):
        slot = slots[p]
        if slot < 0:
            continue
        level = -1.0
        if p < running:  # spread, so that slots come free one by one, as they do
            level = (0.5 + at * GOLDEN) % 1.0
        write_row(
            r, known, i, at, slot, min(known.figures[slot, SENT], taken_s), progress[0, p],
            progress[1, p], progress[2, p], progress[3, p], level,
        )  # fmt: skip
        seen_s += work_of(r, i, at)
        kv += rows.target[i, at] - rows.shared[i, at]
        at += 1
    r.counts[i, STATED] = at
    for p in range(len(booked)):
        slot = booked[p]
        f = known.figures[slot]
        cached = f[CACHED]
        write_row(
            r, known, i, at, slot, f[SENT], 0.0, f[PROMPT] - cached, cached, np.nan, -1.0
        )  # fmt: skip
        booked_s += work_of(r, i, at)
        kv += rows.target[i, at] - rows.shared[i, at]
        at += 1
    r.counts[i, ALL] = at
    r.figures[i, SEEN_WORK_S], r.figures[i, BOOKED_WORK_S] = seen_s, booked_s
    r.figures[i, KV_USED] = kv


@njit
def remove_rows(r: FleetRows, i: int, slot: int) -> None:
    """Request ``slot`` has ended on instance ``i``: its row goes, the others close up."""
    rows, k, at = r.columns, r.counts[i, ALL], 0
    while at < k and r.owner[i, at] != slot:
        at += 1
    if at == k:
        return
    r.valued[i] = np.nan
    if at < r.counts[i, STATED]:
        r.figures[i, SEEN_WORK_S] -= work_of(r, i, at)
        r.counts[i, STATED] -= 1
        if at < r.counts[i, RUNNING]:
            r.counts[i, RUNNING] -= 1
        elif at < r.counts[i, RUNNING] + r.counts[i, RECOVERING]:
            r.counts[i, RECOVERING] -= 1
    else:
        r.figures[i, BOOKED_WORK_S] -= work_of(r, i, at)
    r.figures[i, KV_USED] -= rows.target[i, at] - rows.shared[i, at]
    for p in range(at, k - 1):
        rows.arrival_s[i, p], rows.left[i, p] = rows.arrival_s[i, p + 1], rows.left[i, p + 1]
        rows.target[i, p], rows.shared[i, p] = rows.target[i, p + 1], rows.shared[i, p + 1]
        rows.need[i, p], rows.generated[i, p] = rows.need[i, p + 1], rows.generated[i, p + 1]
        rows.first_s[i, p], rows.weight[i, p] = rows.first_s[i, p + 1], rows.weight[i, p + 1]
        rows.ttft_by_s[i, p], rows.tpot_s[i, p] = rows.ttft_by_s[i, p + 1], rows.tpot_s[i, p + 1]
        rows.e2e_by_s[i, p], rows.latest_s[i, p] = rows.e2e_by_s[i, p + 1], rows.latest_s[i, p + 1]
        rows.strata[i, p] = rows.strata[i, p + 1]
        rows.saved[i, p], r.owner[i, p] = rows.saved[i, p + 1], r.owner[i, p + 1]
        r.shared_id[i, p] = r.shared_id[i, p + 1]
    r.counts[i, ALL] = k - 1
    for p in range(at, k - 1):  # who has a prefix first may have moved
        rows.prefix[i, p] = NO_PREFIX if r.shared_id[i, p] < 0 else p
        for q in range(p if r.shared_id[i, p] >= 0 else 0):
            if r.shared_id[i, q] == r.shared_id[i, p]:
                rows.prefix[i, p] = rows.prefix[i, q]
                break
