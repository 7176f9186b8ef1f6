"""The simulator's engine as one would write it down: a list entry for every token of memory."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from lengthwise.scheduler.profile import EngineProfile
from lengthwise.scheduler.simulator import engine as e
from lengthwise.scheduler.simulator import prefix_cache as pc
from lengthwise.scheduler.simulator.sim_workload import SimWorkload


@dataclass
class Request:
    row: int
    prompt: int
    answer: int
    prefix: int
    shareable: int
    left: int = 0
    computed: int = 0
    generated: int = 0
    shared: int = 0
    owed: float = 0.0
    admitted_s: float | None = None
    first_s: float | None = None
    finish_s: float | None = None
    latest_start_s: float = math.inf


@dataclass
class NaiveEngine:
    """Steps a workload through; ``free`` is the memory nobody uses, longest free first.

    An entry of ``free`` is None, or (owner, index): the index-th token of what the owner left
    there. ``held`` says how many tokens of each prefix are in memory and in use.
    """

    workload: SimWorkload
    profile: EngineProfile
    max_prefill_tokens: int | None = None
    prefill_period: int = 1  # of steps, in one of which prompts are computed
    rested: float = math.inf
    now_s: float = 0.0
    used: int = 0
    prefilled: int = 0
    cached: int = 0
    preemptions: int = 0
    running: list[Request] = field(default_factory=list)
    queue: list[Request] = field(default_factory=list)
    free: list[Any] = field(default_factory=list)
    held: dict[int, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        part = self.profile.prefix_cache
        self.block = part.block_tokens if part else 1
        self.has_cache = part is not None
        self.free = [None] * self.profile.capacity.kv_tokens
        spec = self.profile.speculation
        self.accepted = spec.accepted_tokens if spec else 1.0
        self.decode_budget = 1 + spec.draft_tokens if spec else 1
        ids = self.workload.prefix_id
        self.requests = []
        for i in range(len(self.workload)):
            shares = self.has_cache and ids is not None and ids[i] >= 0
            self.requests.append(
                Request(
                    i,
                    int(self.workload.prompt_tokens[i]),
                    int(self.workload.output_tokens[i]),
                    int(ids[i]) if shares else -1,
                    self.whole(int(self.workload.prefix_tokens[i])) if shares else 0,
                    left=int(self.workload.prompt_tokens[i]),
                )
            )

    def whole(self, tokens: int) -> int:
        return tokens // self.block * self.block

    def users(self, prefix: int) -> int:
        return sum(r.prefix == prefix for r in self.running)

    def in_memory(self, owner: Any) -> int:
        if owner in self.held:
            return self.held[owner]
        return sum(entry is not None and entry[0] == owner for entry in self.free)

    def found(self, r: Request) -> tuple[int, int]:
        """Tokens of the prefix and of its own that a waiting request finds."""
        if not self.has_cache:
            return 0, 0
        most = self.whole(r.left - 1)
        shared = 0
        if r.prefix >= 0:
            shared = min(r.shareable, self.whole(self.in_memory(r.prefix)), most)
        own = min(self.whole(self.in_memory(("own", r.row))), most - r.shared)
        if own > 0 and shared >= r.shared and r.shared + own > shared:
            return r.shared, own
        return shared, 0

    def take(self, tokens: int) -> None:
        del self.free[:tokens]
        self.used += tokens

    def claim(self, owner: Any, tokens: int) -> None:
        """The first tokens of an owner leave the free memory; its others become anybody's."""
        kept = []
        for entry in self.free:
            if entry is None or entry[0] != owner:
                kept.append(entry)
            elif entry[1] >= tokens:
                kept.append(None)
        assert len(self.free) - len(kept) == tokens
        self.free = kept
        self.used += tokens

    def leave(self, r: Request, finished: bool) -> None:
        self.running.remove(r)
        own = r.computed - r.shared
        # the end of what is freed is taken first
        self.free += [None if finished else (("own", r.row), i) for i in reversed(range(own))]
        self.used -= own
        if r.prefix >= 0 and not self.users(r.prefix):
            tokens = self.held.pop(r.prefix, 0)
            self.free += [(r.prefix, i) for i in reversed(range(tokens))]
            self.used -= tokens
        if not finished:
            r.left, r.computed = r.prompt + r.generated, 0

    def compute(self, r: Request, tokens: int) -> None:
        self.take(tokens)
        r.computed += tokens
        if r.prefix >= 0 and r.shared == self.held.get(r.prefix, 0):
            reached = self.whole(min(r.shareable, r.computed))
            if reached > r.shared:
                r.shared = self.held[r.prefix] = reached

    def give_up(self, r: Request) -> None:
        self.leave(r, finished=False)
        self.queue.append(r)

    def step(self) -> None:
        capacity = self.profile.capacity
        budget = capacity.max_num_batched_tokens
        decoding = sum(r.left == 0 for r in self.running)
        rests = decoding > 0 and self.rested < self.prefill_period - 1
        if self.max_prefill_tokens is not None:
            limit = max(16, self.max_prefill_tokens)
            budget = min(budget, decoding * self.decode_budget + limit)
        prefill = decodes = context = 0
        gained: dict[int, int] = {}
        preempted = False
        for r in list(self.running):
            if r not in self.running or budget <= 0:
                continue
            decode = r.left == 0
            if rests and not decode:
                continue
            want = min(r.left, budget)
            if decode:
                want = min(int(r.owed + self.accepted), r.answer - r.generated)
            while r in self.running and self.used + want > capacity.kv_tokens:
                victim = self.running[-1]
                self.leave(victim, finished=False)
                self.queue.insert(0, victim)
                self.preemptions += 1
                preempted = True
            if r not in self.running:
                continue
            if decode:
                decodes += 1
                context += r.computed
                budget -= self.decode_budget
                r.owed += self.accepted - want
                gained[r.row] = want
            else:
                r.left -= want
                prefill += want
                budget -= want
                gained[r.row] = 1
            self.compute(r, want)
        while (
            self.queue
            and not preempted
            and not rests
            and budget > 0
            and len(self.running) < capacity.max_num_seqs
        ):
            r = self.queue[0]
            if r.latest_start_s < self.now_s:
                self.queue.append(self.queue.pop(0))
                r.latest_start_s = math.inf
                continue
            shared, own = self.found(r)
            pinned = 0
            if r.prefix >= 0 and not self.users(r.prefix):
                pinned = self.whole(self.in_memory(r.prefix))
            if self.used + pinned + own + r.left - shared - own > capacity.kv_tokens:
                break
            self.queue.pop(0)
            r.latest_start_s = math.inf
            if self.has_cache:
                self.claim(("own", r.row), own)
            if r.prefix >= 0 and not self.users(r.prefix):
                self.claim(r.prefix, pinned)
                self.held[r.prefix] = pinned
            r.shared, r.computed, r.left = shared, shared + own, r.left - shared - own
            self.cached += shared + own
            self.running.append(r)
            if r.admitted_s is None:
                r.admitted_s = self.now_s
            chunk = min(r.left, budget)
            r.left -= chunk
            prefill += chunk
            budget -= chunk
            gained[r.row] = 1
            self.compute(r, chunk)
        self.now_s += self.profile.scaled_step_time.step_s(prefill, decodes, context)
        self.prefilled += prefill
        self.rested = 0 if prefill else self.rested + 1
        for r in list(self.running):
            if r.left == 0 and r.row in gained:
                r.generated += gained[r.row]
                r.first_s = self.now_s if r.first_s is None else r.first_s
                if r.generated >= r.answer:
                    r.finish_s = self.now_s
                    self.leave(r, finished=True)
        assert len(self.free) == capacity.kv_tokens - self.used

    def run_until(self, until_s: float) -> None:
        while self.now_s < until_s and (self.running or self.queue):
            self.step()

    def arrive(self, row: int, at_s: float) -> None:
        if not self.running and not self.queue:
            self.now_s = max(self.now_s, at_s)
        self.queue.append(self.requests[row])

    def take_back(self, count: int) -> None:
        for r in self.running[:count]:
            self.give_up(r)

    def finish_s(self) -> np.ndarray:
        return np.array([r.finish_s for r in self.requests])


