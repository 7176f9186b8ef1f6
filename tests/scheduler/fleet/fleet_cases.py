"""Small fleets for the tests: engines of a few slots, requests of a few tokens."""

import numpy as np

from lengthwise.scheduler.fleet.fleet_request import FleetRequest, InstanceState
from lengthwise.scheduler.fleet.make_router import make_router
from lengthwise.scheduler.problem import Capacity
from lengthwise.scheduler.profile import EngineProfile, PrefixCache
from lengthwise.scheduler.simulator.fleet_run import simulate_fleet
from lengthwise.scheduler.simulator.fleet_terms import FleetPlace
from lengthwise.scheduler.simulator.sim_workload import SimWorkload
from lengthwise.scheduler.step_time import StepTimeModel

LEVELS = np.array([0.1, 0.5, 0.9])


def engine(slots=4, kv=4096, speed=1.0, cache=False, name="small"):
    steps = StepTimeModel(0.01 / speed, 0.002 / speed, 1e-4 / speed, 5e-4 / speed, 1e-7 / speed)
    return EngineProfile(
        name=f"{name}-{speed:g}",
        step_time=steps,
        capacity=Capacity(slots, kv, 256),
        provenance="of the tests",
        prefix_cache=PrefixCache(16) if cache else None,
    )


def drawn(n, rate_rps, seed, prefixes=0):
    rng = np.random.default_rng(seed)
    tokens = rng.integers(1, 60, n)
    prompt = rng.integers(1, 200, n)
    kind = rng.integers(0, 3, n)
    shared = {}
    if prefixes:
        shared["prefix_id"] = rng.integers(-1, prefixes, n)
        shared["prefix_tokens"] = np.where(shared["prefix_id"] < 0, 0, prompt // 2)
    return SimWorkload(
        arrival_s=np.sort(rng.uniform(0, n / rate_rps, n)),
        prompt_tokens=prompt,
        output_tokens=tokens,
        ttft_s=np.where(kind == 0, 0.5, np.inf),
        tpot_s=np.where(kind == 0, 0.02, np.inf),
        e2e_s=np.where(kind == 1, 2.0, np.inf),
        weight=np.ones(n),
        class_id=kind,
        quantiles=np.maximum(tokens[:, None] * np.array([0.7, 1.0, 1.5]), 1.0),
        levels=LEVELS,
        **shared,
    )


def router_named(name, policy="fcfs", seed=0, levels=LEVELS):
    return make_router(name, levels, policy=policy, rng=np.random.default_rng(seed))


def play(workload, name, places, *, policy_of=None, conditions=None, policy="fcfs", seed=0):
    router = router_named(name, policy, seed, workload.levels)
    result = simulate_fleet(
        workload, router, places, policy_of or (lambda i: None), conditions=conditions,
        rng=np.random.default_rng(seed),
    )  # fmt: skip
    return result, router


def places(n, **kwargs):
    return [FleetPlace(engine(**kwargs)) for _ in range(n)]


def request(key, arrival_s=0.0, tokens=20.0, prompt=30.0, **kwargs):
    return FleetRequest(key, arrival_s, prompt, np.array([0.7, 1.0, 1.5]) * tokens, **kwargs)


def state(taken_s, running=(), waiting=(), generated=0.0, **kwargs):
    keys = np.array([*running, *waiting], dtype=np.int64)
    begun = np.arange(len(keys)) < len(running)
    return InstanceState(
        taken_s=taken_s,
        keys=keys,
        running=len(running),
        recovering=0,
        generated_tokens=np.where(begun, generated, 0.0),
        prefill_left_tokens=np.where(begun, 0.0, 30.0),
        cached_tokens=np.zeros(len(keys)),
        first_token_s=np.where(begun, taken_s - 0.01, np.nan),
        **kwargs,
    )
