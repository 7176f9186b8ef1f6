"""The engine played forward under a plan, compiled: every first token, finish and preemption.

vLLM's step loop in numbers, as ``simulator.engine`` plays it, but from event to event:

    running requests decode; prompts that are not yet computed take chunks of what the token
    budget and the plan's prefill limit leave, oldest first; then the queue's head is admitted
    while there are slots, KV memory and budget, and blocks the line where there is not; when
    the KV memory is full the last running request is preempted and goes to the queue's front.

Steps in which nothing but decoding happens are taken many at a time, with the time of an
arithmetic series. Expected arrivals stand in the order with everybody else and may be admitted
from their arrival on. A shared prefix is computed by the first who has it and found by all who
are admitted after; its memory counts once. The plain twin is ``tests/scheduler/naive.py``.
"""

from __future__ import annotations

import numpy as np

from lengthwise.data.arrays import IntArray, njit
from lengthwise.scheduler.plan.rollout.decode_time import decode_s, more_s, steps_within
from lengthwise.scheduler.plan.rollout.heap import pop, push
from lengthwise.scheduler.plan.rollout.prefix_memory import join, leave, publish
from lengthwise.scheduler.plan.rollout.rollout_state import (
    DECODING,
    DONE,
    END_FOUND,
    END_PREEMPTIONS,
    END_RECOMPUTED,
    END_RUNNING,
    END_S,
    END_STEP_S,
    END_STEPS,
    FRONT,
    PREFILLING,
    TAIL,
    WAITING,
    Engine,
    Rows,
    Work,
)
from lengthwise.scheduler.problem import LEAST_PREFILL_TOKENS

ROW_BITS = 22
ROW_MASK = (1 << ROW_BITS) - 1
MOST_EVENTS = 50_000


