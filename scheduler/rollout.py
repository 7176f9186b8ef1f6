"""The readable rollout: what continuous batching will do with a given admission order.

The engine is a set of slots that advance together, one token a step. Time has two measures:
the step count, in which every running answer ends after its remaining tokens, and seconds,
which pass faster or slower with the batch and its context. The walk jumps from one slot release
to the next. Its compiled twin is ``kernels.rollout``; a test holds the two equal.

Rules, the same in both:
- an answer of L tokens admitted at step v holds its slot until step v + chunks - 1 + L, where
  ``chunks`` is how many steps its prompt needs under the token budget;
- its prompt stalls every running decode by the prefill's share of the step, once for the
  admissions of the same step and once a token;
- it is admitted when a slot is free and the prompt fits beside the context in the KV cache;
  if nothing runs it is admitted anyway (the engine would refuse it, not the planner);
- KV growth beyond the cache (preemption) is not foreseen.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Sequence
from dataclasses import dataclass

from lengthwise.scheduler.problem import Capacity
from lengthwise.scheduler.step_time import StepTimeModel


@dataclass(frozen=True, slots=True)
class Job:
    """A request as the rollout sees it; ``tokens`` is what is left of its answer."""

    prefill_tokens: float
    context_tokens: float
    tokens: float


@dataclass(slots=True)
class Served:
    """When it was admitted, first answered and done (seconds), and the step's length then."""

    admitted_s: float = math.nan
    first_token_s: float = math.nan
    finish_s: float = math.nan
    step_s: float = math.nan


class _Engine:
    """The slots in use, the clock, and the context they hold."""

    def __init__(self, now_s: float, capacity: Capacity, model: StepTimeModel) -> None:
        self.now_s = now_s
        self.capacity = capacity
        self.model = model
        self.step = 0
        self.context = 0.0
        self.ends: list[tuple[int, int]] = []  # (step, who), a heap
        self.end_context: dict[int, float] = {}
        self.prefill_step = -1

    @property
    def active(self) -> int:
        return len(self.ends)

    def step_s(self) -> float:
        return self.model.step_s(0.0, self.active, self.context)

    def has_room(self, job: Job) -> bool:
        fits = self.context + job.context_tokens <= self.capacity.kv_tokens
        return self.active < self.capacity.max_num_seqs and (fits or not self.active)

    def admit(self, job: Job, who: int) -> Served:
        served = Served(admitted_s=self.now_s)
        chunks = max(1, math.ceil(job.prefill_tokens / self.capacity.max_num_batched_tokens))
        if job.prefill_tokens > 0:
            if self.prefill_step != self.step:
                self.now_s += self.model.prefill_step_s * chunks
                self.prefill_step = self.step
            self.now_s += self.model.prefill_token_s * job.prefill_tokens
        tokens = max(1, math.ceil(job.tokens))
        self.context += job.context_tokens
        # While its prompt is chunked the sequence is counted as if it decoded: its context
        # grows by a token a step from admission on, and is given back at the end.
        length = chunks - 1 + tokens
        heapq.heappush(self.ends, (self.step + length, who))
        self.end_context[who] = job.context_tokens + length
        served.step_s = self.step_s()
        served.first_token_s = self.now_s + chunks * served.step_s
        return served

    def release(self) -> int:
        """Advance to the next end; returns who ended."""
        end, who = heapq.heappop(self.ends)
        steps = end - self.step
        active = self.active + 1
        start_s = self.model.step_s(0.0, active, self.context)
        growth_s = self.model.context_token_s * active
        self.now_s += steps * start_s + growth_s * steps * (steps - 1) / 2.0
        self.context += active * steps - self.end_context.pop(who)
        self.step = end
        return who


def rollout(
    now_s: float,
    running: Sequence[Job],
    waiting: Sequence[Job],
    order: Sequence[int],
    capacity: Capacity,
    model: StepTimeModel,
) -> tuple[list[Served], list[Served]]:
    """Serve ``waiting`` in ``order`` behind ``running``; returns (running, waiting) outcomes.

    ``first_token_s`` of a running request means its next token. Equal ends are released in
    order of admission, running requests first.
    """
    engine = _Engine(now_s, capacity, model)
    served: list[Served] = []
    for job in running:
        served.append(engine.admit(job, len(served)))
    answers = [Served() for _ in waiting]
    who_is: list[Served] = list(served)
    for index in order:
        job = waiting[index]
        while not engine.has_room(job):
            who = engine.release()
            who_is[who].finish_s = engine.now_s
        answers[index] = engine.admit(job, len(who_is))
        who_is.append(answers[index])
    while engine.active:
        who = engine.release()
        who_is[who].finish_s = engine.now_s
    return served, answers
