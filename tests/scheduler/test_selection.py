import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from planning_cases import draw_workload

from lengthwise.scheduler.plan.starts.selection import select
from lengthwise.scheduler.plan.starts.wait_bound import (
    _KEPT,
    _LEAD,
    _MARGIN,
    are_past,
    find_overdue,
    let_in,
    overdue_first,
)
from lengthwise.scheduler.policies.make import make_policy
from lengthwise.scheduler.profile import PrefixCache, Speculation, load_profile
from lengthwise.scheduler.simulator.bound import attainment_bound
from lengthwise.scheduler.simulator.run import simulate
from lengthwise.scheduler.step_time import StepTimeModel

BOUND_S = 20.0 / _KEPT  # 20 s with the reserve
DEAR_PROMPTS = StepTimeModel(0.005, 0.0, 0.0001, 0.0001, 0.0)


def chosen(latest, work, value, slots=1.0):
    latest, work, value = (np.array(x, dtype=float) for x in (latest, work, value))
    return select(latest, work, value, np.argsort(latest), 0.0, slots)


def test_all_are_taken_when_all_fit():
    taken, _ = chosen([0, 1, 2], [1, 1, 1], [1, 1, 1])
    assert taken.tolist() == [1, 1, 1]


def test_the_long_one_is_dropped_for_two_short_ones():
    taken, least = chosen([0, 3, 4], [10, 2, 2], [1, 1, 1])
    assert taken.tolist() == [0, 1, 1]
    assert least == pytest.approx(0.5)


def test_unless_its_weight_pays_for_it():
    taken, _ = chosen([0, 3, 4], [10, 2, 2], [20, 1, 1])
    assert taken.tolist() == [1, 0, 0]


@given(seed=st.integers(0, 5_000), n=st.integers(1, 60), slots=st.integers(1, 8))
def test_what_is_taken_starts_in_time_and_nothing_denser_was_dropped_for_nothing(seed, n, slots):
    rng = np.random.default_rng(seed)
    latest, work = rng.uniform(0, 20, n), rng.uniform(0.1, 5, n)
    taken, _ = chosen(latest, work, np.ones(n), slots)
    order = np.argsort(latest)
    order = order[taken[order] > 0]
    starts = np.concatenate([[0.0], np.cumsum(work[order])[:-1]]) / slots
    assert (starts <= latest[order] + 1e-9).all()
    # as many as the shortest-first rule could start in time, at least
    greedy, used = 0, 0.0
    for row in np.argsort(work):
        if used / slots <= latest[row]:
            greedy, used = greedy + 1, used + work[row]
        else:
            break
    assert taken.sum() >= greedy


def test_the_overdue_lead_by_age():
    order, count = overdue_first(np.array([3, 1, 0, 2]), np.array([0.0, 9.0, 2.0, 1.0]), 10.0, 5.0)
    assert order.tolist() == [0, 3, 2, 1]
    assert count == 3


def test_a_limit_lets_in_who_is_about_to_reach_the_bound():
    gap_s = 0.5
    lead_s = _LEAD * _MARGIN * gap_s
    queued_s = np.array([0.0, 0.5, 10.0])
    at = 20.0 - lead_s
    assert let_in(5.0, 40, queued_s, at - 0.1, BOUND_S, gap_s) == 5.0
    assert let_in(5.0, 40, queued_s, at + 0.1, BOUND_S, gap_s) == 41.0
    assert let_in(5.0, 40, queued_s, at + 0.6, BOUND_S, gap_s) == 42.0
    assert let_in(64.0, 40, queued_s, at + 0.6, BOUND_S, gap_s) == 64.0
    assert let_in(5.0, 40, np.empty(0), at, BOUND_S, gap_s) == 5.0
    assert not are_past(queued_s, BOUND_S + queued_s.min(), BOUND_S)
    assert are_past(queued_s, 1.06 * BOUND_S + queued_s.min(), BOUND_S)
    assert not are_past(np.empty(0), at, BOUND_S)


