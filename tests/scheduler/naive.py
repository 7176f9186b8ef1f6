"""The rollout and its value as one would write them down: lists, objects, one step at a time.

The compiled twins are ``plan.rollout.rollout`` and ``plan.value``; only their tuples are used here.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from lengthwise.scheduler.plan.rollout.rollout_state import Engine, Rows
from lengthwise.scheduler.plan.value import Objective

LEAST_PREFILL = 16.0


@dataclass
class Request:
    """One row: ``target`` is its context when the next output token comes, ``left`` what of it
    is to be computed, ``shared`` what others hold too; ``decoded`` tokens since its prefill."""

    row: int
    arrival_s: float
    left: float
    target: float
    shared: float
    need: float
    first_s: float
    prefix: int
    saved: float
    latest_s: float
    state: str = "waiting"
    decoded: float = 0.0
    finish_s: float = math.inf

    @property
    def context(self) -> float:
        """Tokens in its context that are computed."""
        if self.state == "decoding":
            return self.target - 1.0 + self.decoded
        return self.target - self.left

    @property
    def own(self) -> float:
        """Tokens of KV memory it holds for itself."""
        return self.context - self.shared

    def lose_slot(self) -> None:
        """All it holds for itself is to be computed again."""
        if self.state == "decoding":
            self.target += self.decoded
            self.need = max(1.0, self.need - self.decoded)
            self.decoded = 0.0
        self.left = self.target - self.shared


@dataclass
class Play:
    """The engine under a plan; ``running`` is in the order of admission, ``front`` next last."""

    engine: Engine
    rows: Rows
    running_rows: int
    recovering: int
    expected: int
    order: list[int]
    given_up: list[bool]
    max_running: float
    max_prefill: float
    skip_late: bool
    now_s: float
    period: float = 1.0
    rested: float = math.inf
    steps: int = 0
    step_ends: list[tuple[float, float]] = field(default_factory=list)  # and when each began
    preemptions: int = 0
    recomputed: float = 0.0
    found: float = 0.0
    blocked: bool = False
    requests: list[Request] = field(default_factory=list)
    running: list[Request] = field(default_factory=list)
    front: list[Request] = field(default_factory=list)
    line: list[Request] = field(default_factory=list)
    tail: list[Request] = field(default_factory=list)
    computed: set[int] = field(default_factory=set)
    common: dict[int, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        r = self.rows
        self.requests = [
            Request(
                i, r.arrival_s[i], r.left[i], r.target[i], r.shared[i], r.need[i], r.first_s[i],
                int(r.prefix[i]), r.saved[i], r.latest_s[i],
            )
            for i in range(len(r.need))
        ]  # fmt: skip
        for q in self.requests[: self.running_rows]:
            if self.given_up[q.row]:
                q.lose_slot()
                self.recomputed += q.left
                self.tail.append(q)
            else:
                q.state = "prefilling" if q.left > 0 else "decoding"
                self.running.append(q)
        last = self.running_rows + self.recovering
        self.front = self.requests[self.running_rows : last][::-1]
        self.line = [self.requests[i] for i in self.order]
        self.computed = {q.prefix for q in self.requests if q.prefix >= 0 and q.shared > 0}
        self.share()

    @property
    def decoding(self) -> list[Request]:
        """Those that yield tokens."""
        return [q for q in self.running if q.state == "decoding"]

    @property
    def used(self) -> float:
        """KV tokens that running requests hold, what they share once."""
        return sum(q.own for q in self.running) + sum(self.common.values())

    def share(self) -> None:
        """A prefix stays whole in memory as long as anybody runs on it."""
        runs: dict[int, float] = {}
        for q in self.running:
            if q.prefix >= 0 and q.shared > 0:
                runs[q.prefix] = max(q.shared, runs.get(q.prefix, self.common.get(q.prefix, 0.0)))
        self.common = runs

    def compute(self, q: Request, chunk: float) -> None:
        """Tokens of its prompt; what that completes of its prefix is everybody's."""
        q.left -= chunk
        whole = self.rows.shared[q.row] + q.saved
        if q.prefix >= 0 and q.shared < whole <= q.target - q.left:
            q.shared = whole
            self.computed.add(q.prefix)
        self.share()

    @property
    def decodes_need(self) -> float:
        """KV tokens of the next decode step."""
        return len(self.decoding) * self.engine.tokens_per_step

    @property
    def arrived(self) -> list[Request]:
        """Those in line that may be admitted."""
        return [q for q in self.line if q.row < self.expected or q.arrival_s <= self.now_s]

    def until(self, until_s: float) -> Play:
        """Step until ``until_s`` or until nobody is left."""
        while self.now_s < until_s:
            if not self.running and not self.front and not self.tail and not self.arrived:
                if not self.line:
                    break
                self.now_s = min(q.arrival_s for q in self.line)
                continue
            self.step()
        return self

    def step(self) -> None:
        """One step of the engine."""
        made_room = self.make_room()
        budget = min(
            self.engine.batched_tokens - len(self.decoding) * self.engine.decode_budget,
            max(self.max_prefill, LEAST_PREFILL),
        )
        rests = bool(self.decoding) and self.rested < self.period - 1
        if rests:
            budget = 0.0
        prefill = self.continue_prompts(budget)
        if made_room:
            self.blocked = True
        elif not self.blocked:
            prefill += self.admit(budget - prefill)
        decoding, before, began_s = self.decoding, len(self.arrived), self.now_s
        self.now_s += (
            self.engine.base_s
            + self.engine.decode_seq_s * len(decoding)
            + self.engine.context_token_s * sum(q.context for q in decoding)
        )
        if prefill > 0:
            self.now_s += self.engine.prefill_step_s + self.engine.prefill_token_s * prefill
            if prefill + len(decoding) > self.engine.graph_tokens:
                self.now_s = max(self.now_s, began_s + self.engine.eager_s)
        self.steps += 1
        self.step_ends.append((began_s, self.now_s))
        self.rested = 0 if prefill > 0 else self.rested + 1
        ended = self.decode(decoding)
        filling = [q for q in self.running if q.state == "prefilling"]
        self.end_prompts(filling)
        # a line that memory blocks is looked at again when something has changed but decodes
        came = len(self.arrived) > before and not self.front
        full = self.used + self.decodes_need > self.engine.kv_tokens
        if ended or prefill > 0 or filling or came or full or rests:
            self.blocked = False

    def make_room(self) -> bool:
        """Preempt from the back until the decodes' next tokens fit."""
        any_lost = False
        while self.used + self.decodes_need > self.engine.kv_tokens and len(self.running) > 1:
            q = self.running.pop()
            self.recomputed += q.own + (1.0 if q.state == "decoding" else 0.0)
            q.lose_slot()
            q.state = "front"
            self.front.append(q)
            self.share()
            self.preemptions += 1
            any_lost = True
        return any_lost

    def continue_prompts(self, budget: float) -> float:
        """Prompts that were begun take chunks, oldest first; tokens computed."""
        begun = budget
        for q in [q for q in self.running if q.state == "prefilling"]:
            room = max(self.engine.kv_tokens - self.used - self.decodes_need, 1.0)
            chunk = min(q.left, budget, room)
            if chunk <= 0:
                break
            self.compute(q, chunk)
            budget -= chunk
        return begun - budget

    def admit(self, budget: float) -> float:
        """Who is next is admitted while there is room for it; tokens computed."""
        begun = budget
        while len(self.running) < min(self.engine.slots, self.max_running) and budget > 0:
            arrived = self.arrived
            if self.front:
                source = self.front
                q = source[-1]
            elif arrived:
                source = self.line
                q = arrived[0]
            elif self.tail:
                source = self.tail
                q = source[0]
            else:
                break
            if self.skip_late and source is self.line and q.latest_s < self.now_s:
                self.line.remove(q)
                self.tail.append(q)
                continue
            found = 0.0
            if q.saved > 0 and q.prefix in self.computed:
                whole = self.rows.shared[q.row] + q.saved
                found = min(whole - q.shared, q.left - 1.0)
            needed = self.used + self.decodes_need + q.target - q.shared - found
            if q.prefix >= 0 and q.prefix not in self.common:
                needed += q.shared + found
            if needed > self.engine.kv_tokens and self.running:
                self.blocked = True
                break
            source.remove(q)
            q.shared += found
            self.found += found
            q.left -= found
            q.state = "prefilling"
            self.running.append(q)
            chunk = min(q.left, budget)
            self.compute(q, chunk)
            budget -= chunk
        return begun - budget

    def decode(self, decoding: list[Request]) -> bool:
        """Everyone's next tokens; whether somebody ended."""
        ended = False
        for q in decoding:
            q.decoded += self.engine.tokens_per_step
            if q.decoded >= q.need:
                q.state, q.finish_s = "done", self.now_s
                self.running.remove(q)
                self.share()
                ended = True
        return ended

    def end_prompts(self, filling: list[Request]) -> None:
        """A prompt that is computed yields its first token."""
        for q in filling:
            if q.left > 0:
                continue
            if math.isnan(q.first_s):
                q.first_s = self.now_s
            q.need -= 1.0
            if q.need <= 0:
                q.state, q.finish_s = "done", self.now_s
                self.running.remove(q)
                self.share()
            else:
                q.state, q.decoded = "decoding", 0.0
                q.target += 1.0


