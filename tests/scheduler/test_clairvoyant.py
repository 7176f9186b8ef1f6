import numpy as np
import pytest

from lengthwise.scheduler.policies.make import make_policy
from lengthwise.scheduler.problem import Capacity
from lengthwise.scheduler.profile import EngineProfile
from lengthwise.scheduler.simulator.clairvoyant import clairvoyant
from lengthwise.scheduler.simulator.run import simulate
from lengthwise.scheduler.simulator.sim_workload import SimWorkload
from lengthwise.scheduler.step_time import StepTimeModel

PROFILE = EngineProfile(
    "four slots", StepTimeModel(0.01, 0.002, 1e-5, 1e-3, 0.0), Capacity(4, 4096, 512), "made up"
)


def overloaded(n=60):
    rng = np.random.default_rng(4)
    answers = rng.integers(5, 120, n)
    return SimWorkload(
        arrival_s=np.sort(rng.uniform(0.0, 8.0, n)),
        prompt_tokens=rng.integers(5, 60, n),
        output_tokens=answers,
        ttft_s=np.where(rng.random(n) < 0.3, 1.0, np.inf),
        tpot_s=np.full(n, np.inf),
        e2e_s=np.where(rng.random(n) < 0.8, 3.0, np.inf),
        weight=np.ones(n),
        class_id=np.zeros(n, dtype=np.int64),
        quantiles=np.repeat(answers[:, None].astype(float), 2, axis=1),
        levels=np.array([0.05, 0.95]),
    )


def test_the_search_only_gains_and_knows_more_than_arrival_order():
    workload = overloaded()
    orders = [np.argsort(workload.arrival_s), np.argsort(workload.output_tokens, kind="stable")]
    found = clairvoyant(workload, PROFILE, orders, 1500, np.random.default_rng(0))
    attained = simulate(workload, make_policy("fcfs"), PROFILE).met(workload).mean()
    assert found.steps == 1500
    assert attained < found.attainment <= 1.0
    assert found.start <= found.attainment
    again = clairvoyant(workload, PROFILE, orders, 1500, np.random.default_rng(0))
    assert again == found


def test_it_needs_an_order_to_begin_with():
    with pytest.raises(ValueError, match="at least one start"):
        clairvoyant(overloaded(), PROFILE, [], 10, np.random.default_rng(0))
