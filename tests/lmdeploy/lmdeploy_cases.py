"""Workloads and small engines for the second engine's tests."""

import numpy as np

from lengthwise.scheduler.problem import Capacity
from lengthwise.scheduler.profile import EngineProfile
from lengthwise.scheduler.simulator.sim_workload import SimWorkload
from lengthwise.scheduler.step_time import StepTimeModel

STEP_TIME = StepTimeModel(0.006, 0.0037, 8e-5, 2.3e-4, 6e-8)


def small_engine(slots=8, kv_tokens=65536, budget=2048, **parts):
    capacity = Capacity(slots, kv_tokens, budget)
    return EngineProfile("small", STEP_TIME, capacity, "made up for tests", **parts)


def random_workload(n=60, seed=0, rate_rps=6.0, prompts=(20, 400), answers=(5, 200), **columns):
    """True lengths known at every level; every second request has a TTFT objective, others e2e."""
    rng = np.random.default_rng(seed)
    output_tokens = rng.integers(*answers, n)
    chat = np.arange(n) % 2 == 0
    levels = np.array([0.1, 0.5, 0.9])
    return SimWorkload(
        arrival_s=np.cumsum(rng.exponential(1 / rate_rps, n)),
        prompt_tokens=rng.integers(*prompts, n),
        output_tokens=output_tokens,
        ttft_s=np.where(chat, 2.0, np.inf),
        tpot_s=np.full(n, np.inf),
        e2e_s=np.where(chat, np.inf, 6.0),
        weight=np.ones(n),
        class_id=chat.astype(np.int64),
        quantiles=np.repeat(output_tokens[:, None].astype(float), len(levels), axis=1),
        levels=levels,
        **columns,
    )