def ramp(slack: float, spread: float) -> float:
    """P(noise <= slack), noise uniform with standard deviation ``spread``."""
    half = math.sqrt(3.0) * spread
    return min(1.0, max(0.0, 0.5 + slack / (2.0 * half)))


def chance(
    rows: Rows, i: int, first_s: float, finish_s: float, now_s: float, o: Objective
) -> float:
    """P(all objectives of row ``i`` hold) when its mean course is this."""
    begun = not math.isnan(rows.first_s[i])
    if begun:
        in_time = float(first_s <= rows.ttft_by_s[i])
    else:
        slack = rows.ttft_by_s[i] - first_s
        in_time = ramp(slack, o.spread * (first_s - now_s) + 1e-6) if slack < math.inf else 1.0
    quick = 1.0
    tokens = rows.generated[i] + rows.need[i] - 1.0
    if rows.tpot_s[i] < math.inf and tokens > 0:
        pace = (finish_s - first_s) / tokens
        quick = ramp(rows.tpot_s[i] - pace, o.tpot_spread * pace + 1e-9)
    ends = 1.0
    if rows.e2e_by_s[i] < math.inf:
        spread = o.spread * (finish_s - now_s) + 1e-6
        start, done = (now_s, 0.0) if begun else (first_s, 1.0)
        if rows.need[i] - done <= 0:
            ends = ramp(rows.e2e_by_s[i] - finish_s, spread)
        else:
            pace = (finish_s - start) / (rows.need[i] - done)
            each = [
                ramp(rows.e2e_by_s[i] - start - pace * (length - done), spread)
                for length in rows.strata[i]
            ]
            ends = sum(each) / len(each)
    return in_time * quick * ends


