"""Rollouts to play: engines, rows and plans, drawn."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from hypothesis import strategies as st

from lengthwise.scheduler.plan.rollout.rollout import rollout
from lengthwise.scheduler.plan.rollout.rollout_state import Engine, Rows, work_for
from lengthwise.scheduler.plan.search import Parts, Picture
from lengthwise.scheduler.plan.value import Objective

BEGIN_S = 5.0
OBJECTIVE = Objective(
    spread=0.05, tpot_spread=0.03, latency_price=0.05, tokens_price=0.5,
    mean_time_s=2.0, mean_work_s=0.1, answer_token_s=0.003,
)  # fmt: skip


@dataclass(frozen=True)
class Case:
    """Everything a rollout is given."""

    engine: Engine
    rows: Rows
    running: int
    recovering: int
    expected: int
    order: np.ndarray
    given_up: np.ndarray
    max_running: float
    max_prefill: float
    skip_late: bool
    until_s: float
    begin_s: float = BEGIN_S
    period: float = 1.0
    rested: float = np.inf

    def played(self):
        """The compiled rollout's work."""
        w = work_for(len(self.rows.need))
        rollout(
            self.engine, self.rows, self.running, self.recovering, self.expected, self.order,
            self.given_up, self.max_running, self.max_prefill, self.period, self.rested,
            self.skip_late, self.begin_s, self.until_s, w,
        )  # fmt: skip
        return w

    def picture(self, objective: Objective = OBJECTIVE) -> Picture:
        k = len(self.rows.need)
        return Picture(
            self.engine, self.rows, self.running, self.recovering, self.expected, self.rested,
            self.begin_s, self.until_s, objective, work_for(k), np.zeros(k),
        )  # fmt: skip

    def parts(self) -> Parts:
        limits = np.array([self.max_running, self.max_prefill, self.period])
        return Parts(self.order.copy(), self.given_up.copy(), limits)


def draw_rows(
    rng: np.random.Generator, counts: tuple[int, int, int, int], prefixes: int
) -> tuple[Rows, int, int, int]:
    """Rows that run, recover, wait and are expected, as ``plan.rollout.rows`` makes them."""
    running, recovering, waiting, coming = counts
    k = sum(counts)
    prompt = rng.integers(2, 120, k).astype(float)
    generated = np.zeros(k)
    begun = running + recovering
    generated[:begun] = rng.integers(0, 40, begun)
    halfway = rng.random(k) < 0.3  # running rows in the middle of their prompts
    halfway[begun:] = False
    generated[halfway] = 0.0
    generated[:running][~halfway[:running]] += 1.0  # who decodes has his first token
    target = prompt + generated
    prefix = rng.integers(-1, prefixes, k) if prefixes else np.full(k, -1)
    share = np.where(prefix >= 0, np.floor(prompt * rng.uniform(0.1, 0.9, k)), 0.0)
    cached = np.where(rng.random(k) < 0.5, share, 0.0)
    cached[begun + waiting :] = 0.0
    shared = np.minimum(cached, prompt - 1.0)
    left = target - shared
    left[:running] = np.where(
        halfway[:running], np.ceil(left[:running] * rng.uniform(0.1, 1.0, running)), 0.0
    )
    # somebody finds his own answer again too
    again = (rng.random(k) < 0.2) & (np.arange(k) >= running) & (generated > 0)
    left[again] = 1.0
    first_s = np.where(generated > 0, rng.uniform(0.0, BEGIN_S, k), np.nan)
    arrival_s = rng.uniform(0.0, BEGIN_S, k)
    arrival_s[begun + waiting :] = np.sort(rng.uniform(BEGIN_S, BEGIN_S + 4.0, coming))
    need = np.ceil(rng.lognormal(2.5, 1.0, k))
    strata = np.maximum(1.0, need[:, None] * rng.uniform(0.3, 2.0, (k, 5)))
    kind = rng.integers(0, 5, k)
    rows = Rows(
        arrival_s=arrival_s,
        left=left,
        target=target,
        shared=shared,
        need=need,
        generated=generated,
        first_s=first_s,
        ttft_by_s=np.where(kind % 2 == 0, arrival_s + rng.uniform(0.5, 8.0, k), np.inf),
        tpot_s=np.where((kind == 0) | (kind == 3), rng.uniform(0.004, 0.03, k), np.inf),
        e2e_by_s=np.where(kind >= 3, arrival_s + rng.uniform(0.5, 10.0, k), np.inf),
        weight=np.where(kind == 1, 0.0, rng.choice([0.5, 1.0, 3.0], k)),
        latest_s=rng.uniform(BEGIN_S - 1.0, BEGIN_S + 4.0, k),
        strata=strata,
        prefix=prefix.astype(np.int64),
        saved=np.where(prefix >= 0, share - cached, 0.0),
    )
    return rows, running, recovering, begun + waiting


def draw_case(
    seed: int,
    running: int,
    recovering: int,
    waiting: int,
    coming: int,
    slots: int,
    kv_tokens: int,
    batched_tokens: int,
    speed: float,
    max_running: float,
    max_prefill: float,
    prefixes: int,
    skip_late: bool,
    ahead_s: float,
    period: float = 1.0,
    rested: float = np.inf,
) -> Case:
    rng = np.random.default_rng(seed)
    running = min(running, slots)
    rows, running, recovering, expected = draw_rows(
        rng, (running, recovering, waiting, coming), prefixes
    )
    eager = (0.0, 0.0), (0.0213, 24.0), (0.0517, 0.0)
    eager_s, graph_tokens = eager[rng.integers(3)]
    engine = Engine(
        4e-3, 2e-3, 5e-5, 4e-4, 1e-6, eager_s, graph_tokens,
        float(slots), float(kv_tokens), float(batched_tokens), speed, float(np.ceil(speed)),
    )  # fmt: skip
    order = running + recovering + rng.permutation(waiting + coming)
    return Case(
        engine, rows, running, recovering, expected, order.astype(np.int64),
        (rng.random(running) < rng.choice([0.0, 0.3])).astype(np.int64), max_running, max_prefill,
        skip_late, BEGIN_S + ahead_s, period=period, rested=rested,
    )  # fmt: skip


cases = st.builds(
    draw_case,
    seed=st.integers(0, 100_000),
    running=st.integers(0, 8),
    recovering=st.integers(0, 3),
    waiting=st.integers(0, 14),
    coming=st.integers(0, 10),
    slots=st.integers(1, 12),
    kv_tokens=st.sampled_from([180, 400, 900, 50_000]),
    batched_tokens=st.sampled_from([48, 130, 2048]),
    speed=st.sampled_from([1.0, 1.0, 2.5, 3.0]),
    max_running=st.sampled_from([1.0, 3.0, 7.0, 1e9]),
    max_prefill=st.sampled_from([0.0, 24.0, 100.0, 1e9]),
    prefixes=st.integers(0, 3),
    skip_late=st.booleans(),
    ahead_s=st.sampled_from([0.05, 0.5, 3.0, 100.0]),
    period=st.sampled_from([1.0, 1.0, 2.0, 7.0]),
    rested=st.sampled_from([0.0, 3.0, np.inf]),
)
