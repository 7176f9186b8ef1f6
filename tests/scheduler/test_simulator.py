from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from planning_cases import MODEL, draw_problem, draw_workload

from lengthwise.scheduler.policies.make import POLICIES, make_policy
from lengthwise.scheduler.problem import NO_PREFIX, Capacity, Plan, RequestArrays
from lengthwise.scheduler.profile import EngineProfile, load_profile, profile_names
from lengthwise.scheduler.simulator.capacity import saturated_rps
from lengthwise.scheduler.simulator.engine import ADMITTED
from lengthwise.scheduler.simulator.instance import Course, SimInstance
from lengthwise.scheduler.simulator.run import simulate

SMALL = EngineProfile("small", MODEL, Capacity(6, 3_000, 256), "test")
TIGHT = EngineProfile("tight", MODEL, Capacity(6, 600, 64), "test")


def fresh(name):
    return make_policy(name, **({"iterations": 20} if name == "sa" else {}))


def check_conservation(workload, result, profile):
    assert np.isfinite(result.finish_s).all()
    assert (result.output_tokens == workload.output_tokens).all()
    assert (workload.arrival_s <= result.admitted_s).all()
    assert (result.admitted_s < result.first_token_s).all()
    assert (result.first_token_s <= result.finish_s).all()
    assert result.kv_peak_tokens <= profile.capacity.kv_tokens
    assert result.prefilled_tokens >= workload.prompt_tokens.sum()
    if result.preemptions == result.yields == 0:
        assert result.prefilled_tokens == workload.prompt_tokens.sum()


@pytest.mark.parametrize("name", POLICIES)
def test_every_request_ends_once_with_its_tokens(name):
    workload = draw_workload(1, 80)
    check_conservation(workload, simulate(workload, fresh(name), SMALL), SMALL)


@given(seed=st.integers(0, 1_000), n=st.integers(0, 40), tight=st.booleans())
def test_conservation_on_drawn_workloads(seed, n, tight):
    profile = TIGHT if tight else SMALL
    workload = draw_workload(seed, n)
    result = simulate(workload, fresh("feasible-edf"), profile)
    check_conservation(workload, result, profile)


def test_preemption_happens_and_recomputes():
    workload = draw_workload(2, 60, rate_rps=200.0)
    result = simulate(workload, fresh("fcfs"), TIGHT)
    assert result.preemptions > 0
    assert result.prefilled_tokens > workload.prompt_tokens.sum()
    check_conservation(workload, result, TIGHT)


def test_a_lone_request_takes_its_steps():
    workload = draw_workload(3, 1)
    result = simulate(workload, fresh("fcfs"), SMALL)
    prompt, answer = int(workload.prompt_tokens[0]), int(workload.output_tokens[0])
    expected = MODEL.step_s(prompt, 0, 0)
    expected += sum(MODEL.step_s(0, 1, prompt + t) for t in range(answer - 1))
    assert result.finish_s[0] - workload.arrival_s[0] == pytest.approx(expected)


@pytest.mark.parametrize("name", ["sjf", "feasible-sjf", "sa"])
def test_nobody_waits_beyond_the_bound(name):
    workload = draw_workload(4, 300, rate_rps=120.0)
    bound_s = 2.0
    result = simulate(workload, fresh(name), SMALL, max_wait_s=bound_s)
    waits = result.admitted_s - workload.arrival_s
    fcfs = simulate(workload, fresh("fcfs"), SMALL)
    # in overload nobody can keep the bound for all; then the overdue queue is first come,
    # first served, so no wait is longer than arrival order's by more than a few steps
    assert waits.max() > bound_s
    assert waits.max() <= (fcfs.admitted_s - workload.arrival_s).max() + 0.1


def test_a_plan_costs_time_only_when_measured():
    workload = draw_workload(5, 100, rate_rps=100.0)
    free = [simulate(workload, fresh("sa"), SMALL).finish_s for _ in range(2)]
    assert (free[0] == free[1]).all()
    measured = simulate(workload, fresh("sa"), SMALL, plan_cost="measured")
    assert np.isfinite(measured.finish_s).all()


def test_arrival_order_without_contention_equals_any_order():
    workload = draw_workload(6, 40, rate_rps=2.0)
    ends = [simulate(workload, fresh(name), SMALL).finish_s for name in ("fcfs", "sjf", "sa")]
    assert ends[0] == pytest.approx(ends[1])
    assert ends[0] == pytest.approx(ends[2])


class FixedPrefill:
    """Arrival order with a limit on the prompt tokens of a step."""

    name, nominal_s = "fixed-prefill", 1e-4

    def __init__(self, max_prefill_tokens):
        self.max_prefill_tokens = max_prefill_tokens

    def __call__(self, problem):
        order = np.arange(len(problem.waiting), dtype=np.int64)
        return Plan(order, max_prefill_tokens=self.max_prefill_tokens)

    def warm_up(self):
        pass


def test_a_prefill_limit_spares_those_who_decode():
    workload = replace(
        draw_workload(9, 3),
        arrival_s=np.array([0.0, 0.01, 0.01]),
        prompt_tokens=np.array([16, 200, 200]),
        output_tokens=np.array([8, 4, 4]),
    )
    wide, narrow = (simulate(workload, FixedPrefill(limit), SMALL) for limit in (None, 32))
    for result in (wide, narrow):
        check_conservation(workload, result, SMALL)
    assert narrow.finish_s[0] < wide.finish_s[0]
    assert narrow.first_token_s[2] > wide.first_token_s[2]
    assert (simulate(workload, fresh("fcfs"), SMALL).finish_s == wide.finish_s).all()


