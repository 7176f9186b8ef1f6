"""Problems to plan, drawn and named."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from hypothesis import strategies as st

from lengthwise.scheduler.problem import Capacity, Problem, RequestArrays
from lengthwise.scheduler.simulator.sim_workload import SimWorkload
from lengthwise.scheduler.step_time import StepTimeModel

LEVELS = np.array((0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99))
MODEL = StepTimeModel(2e-3, 1e-3, 2e-5, 3e-4, 2e-8)


def draw_rows(rng: np.random.Generator, n: int, now_s: float = 5.0) -> RequestArrays:
    """Requests of all kinds: with each objective, with several, with none."""
    centre = rng.lognormal(4.0, 1.0, n)
    spread = rng.choice([0.0, 0.5], n)
    normal = np.linspace(-1.6, 2.3, len(LEVELS))
    kind = rng.integers(0, 4, n)
    return RequestArrays.build(
        np.maximum(1.0, centre[:, None] * np.exp(spread[:, None] * normal)),
        rng.uniform(0.0, now_s, n),
        prompt_tokens=rng.integers(1, 700, n),
        ttft_s=np.where(kind == 0, rng.uniform(0.5, 8.0, n), np.inf),
        tpot_s=np.where(kind == 0, 0.05, np.inf),
        e2e_s=np.where((kind == 1) | (kind == 2), rng.uniform(1.0, 30.0, n), np.inf),
        class_id=kind,
    )


def draw_problem(seed: int, waiting: int, running: int = 4, **capacity: int) -> Problem:
    rng = np.random.default_rng(seed)
    limits = {"max_num_seqs": 4, "kv_tokens": 20_000, "max_num_batched_tokens": 512} | capacity
    active = draw_rows(rng, running)
    generated = np.floor(rng.uniform(0, 200, running))
    active = replace(
        active,
        generated_tokens=generated,
        first_token_s=np.where(generated == 0, np.nan, rng.uniform(active.arrival_s, 5.0)),
        prefill_left_tokens=np.where(generated == 0, active.prompt_tokens, 0.0),
    )
    return Problem(
        now_s=5.0,
        levels=LEVELS,
        waiting=draw_rows(rng, waiting),
        running=active,
        capacity=Capacity(**limits),
        step_time=MODEL,
        max_wait_s=60.0,
        arrival_rate_rps=float(rng.choice([0.0, 5.0])),
    )


def draw_workload(seed: int, n: int, rate_rps: float = 30.0, longest: int = 200) -> SimWorkload:
    rng = np.random.default_rng(seed)
    rows = draw_rows(rng, n, now_s=1.0)
    output = np.minimum(longest, np.ceil(rng.lognormal(3.5, 1.0, n))).astype(np.int64)
    return SimWorkload(
        arrival_s=np.cumsum(rng.exponential(1.0 / rate_rps, n)),
        prompt_tokens=rng.integers(1, 200, n),
        output_tokens=output,
        ttft_s=rows.ttft_s,
        tpot_s=rows.tpot_s,
        e2e_s=rows.e2e_s,
        weight=rows.weight,
        class_id=rows.class_id,
        quantiles=np.repeat(output[:, None].astype(float), len(LEVELS), axis=1),
        levels=LEVELS,
    )


problems = st.builds(
    draw_problem,
    seed=st.integers(0, 10_000),
    waiting=st.integers(0, 40),
    running=st.integers(0, 8),
    max_num_seqs=st.integers(1, 8),
    kv_tokens=st.sampled_from([1_500, 20_000]),
    max_num_batched_tokens=st.sampled_from([64, 512]),
)
