"""How many requests a second an engine completes."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from lengthwise.scheduler.policies.make import make_policy
from lengthwise.scheduler.profile import EngineProfile
from lengthwise.scheduler.simulator.run import simulate
from lengthwise.scheduler.simulator.workload import SimWorkload


def saturated_rps(workload: SimWorkload, profile: EngineProfile) -> float:
    """Requests a second the engine completes when all are there at once, oldest first.

    The tail, in which slots fall empty, is left out: the rate at which the first 80 % finish.
    """
    n = len(workload)
    if n < 10:
        raise ValueError(f"saturated_rps needs at least 10 requests, got {n}")
    at_once = replace(workload, arrival_s=np.zeros(n))
    finish = np.sort(simulate(at_once, make_policy("fcfs"), profile).finish_s)
    count = int(0.8 * n)
    return count / float(finish[count - 1])
