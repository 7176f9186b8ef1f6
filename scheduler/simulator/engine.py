"""vLLM's step loop in numbers: admit, chunked prefill, decode, preempt, finish.

One step, as ``Scheduler.schedule`` does it: running requests first, each a decode token or a
prefill chunk from the token budget; when the KV cache is full the last running request is
preempted (its tokens are recomputed later) and goes to the queue's front; if none was
preempted, waiting requests are admitted in the queue's order until slots, budget or KV end,
the head of the line blocking. A prompt's last chunk yields the first token.

A plan may limit the prompt tokens of a step: its budget is then the decodes' tokens and the
limit (at least LEAST_PREFILL_TOKENS), never more than the engine's own. Who is still in his
prompt runs last, so the limit never costs a decode.

An engine may have a prefix cache (``prefix_cache``) and speculative decoding: a decode step then
yields ``accepted`` tokens on the mean, spread evenly over a row's steps, and takes the drafts
from the token budget too. Both are None where there is none, and compiled away.

Requests are rows; a row's phase is told by where it stands: in the queue, running, or done.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from lengthwise.data.arrays import FloatArray, IntArray, njit
from lengthwise.scheduler.problem import LEAST_PREFILL_TOKENS
from lengthwise.scheduler.simulator import prefix_cache as pc
from lengthwise.scheduler.simulator.prefix_cache import PrefixCacheState

# Row state, integers.
LEFT, GENERATED, COMPUTED, ANSWER, PROMPT = range(5)
# Row times.
ADMITTED, FIRST, FINISH = range(3)
# Engine clock and counters.
NOW, STEPS, PREEMPTIONS, OUTPUT, PREFILLED, KV_PEAK, CACHED, RESTED = range(8)


class SpeculationState(NamedTuple):
    """Mean tokens a decode step yields, what it takes of the budget; and of each row ``(n,)``
    the part of a token it is owed, and the tokens of its step."""

    accepted: float
    budget_tokens: int
    owed: FloatArray
    gained: IntArray


@njit
def run_until(
    until_s: float,
    finish_stop_s: float,
    step_time: FloatArray,
    limits: IntArray,
    rows: IntArray,
    times: FloatArray,
    running: IntArray,
    running_count: int,
    queue: IntArray,
    queue_count: int,
    clock: FloatArray,
    latest_start_s: FloatArray,
    cache: PrefixCacheState | None = None,
    speculation: SpeculationState | None = None,
) -> tuple[int, int]:
    """Step until ``until_s``, idleness, or the first finish at or after ``finish_stop_s``.

    ``step_time`` is StepTimeModel.numbers; ``limits`` slots, KV tokens, token budget, and
    the most prompt tokens a step may take beside its decodes (the budget for no limit), and in
    every how manyth step prompts are computed while anybody decodes.
    ``running`` and ``queue`` hold row numbers, their first ``*_count`` entries valid (the
    queue's first = next). Whoever stands first and has passed ``latest_start_s`` goes to the end,
    once. Everything is changed in place; returns the new counts. A step in
    flight at ``until_s`` is completed, as an engine would.
    """
    slots, kv, budget_tokens = limits[0], limits[1], limits[2]
    prefill_limit, period = max(limits[3], LEAST_PREFILL_TOKENS), limits[4]
    decode_budget = 1
    if speculation is not None:
        decode_budget = speculation.budget_tokens
    base, prefill_step, prefill_token = step_time[0], step_time[1], step_time[2]
    decode_seq, context_token = step_time[3], step_time[4]
    eager, graph_tokens = step_time[5], step_time[6]
    # Entries before ``head`` are gone; a preempted row steps back, at most all that run can.
    head, tail = running_count, running_count + queue_count
    buffer = np.empty(tail + queue_count, dtype=np.int64)
    buffer[head:tail] = queue[:queue_count]
    used = 0
    for p in range(running_count):
        used += rows[running[p], COMPUTED]
    if cache is not None:
        for p in range(running_count):
            used -= cache.shared[running[p]]
        for p in range(len(cache.users)):
            if cache.users[p] > 0:
                used += cache.resident[p]
    stop = False
    while not stop and clock[NOW] < until_s and (running_count > 0 or head < tail):
        budget, rests = budget_tokens, False
        if prefill_limit < budget_tokens or period > 1:
            decoding = 0
            for p in range(running_count):
                decoding += rows[running[p], LEFT] == 0
            budget = min(budget_tokens, decoding * decode_budget + prefill_limit)
            rests = decoding > 0 and clock[RESTED] < period - 1
        prefill, decodes, context = 0, 0, 0
        preempted = False
        p = 0
        while p < running_count and budget > 0:
            row = running[p]
            if rests and rows[row, LEFT] > 0:
                break  # whoever is still in his prompt runs behind those who decode
            want = 1 if rows[row, LEFT] == 0 else min(rows[row, LEFT], budget)
            if speculation is not None and rows[row, LEFT] == 0:
                due = int(speculation.owed[row] + speculation.accepted)
                want = min(due, rows[row, ANSWER] - rows[row, GENERATED])
            while used + want > kv:  # the last running request makes room
                victim = running[running_count - 1]
                running_count -= 1
                if cache is None:
                    used -= rows[victim, COMPUTED]
                else:
                    used -= pc.end(cache, victim, rows[victim, COMPUTED], False)
                rows[victim, LEFT] = rows[victim, PROMPT] + rows[victim, GENERATED]
                rows[victim, COMPUTED] = 0
                head -= 1
                buffer[head] = victim
                clock[PREEMPTIONS] += 1
                preempted = True
                if victim == row:
                    break
            if p >= running_count:
                break
            if rows[row, LEFT] == 0:
                decodes += 1
                context += rows[row, COMPUTED]
                budget -= decode_budget
                if speculation is not None:
                    speculation.owed[row] += speculation.accepted - want
                    speculation.gained[row] = want
            else:
                rows[row, LEFT] -= want
                prefill += want
                budget -= want
                if speculation is not None:
                    speculation.gained[row] = 1
            rows[row, COMPUTED] += want
            used += want
            if cache is not None:
                pc.compute(cache, row, rows[row, COMPUTED], want)
            p += 1
        scheduled = p
        while not (preempted or rests) and head < tail and running_count < slots and budget > 0:
            row = buffer[head]
            if latest_start_s[row] < clock[NOW]:
                latest_start_s[row] = np.inf
                buffer[tail] = row
                head, tail = head + 1, tail + 1
                continue
            if cache is None:
                if used + rows[row, LEFT] > kv:
                    break
            else:
                pc.settle(cache)
                shared, own = pc.found(cache, row, rows[row, LEFT])
                claimed = pc.would_use(cache, row, own)
                if used + claimed + rows[row, LEFT] - shared - own > kv:
                    break
                pc.begin(cache, row, shared, own)
                used += claimed
                rows[row, LEFT] -= shared + own
                rows[row, COMPUTED] = shared + own
                clock[CACHED] += shared + own
            head += 1
            latest_start_s[row] = np.inf
            if np.isnan(times[row, ADMITTED]):
                times[row, ADMITTED] = clock[NOW]
            running[running_count] = row
            running_count += 1
            scheduled += 1
            chunk = min(rows[row, LEFT], budget)
            rows[row, LEFT] -= chunk
            rows[row, COMPUTED] += chunk
            used += chunk
            prefill += chunk
            budget -= chunk
            if cache is not None:
                pc.compute(cache, row, rows[row, COMPUTED], chunk)
            if speculation is not None:
                speculation.gained[row] = 1
        if used > clock[KV_PEAK]:
            clock[KV_PEAK] = used
        duration = base + prefill_token * prefill + decode_seq * decodes + context_token * context
        if prefill > 0:
            duration += prefill_step
            if prefill + decodes > graph_tokens:
                duration = max(duration, eager)
        clock[NOW] += duration
        clock[STEPS] += 1
        clock[PREFILLED] += prefill
        clock[RESTED] = 0 if prefill > 0 else clock[RESTED] + 1
        kept = 0
        for q in range(running_count):
            row = running[q]
            done = False
            if q < scheduled and rows[row, LEFT] == 0:
                tokens = 1
                if speculation is not None:
                    tokens = speculation.gained[row]
                rows[row, GENERATED] += tokens
                clock[OUTPUT] += tokens
                if np.isnan(times[row, FIRST]):
                    times[row, FIRST] = clock[NOW]
                done = rows[row, GENERATED] >= rows[row, ANSWER]
            if done:
                times[row, FINISH] = clock[NOW]
                if cache is None:
                    used -= rows[row, COMPUTED]
                else:
                    used -= pc.end(cache, row, rows[row, COMPUTED], True)
                if clock[NOW] >= finish_stop_s:
                    stop = True
            else:
                running[kept] = row
                kept += 1
        running_count = kept
    queue_count = tail - head
    queue[:queue_count] = buffer[head:tail]
    return running_count, queue_count