@njit(nogil=True)
def rollout(
    engine: Engine,
    rows: Rows,
    running: int,
    recovering: int,
    expected: int,
    order: IntArray,
    given_up: IntArray,
    max_running: float,
    max_prefill: float,
    period: float,
    rested: float,
    skip_late: bool,
    begin_s: float,
    until_s: float,
    w: Work,
) -> None:
    """Play from ``begin_s`` to ``until_s``; the outcome is in ``w``.

    ``running`` rows come first, then ``recovering`` ones, who queue before the ``order`` of all
    others; rows from ``expected`` on arrive later. ``given_up (running,)`` marks those who lose
    their slots now and queue behind everybody. ``skip_late`` sends who can no longer meet
    anything there too when its turn comes. Prompts are computed in every ``period``-th step while
    anybody decodes, the last time ``rested`` steps before the first.
    """
    k = len(rows.need)
    speed, kv = engine.tokens_per_step, engine.kv_tokens
    slots = min(engine.slots, max_running)
    limit = max(max_prefill, float(LEAST_PREFILL_TOKENS))
    for i in range(k):
        w.left[i], w.target[i], w.need[i] = rows.left[i], rows.target[i], rows.need[i]
        w.first_s[i], w.finish_s[i], w.phase[i] = rows.first_s[i], np.inf, WAITING
        w.shared[i] = rows.shared[i]
        w.computed[i], w.sharers[i], w.common[i] = 0, 0, 0.0  # of the prefix of this number
    for i in range(k):
        if rows.prefix[i] >= 0 and rows.shared[i] > 0.0:
            w.computed[rows.prefix[i]] = 1
    for p in range(len(order)):
        w.place[order[p]] = p
    t, step, used, context = begin_s, 0, 0.0, 0.0
    active, alive, top, heap, filling = 0, 0, 0, 0, 0
    front, missed, tail, taken, ahead, arrived = 0, 0, 0, 0, 0, expected
    preemptions, recomputed, spared, step_s = 0, 0.0, 0.0, 0.0
    for i in range(running):
        if given_up[i]:
            w.left[i] = w.target[i] - w.shared[i]
            recomputed += w.left[i]
            w.phase[i] = TAIL
            w.tail[tail] = i
            tail += 1
            continue
        w.stack[top], w.where[i] = i, top
        top += 1
        alive += 1
        if rows.prefix[i] >= 0 and w.shared[i] > 0.0:
            used += join(w.sharers, w.common, rows.prefix[i], w.shared[i])
        if w.left[i] > 0.0:
            w.phase[i] = PREFILLING
            w.filling[filling] = i
            filling += 1
            used += w.target[i] - w.left[i] - w.shared[i]
        else:
            w.phase[i] = DECODING
            w.held[i], w.began[i] = w.target[i] - 1.0, 0
            w.ends[i] = int(np.ceil(w.need[i] / speed))
            push(w.heap, heap, (w.ends[i] << ROW_BITS) | i)
            heap += 1
            active += 1
            used += w.held[i] - w.shared[i]
            context += w.held[i]
    for i in range(running + recovering - 1, running - 1, -1):
        w.phase[i] = FRONT
        w.front[front] = i
        front += 1
    events = 0
    while t < until_s and events < MOST_EVENTS:
        events += 1
        while arrived < k and rows.arrival_s[arrived] <= t:
            if w.place[arrived] < ahead:
                push(w.missed, missed, w.place[arrived])
                missed += 1
            arrived += 1
        if alive == 0 and front == 0 and missed == 0 and tail == taken:
            while ahead < len(order) and order[ahead] >= arrived:
                ahead += 1
            if ahead == len(order):
                if arrived == k:
                    break
                t = rows.arrival_s[arrived]
                continue
        # memory for the next tokens of everyone who decodes
        preempted = False
        while used + active * speed > kv and alive > 1:
            top -= 1
            i = w.stack[top]
            if w.where[i] != top or (w.phase[i] != DECODING and w.phase[i] != PREFILLING):
                continue
            if w.phase[i] == DECODING:
                done = speed * (step - w.began[i])
                used -= w.held[i] + done - w.shared[i]
                context -= w.held[i] + done
                active -= 1
                w.target[i] += done
                w.need[i] = max(1.0, w.need[i] - done)
                recomputed += w.target[i] - w.shared[i]
            else:
                used -= w.target[i] - w.left[i] - w.shared[i]
                recomputed += w.target[i] - w.left[i] - w.shared[i]
                filling -= 1
            used -= leave(w.sharers, w.common, rows.prefix[i], w.shared[i])
            w.left[i] = w.target[i] - w.shared[i]
            w.phase[i] = FRONT
            w.front[front] = i
            front += 1
            alive -= 1
            preemptions += 1
            preempted = True
        budget = min(engine.batched_tokens - active * engine.decode_budget, limit)
        rests = active > 0 and rested < period - 1.0
        if rests:
            budget = 0.0
        prefill = 0.0
        for q in range(filling):
            i = w.filling[q]
            chunk = min(w.left[i], budget, max(kv - used - active * speed, 1.0))
            if chunk <= 0.0:
                break
            w.left[i] -= chunk
            used += chunk
            whole = rows.shared[i] + rows.saved[i]
            if w.shared[i] < whole <= w.target[i] - w.left[i]:
                used += publish(w.sharers, w.common, rows.prefix[i], w.shared[i], whole)
                w.computed[rows.prefix[i]], w.shared[i] = 1, whole
            prefill += chunk
            budget -= chunk
        blocked = preempted or alive >= slots
        while not preempted and alive < slots and budget > 0.0:
            while ahead < len(order) and order[ahead] >= arrived:
                ahead += 1
            source = -1
            if front > 0:
                i, source = w.front[front - 1], 0
            elif missed > 0:
                i, source = order[w.missed[0]], 1
            elif ahead < len(order):
                i, source = order[ahead], 2
            elif taken < tail:
                i, source = w.tail[taken], 3
            else:
                break
            if skip_late and (source == 1 or source == 2) and rows.latest_s[i] < t:
                w.phase[i] = TAIL
                w.tail[tail] = i
                tail += 1
            else:
                found = 0.0
                if rows.saved[i] > 0.0 and w.computed[rows.prefix[i]]:
                    found = min(rows.saved[i] - (w.shared[i] - rows.shared[i]), w.left[i] - 1.0)
                own = w.target[i] - w.shared[i] - found  # what it finds of its own is held too
                begun = 0.0  # of its prefix, if nobody runs on that now
                if rows.prefix[i] >= 0 and w.sharers[rows.prefix[i]] == 0:
                    begun = w.shared[i] + found
                if used + active * speed + own + begun > kv and alive > 0:
                    blocked = True
                    break
                w.shared[i] += found
                spared += found
                w.left[i] -= found
                used += own - w.left[i]
                if rows.prefix[i] >= 0 and w.shared[i] > 0.0:
                    used += join(w.sharers, w.common, rows.prefix[i], w.shared[i])
                chunk = min(w.left[i], budget)
                w.left[i] -= chunk
                used += chunk
                whole = rows.shared[i] + rows.saved[i]
                if w.shared[i] < whole <= w.target[i] - w.left[i]:
                    used += publish(w.sharers, w.common, rows.prefix[i], w.shared[i], whole)
                    w.computed[rows.prefix[i]], w.shared[i] = 1, whole
                prefill += chunk
                budget -= chunk
                w.phase[i] = PREFILLING
                w.filling[filling] = i
                filling += 1
                if top == len(w.stack):
                    kept = 0
                    for q in range(top):
                        j = w.stack[q]
                        if w.where[j] == q and (w.phase[j] == DECODING or w.phase[j] == PREFILLING):
                            w.stack[kept], w.where[j] = j, kept
                            kept += 1
                    top = kept
                w.stack[top], w.where[i] = i, top
                top += 1
                alive += 1
            if source == 0:
                front -= 1
            elif source == 1:
                pop(w.missed, missed)
                missed -= 1
            elif source == 2:
                ahead += 1
            else:
                taken += 1
        steps = 1
        if prefill == 0.0 and (filling == 0 or rests) and active > 0:
            while heap > 0:  # entries of the preempted are stale
                i = w.heap[0] & ROW_MASK
                if w.phase[i] == DECODING and w.ends[i] == w.heap[0] >> ROW_BITS:
                    break
                pop(w.heap, heap)
                heap -= 1
            steps = (w.heap[0] >> ROW_BITS) - step
            steps = min(steps, max(1, int((kv - used) // (active * speed))))
            soonest = until_s
            if arrived < k and (not blocked or (alive < slots and front == 0)):
                soonest = min(soonest, rows.arrival_s[arrived])
            steps = min(steps, steps_within(engine, soonest - t, active, context))
            if rests:
                steps = min(steps, int(period - 1.0 - rested))
        before_s = t
        decodes_s = decode_s(engine, steps, active, context)
        t += decodes_s
        if prefill > 0.0:
            t += more_s(engine, prefill, active, decodes_s)
        step_s = (t - before_s) / steps
        step += steps
        rested = 0.0 if prefill > 0.0 else rested + steps
        used += steps * active * speed
        context += steps * active * speed
        while heap > 0 and (w.heap[0] >> ROW_BITS) <= step:
            key = pop(w.heap, heap)
            heap -= 1
            i = key & ROW_MASK
            if w.phase[i] != DECODING or w.ends[i] != key >> ROW_BITS:
                continue
            held = w.held[i] + speed * (step - w.began[i])
            used -= held - w.shared[i] + leave(w.sharers, w.common, rows.prefix[i], w.shared[i])
            context -= held
            active -= 1
            alive -= 1
            w.phase[i], w.finish_s[i] = DONE, t
        kept = 0
        for q in range(filling):
            i = w.filling[q]
            if w.left[i] > 0.0:
                w.filling[kept] = i
                kept += 1
                continue
            if np.isnan(w.first_s[i]):
                w.first_s[i] = t
            w.need[i] -= 1.0
            if w.need[i] <= 0.0:
                used -= (
                    w.target[i]
                    - w.shared[i]
                    + leave(w.sharers, w.common, rows.prefix[i], w.shared[i])
                )
                alive -= 1
                w.phase[i], w.finish_s[i] = DONE, t
                continue
            w.target[i] += 1.0
            w.held[i], w.began[i] = w.target[i] - 1.0, step
            w.ends[i] = step + int(np.ceil(w.need[i] / speed))
            w.phase[i] = DECODING
            if heap == len(w.heap):
                live = 0
                for place in range(heap):
                    j = w.heap[place] & ROW_MASK
                    if w.phase[j] == DECODING and w.ends[j] == w.heap[place] >> ROW_BITS:
                        push(w.heap, live, w.heap[place])
                        live += 1
                heap = live
            push(w.heap, heap, (w.ends[i] << ROW_BITS) | i)
            heap += 1
            active += 1
            context += w.held[i]
        filling = kept
    for i in range(k):
        if w.phase[i] == DECODING:
            w.need[i] = max(0.0, w.need[i] - speed * (step - w.began[i]))
    w.end[END_S], w.end[END_STEPS], w.end[END_STEP_S] = t, step, step_s
    w.end[END_RUNNING] = alive
    w.end[END_PREEMPTIONS], w.end[END_RECOMPUTED] = preemptions, recomputed
    w.end[END_FOUND] = spared
