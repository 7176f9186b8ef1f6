"""What a router is told of a simulated fleet: requests as they come, instances as they stand."""

from __future__ import annotations

import numpy as np

from lengthwise.data.arrays import FloatArray
from lengthwise.scheduler.fleet.fleet_request import FleetRequest, InstanceState
from lengthwise.scheduler.problem import NO_PREFIX
from lengthwise.scheduler.simulator import engine as e
from lengthwise.scheduler.simulator.instance import Course, SimInstance
from lengthwise.scheduler.simulator.prefix_cache import cached_tokens
from lengthwise.scheduler.simulator.sim_workload import SimWorkload


def request_of(w: SimWorkload, row: int) -> FleetRequest:
    """The workload's request of this row, which is its key."""
    prefix, prefix_tokens = NO_PREFIX, 0.0
    if w.prefix_id is not None and w.prefix_tokens is not None:
        prefix, prefix_tokens = int(w.prefix_id[row]), float(w.prefix_tokens[row])
    return FleetRequest(
        row,
        float(w.arrival_s[row]),
        float(w.prompt_tokens[row]),
        w.quantiles[row],
        float(w.ttft_s[row]),
        float(w.tpot_s[row]),
        float(w.e2e_s[row]),
        float(w.weight[row]),
        prefix,
        prefix_tokens,
    )


def state_of(
    course: Course,
    instance: SimInstance,
    prefixes: FloatArray,
    taken_s: float,
    life: tuple[int, int],
) -> InstanceState:
    """What the instance says of itself; ``prefixes (g,)`` are the workload's by number in the
    instance's cache, ``life`` is its epoch and the state's number in it."""
    cache = instance.cache
    running = instance.running[: instance.running_count]
    recovering, waiting = instance.split_queue()
    keys = np.concatenate([running, recovering, waiting])
    left = course.state[keys, e.LEFT].astype(np.float64)
    cached = np.zeros(len(keys))
    there: dict[int, float] = {}
    if cache is not None:
        queued = keys[len(running) :]
        cached[: len(running)] = cache.shared[running]
        cached[len(running) :] = cached_tokens(cache, queued, course.state[queued, e.LEFT])
        left[len(running) :] -= cached[len(running) :]
        tokens = cache.resident[: len(cache.users)]
        there = {int(prefixes[g]): float(tokens[g]) for g in np.flatnonzero(tokens)}
    return InstanceState(
        taken_s=taken_s,
        keys=keys,
        running=len(running),
        recovering=len(recovering),
        generated_tokens=course.state[keys, e.GENERATED].astype(np.float64),
        prefill_left_tokens=left,
        cached_tokens=cached,
        first_token_s=course.times[keys, e.FIRST],
        cached_prefixes=there,
        epoch=life[0],
        sequence=life[1],
        limits=instance.plan_limits,
    )