def test_old_requests_go_while_there_is_time_for_all_of_them():
    """Four of them, a slot each second: the last may start at 20 s, so the first goes by 17 s,
    and four slots ahead of that it is time."""
    arrival_s = np.zeros(4)
    gap_s = 1.0 / _MARGIN
    lead_s = _LEAD * gap_s * _MARGIN
    assert not find_overdue(arrival_s, 16.9 - lead_s, BOUND_S, gap_s).any()
    assert find_overdue(arrival_s, 17.5 - lead_s, BOUND_S, gap_s).tolist() == [
        True,
        False,
        False,
        False,
    ]
    assert find_overdue(arrival_s, 20.5 - lead_s, BOUND_S, gap_s).all()
    young = np.array([0.0, *np.full(100, 8.0)])
    assert find_overdue(young, 15.0, BOUND_S, gap_s).tolist() == [False] * 101


def test_a_bound_that_a_lasting_overload_has_missed_is_not_looked_ahead_for():
    """Forty old ones, a slot each second: the first should have gone long ago."""
    arrival_s, gap_s, now_s = np.arange(40.0) / 100.0, 1.0 / _MARGIN, 0.7 * BOUND_S
    assert find_overdue(arrival_s, now_s, BOUND_S, gap_s)[:30].all()
    assert not find_overdue(arrival_s, now_s, BOUND_S, gap_s, lasts=True).any()
    assert find_overdue(arrival_s, BOUND_S, BOUND_S, gap_s, lasts=True).all()
    on_time = find_overdue(arrival_s[:4], 0.6 * BOUND_S, BOUND_S, gap_s)
    assert (find_overdue(arrival_s[:4], 0.6 * BOUND_S, BOUND_S, gap_s, lasts=True) == on_time).all()


@pytest.mark.parametrize("rate_rps", [10.0, 60.0])
def test_no_policy_beats_the_bound(rate_rps):
    profile = load_profile("tiny-cpu")
    workload = draw_workload(11, 200, rate_rps=rate_rps)
    bound = attainment_bound(workload, profile, intervals=60)
    for name in ("feasible-edf", "feasible-sjf"):
        result = simulate(workload, make_policy(name), profile)
        assert result.met(workload).mean() <= bound + 1e-9


@pytest.mark.parametrize(
    ("part", "shared"),
    [
        ({"speculation": Speculation(accepted_tokens=4.0)}, 0),
        ({"prefix_cache": PrefixCache(), "step_time": DEAR_PROMPTS}, 1600),
    ],
)
def test_no_policy_beats_the_bound_by_tokens_that_cost_nothing(part, shared):
    profile = replace(load_profile("tiny-cpu"), **part)
    workload = draw_workload(13, 200, rate_rps=100.0, longest=1500)
    crowded = replace(
        workload,
        prompt_tokens=workload.prompt_tokens + shared,
        ttft_s=np.full(200, np.inf),
        tpot_s=np.full(200, np.inf),
        e2e_s=np.full(200, 2.0),
        prefix_id=np.zeros(200, dtype=np.int64),
        prefix_tokens=np.full(200, shared),
    )
    bound = attainment_bound(crowded, profile, intervals=60)
    result = simulate(crowded, make_policy("feasible-sjf"), profile)
    assert result.met(crowded).mean() <= bound <= 1.0


def test_the_bound_falls_with_overload():
    profile = load_profile("tiny-cpu")
    workload = draw_workload(12, 300, rate_rps=100.0, longest=1500)
    crowded = replace(workload, arrival_s=workload.arrival_s / 20, e2e_s=np.full(300, 2.0))
    assert attainment_bound(crowded, profile, intervals=60) < 0.9


def test_the_first_plan_is_as_quick_as_the_next_after_a_warm_up():
    """In its own process: nothing may be left to compile when the first request waits."""
    script = (
        "import time; from lengthwise.scheduler.policies.make import make_policy\n"
        "from lengthwise.scheduler.problem import warm_up_problem\n"
        "policy = make_policy('sa', budget_s=0.001); policy.warm_up()\n"
        "began = time.perf_counter(); policy(warm_up_problem())\n"
        "print(time.perf_counter() - began)"
    )
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert float(run.stdout) < 0.1  # a compilation takes a second or more