def worth(play: Play, begin_s: float, until_s: float, o: Objective) -> tuple[float, list[float]]:
    """Value of what was played, and the chances."""
    engine, rows = play.engine, play.rows
    ended_s = max(play.now_s, until_s)
    token_s = max((play.now_s - begin_s) / max(play.steps, 1), engine.base_s)
    token_s /= engine.tokens_per_step
    slots = max(len(play.running), 1)
    chances = [0.0] * len(rows.need)
    attained, total_s, work_s, ahead_s, again_s = 0.0, 0.0, 0.0, 0.0, 0.0
    first = play.running_rows + play.recovering
    for i in [*range(first), *play.order]:
        q = play.requests[i]
        first_s, finish_s = q.first_s, q.finish_s
        to_come = 0.0 if q.state == "done" else q.need
        if q.state == "decoding":
            to_come = max(0.0, q.need - q.decoded)
            finish_s = ended_s + to_come * token_s
        elif q.state == "prefilling":
            if math.isnan(first_s):
                first_s = ended_s + token_s
            finish_s = max(ended_s, first_s) + to_come * token_s
        elif q.state != "done":
            prefill_s = engine.prefill_token_s * q.left
            start_s = max(ended_s + ahead_s / slots, q.arrival_s) + prefill_s
            ahead_s += to_come * token_s + slots * prefill_s
            if math.isnan(first_s):
                first_s = start_s + token_s
            finish_s = start_s + to_come * token_s
        total_s += min(finish_s, ended_s) - max(q.arrival_s, begin_s)
        before_s = o.answer_token_s * rows.need[i] + engine.prefill_token_s * rows.left[i]
        after_s = o.answer_token_s * to_come + engine.prefill_token_s * q.left
        work_s += max(0.0, before_s - (0.0 if q.state == "done" else after_s))
        if i < play.running_rows and play.given_up[i]:
            again_s += engine.prefill_token_s * (rows.target[i] - rows.shared[i])
        if rows.weight[i] > 0:
            chances[i] = chance(rows, i, first_s, finish_s, begin_s, o)
            attained += rows.weight[i] * chances[i]
    work_s -= engine.prefill_token_s * play.found
    value = attained + (o.tokens_price * work_s - again_s) / o.mean_work_s
    value -= o.latency_price * total_s / o.mean_time_s
    return value, chances
