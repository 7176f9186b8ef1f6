"""vLLM's step loop in numbers: admit, chunked prefill, decode, preempt, finish.

One step, as ``Scheduler.schedule`` does it: running requests first, each a decode token or a
prefill chunk from the token budget; when the KV cache is full the last running request is
preempted (its tokens are recomputed later) and goes to the queue's front; if none was
preempted, waiting requests are admitted in the queue's order until slots, budget or KV end,
the head of the line blocking. A prompt's last chunk yields the first token.

Requests are rows; a row's phase is told by where it stands: in the queue, running, or done.
"""

from __future__ import annotations

import numpy as np

from lengthwise.data.arrays import FloatArray, IntArray, njit

# Row state, integers.
LEFT, GENERATED, COMPUTED, ANSWER, PROMPT = range(5)
# Row times.
ADMITTED, FIRST, FINISH = range(3)
# Engine clock and counters.
NOW, STEPS, PREEMPTIONS, OUTPUT, PREFILLED, KV_PEAK = range(6)


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
) -> tuple[int, int]:
    """Step until ``until_s``, idleness, or the first finish at or after ``finish_stop_s``.

    ``step_time`` is StepTimeModel.coefficients; ``limits`` slots, KV tokens, token budget.
    ``running`` and ``queue`` hold row numbers, their first ``*_count`` entries valid (the
    queue's first = next). Everything is changed in place; returns the new counts. A step in
    flight at ``until_s`` is completed, as an engine would.
    """
    slots, kv, budget_tokens = limits[0], limits[1], limits[2]
    base, prefill_step, prefill_token = step_time[0], step_time[1], step_time[2]
    decode_seq, context_token = step_time[3], step_time[4]
    # Entries before ``head`` are gone; a preempted row steps back, at most all that run can.
    head, tail = running_count, running_count + queue_count
    buffer = np.empty(tail, dtype=np.int64)
    buffer[head:] = queue[:queue_count]
    used = 0
    for p in range(running_count):
        used += rows[running[p], COMPUTED]
    stop = False
    while not stop and clock[NOW] < until_s and (running_count > 0 or head < tail):
        budget = budget_tokens
        prefill, decodes, context = 0, 0, 0
        preempted = False
        p = 0
        while p < running_count and budget > 0:
            row = running[p]
            want = 1 if rows[row, LEFT] == 0 else min(rows[row, LEFT], budget)
            while used + want > kv:  # the last running request makes room
                victim = running[running_count - 1]
                running_count -= 1
                used -= rows[victim, COMPUTED]
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
            else:
                rows[row, LEFT] -= want
                prefill += want
            rows[row, COMPUTED] += want
            used += want
            budget -= want
            p += 1
        scheduled = p
        while not preempted and head < tail and running_count < slots and budget > 0:
            row = buffer[head]
            if used + rows[row, LEFT] > kv:
                break
            head += 1
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
        if used > clock[KV_PEAK]:
            clock[KV_PEAK] = used
        duration = base + prefill_token * prefill + decode_seq * decodes + context_token * context
        if prefill > 0:
            duration += prefill_step
        clock[NOW] += duration
        clock[STEPS] += 1
        clock[PREFILLED] += prefill
        kept = 0
        for q in range(running_count):
            row = running[q]
            done = False
            if q < scheduled and rows[row, LEFT] == 0:
                rows[row, GENERATED] += 1
                clock[OUTPUT] += 1
                if np.isnan(times[row, FIRST]):
                    times[row, FIRST] = clock[NOW]
                done = rows[row, GENERATED] >= rows[row, ANSWER]
            if done:
                times[row, FINISH] = clock[NOW]
                used -= rows[row, COMPUTED]
                if clock[NOW] >= finish_stop_s:
                    stop = True
            else:
                running[kept] = row
                kept += 1
        running_count = kept
    queue_count = tail - head
    queue[:queue_count] = buffer[head:tail]
    return running_count, queue_count