class CompiledEngine:
    """The product's kernel behind the same calls."""

    def __init__(
        self,
        workload: SimWorkload,
        profile: EngineProfile,
        max_prefill_tokens: int | None = None,
        prefill_period: int = 1,
    ) -> None:
        n, capacity = len(workload), profile.capacity
        self.state = np.zeros((n, 5), dtype=np.int64)
        self.state[:, e.LEFT] = self.state[:, e.PROMPT] = workload.prompt_tokens
        self.state[:, e.ANSWER] = workload.output_tokens
        self.times = np.full((n, 3), np.nan)
        self.latest_start_s = np.full(n, np.inf)
        budget = capacity.max_num_batched_tokens
        limit = budget if max_prefill_tokens is None else max_prefill_tokens
        self.limits = np.array(
            [capacity.max_num_seqs, capacity.kv_tokens, budget, limit, prefill_period]
        )
        self.step_time = np.array(profile.scaled_step_time.numbers)
        self.running, self.queue = np.empty(capacity.max_num_seqs + 1, int), np.empty(n, int)
        self.counts = (0, 0)
        self.clock = np.zeros(8)
        self.clock[e.RESTED] = np.inf
        self.cache = self.speculation = None
        if profile.prefix_cache:
            ids = np.full(n, -1) if workload.prefix_id is None else workload.prefix_id
            tokens = np.zeros(n, int) if workload.prefix_id is None else workload.prefix_tokens
            block = profile.prefix_cache.block_tokens
            self.cache = pc.empty_cache(block, capacity.kv_tokens, ids, tokens)
        if profile.speculation:
            spec = profile.speculation
            self.speculation = e.SpeculationState(
                float(spec.accepted_tokens), 1 + spec.draft_tokens, np.zeros(n), np.zeros(n, int)
            )

    def run_until(self, until_s: float) -> None:
        self.counts = e.run_until(
            until_s, np.inf, self.step_time, self.limits, self.state, self.times,
            self.running, self.counts[0], self.queue, self.counts[1], self.clock,
            self.latest_start_s,
            self.cache, self.speculation,
        )  # fmt: skip

    def arrive(self, row: int, at_s: float) -> None:
        running, waiting = self.counts
        if not running and not waiting:
            self.clock[e.NOW] = max(self.clock[e.NOW], at_s)
        self.queue[waiting] = row
        self.counts = (running, waiting + 1)

    def take_back(self, count: int) -> None:
        running, waiting = self.counts
        victims = self.running[: min(count, running)].copy()
        if self.cache is not None:
            pc.give_up(self.cache, victims, self.state[victims, e.COMPUTED])
        self.state[victims, e.LEFT] = self.state[victims, e.PROMPT]
        self.state[victims, e.LEFT] += self.state[victims, e.GENERATED]
        self.state[victims, e.COMPUTED] = 0
        left = running - len(victims)
        self.running[:left] = self.running[len(victims) : running].copy()
        self.queue[waiting : waiting + len(victims)] = victims
        self.counts = (left, waiting + len(victims))
