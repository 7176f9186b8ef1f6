"""Wrong input costs `sa` no more than arrival order: a small overload in the simulator."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import pytest
from planning_cases import MODEL, draw_workload

from benchmarks.simulator.wrong_input.bad_input import CASES, Setting, failures, played
from lengthwise.scheduler.policies.make import make_policy
from lengthwise.scheduler.problem import Capacity
from lengthwise.scheduler.profile import EngineProfile
from lengthwise.scheduler.simulator.run import simulate

SMALL = EngineProfile("small", MODEL, Capacity(6, 3_000, 256), "a test")
BOUND_S = 4.0


@lru_cache
def right() -> Setting:
    """300 requests of all kinds at about twice what six slots can serve."""
    return Setting(draw_workload(1, 300, rate_rps=60.0), SMALL)


@pytest.mark.parametrize("case", CASES)
def test_never_below_arrival_order_and_nobody_waits_longer(case):
    setting = CASES[case](right())
    fcfs = played(setting, make_policy("fcfs"), BOUND_S)
    assert failures(played(setting, make_policy("sa"), BOUND_S), fcfs) == []


def test_the_policy_is_told_what_it_is_to_believe():
    seen = []

    class Asked:
        name, nominal_s = "asked", 0.0

        def __call__(self, problem):
            seen.append(problem.step_time.base_s)
            return make_policy("fcfs")(problem)

        def warm_up(self):
            pass

    setting = CASES["profile thrice too slow"](right())
    true = simulate(setting.workload, Asked(), SMALL)
    assert set(seen) == {MODEL.base_s}
    seen.clear()
    misled = simulate(setting.workload, Asked(), SMALL, believed=setting.believed)
    assert set(seen) == {3.0 * MODEL.base_s}
    assert (misled.finish_s == true.finish_s).all()  # the engine itself is what it was
    assert np.isfinite(true.finish_s).all()