@given(seed=st.integers(0, 300), limit=st.integers(0, 400), tight=st.booleans())
def test_no_prefill_limit_starves_anybody(seed, limit, tight):
    profile = TIGHT if tight else SMALL
    workload = draw_workload(seed, 25, rate_rps=100.0)
    check_conservation(workload, simulate(workload, FixedPrefill(limit), profile), profile)


class Patient(FixedPrefill):
    """The last arrival first; who came after a time, within so many seconds of its arrival."""

    def __init__(self, patience_s, after_s=0.0):
        self.patience_s, self.after_s = patience_s, after_s

    def __call__(self, problem):
        order = np.arange(len(problem.waiting), dtype=np.int64)[::-1]
        arrival_s = problem.waiting.arrival_s
        latest_start_s = np.where(arrival_s >= self.after_s, arrival_s + self.patience_s, np.inf)
        return Plan(order, latest_start_s=latest_start_s)


def test_who_is_past_its_latest_start_is_passed_by_between_plans():
    one_slot = replace(SMALL, capacity=replace(SMALL.capacity, max_num_seqs=1))
    workload = replace(
        draw_workload(3, 4),
        arrival_s=np.array([0.0, 0.001, 0.002, 0.003]),
        prompt_tokens=np.full(4, 20),
        output_tokens=np.full(4, 30),
    )

    def served(patience_s):
        instance = SimInstance(Course(workload), Patient(patience_s, 0.0015), one_slot)
        for row in range(4):
            instance.offer(row, workload.arrival_s[row])
        instance.advance(0.004)
        instance.gate._not_before_s = np.inf  # no plan after the one of all four
        instance.advance(np.inf)
        return np.argsort(instance.course.times[:, ADMITTED]).tolist()

    ends_s = simulate(workload, Patient(np.inf), one_slot).finish_s
    assert served(np.inf) == [0, 3, 2, 1]
    assert served(1.5 * ends_s.min()) == [0, 3, 1, 2]
    assert served(0.5 * ends_s.min()) == [0, 1, 3, 2]


@given(seed=st.integers(0, 300), patience_s=st.floats(0.0, 3.0), tight=st.booleans())
def test_no_latest_start_starves_anybody(seed, patience_s, tight):
    profile = TIGHT if tight else SMALL
    workload = draw_workload(seed, 25, rate_rps=100.0)
    check_conservation(workload, simulate(workload, Patient(patience_s), profile), profile)


class FixedPeriod(FixedPrefill):
    """Arrival order, prompts in every n-th step."""

    def __init__(self, period):
        self.period = period

    def __call__(self, problem):
        order = np.arange(len(problem.waiting), dtype=np.int64)
        return Plan(order, prefill_period=self.period)


@given(seed=st.integers(0, 300), period=st.integers(1, 40), tight=st.booleans())
def test_no_prefill_period_starves_anybody(seed, period, tight):
    profile = TIGHT if tight else SMALL
    workload = draw_workload(seed, 25, rate_rps=100.0)
    check_conservation(workload, simulate(workload, FixedPeriod(period), profile), profile)


def test_prompts_gathered_under_a_floor_spare_everybody():
    """A step with prompts takes a tenth of a second, however few they are."""
    floor = replace(SMALL, step_time=replace(SMALL.step_time, eager_s=0.1))
    workload = draw_workload(11, 80, rate_rps=100.0)
    each, gathered = (simulate(workload, FixedPeriod(period), floor) for period in (1, 8))
    assert gathered.end_s < 0.95 * each.end_s
    assert gathered.tpot_s().mean() < each.tpot_s().mean()
    with pytest.raises(ValueError, match="at least 1, got 0"):
        FixedPeriod(0)(draw_problem(0, 3))


def test_a_limit_below_a_block_is_a_block():
    workload = draw_workload(10, 40, rate_rps=100.0)
    zero, block = (simulate(workload, FixedPrefill(limit), SMALL) for limit in (0, 16))
    assert (zero.finish_s == block.finish_s).all()
    with pytest.raises(ValueError, match="negative: -1"):
        FixedPrefill(-1)(draw_problem(0, 3))


def test_columns_of_an_engine_without_prefix_cache_are_neutral():
    rows = RequestArrays.build(np.ones((2, 1)), [0.0, 1.0], prompt_tokens=[50, 60])
    assert (rows.cached_tokens == 0).all()
    assert (rows.prefix_id == NO_PREFIX).all()
    cached = RequestArrays.build(
        np.ones((2, 1)), 0.0, prompt_tokens=[50, 60], cached_tokens=[32, 0], prefix_id=[3, -1]
    )
    assert list(cached.prefill_left_tokens) == [18, 60]
    assert list(cached.take([1, 0]).cached_tokens) == [0, 32]
    with pytest.raises(ValueError, match="prefix_id"):
        replace(cached, prefix_id=np.array([1]))


def test_refuses_what_cannot_be_served():
    workload = draw_workload(7, 5)
    with pytest.raises(ValueError, match="KV cache"):
        simulate(workload, fresh("fcfs"), replace(SMALL, capacity=Capacity(6, 50, 64)))
    with pytest.raises(ValueError, match="sorted"):
        replace(workload, arrival_s=workload.arrival_s[::-1])
    with pytest.raises(ValueError, match="rows"):
        replace(workload, weight=np.ones(3))


def test_shipped_profiles_load_and_have_a_rate():
    for name in profile_names():
        profile = load_profile(name)
        assert saturated_rps(draw_workload(8, 200), profile) > 1.0
        assert len(profile.provenance) > 20
    with pytest.raises(ValueError, match="tiny-cpu"):
        load_profile("nowhere")
