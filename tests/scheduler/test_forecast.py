"""Stand-ins for the arrivals to come, and the orders that let them take part."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from planning_cases import LEVELS, MODEL, draw_problem

from lengthwise.scheduler.plan.forecast import (
    DEFAULT_OBJECTIVE_S,
    ArrivalForecast,
    arrival_times,
)
from lengthwise.scheduler.plan.rollout.rows import snapshot
from lengthwise.scheduler.plan.starts.starts import (
    balanced_order,
    density_order,
    selection_order,
    too_fast,
)
from lengthwise.scheduler.problem import Capacity, Problem, RequestArrays


def test_each_request_is_taken_once():
    forecast, problem = ArrivalForecast(size=64), draw_problem(1, waiting=10)
    problem = replace(problem, arrival_rate_rps=4.0)
    for _ in range(3):
        forecast.observe(problem)
    coming = forecast.expected(problem, 10.0, 100)
    # ten requests in five seconds are 2 a second, what is above that lasts a few seconds
    assert 20 < len(coming) < 40
    assert set(coming.prompt_tokens) <= set(problem.waiting.prompt_tokens)
    assert len(set(coming.prompt_tokens)) == len(set(problem.waiting.prompt_tokens))


def test_the_ring_forgets_the_oldest():
    forecast = ArrivalForecast(size=8)
    problem = replace(draw_problem(1, waiting=20), arrival_rate_rps=50.0)
    forecast.observe(problem)
    newest = np.sort(problem.waiting.arrival_s)[-8:]
    kept = problem.waiting.prompt_tokens[np.isin(problem.waiting.arrival_s, newest)]
    assert set(forecast.expected(problem, 10.0, 100).prompt_tokens) == set(kept)


@given(
    seed=st.integers(0, 1000),
    rate=st.floats(0.0, 200.0),
    horizon_s=st.floats(0.0, 40.0),
    most=st.integers(0, 60),
)
def test_stand_ins_are_fresh_requests_to_come(seed, rate, horizon_s, most):
    forecast, problem = ArrivalForecast(), draw_problem(seed, waiting=12)
    problem = replace(problem, arrival_rate_rps=rate)
    forecast.observe(problem)
    coming = forecast.expected(problem, horizon_s, most)
    assert len(coming) <= min(most, rate * horizon_s + 1)
    assert (np.diff(coming.arrival_s) >= 0).all()
    assert ((coming.arrival_s >= 5.0) & (coming.arrival_s <= 5.0 + horizon_s)).all()
    assert (coming.queued_s == coming.arrival_s).all()
    assert (coming.prefill_left_tokens == coming.prompt_tokens).all()
    assert (coming.generated_tokens == 0).all()
    assert np.isnan(coming.first_token_s).all()


def test_a_beginning_counts_as_cached_where_it_is_now_not_where_it_was_first_seen():
    problem = replace(draw_problem(1, waiting=6, running=2), arrival_rate_rps=8.0)
    n = len(problem.waiting)
    asked = replace(
        problem.waiting,
        prompt_tokens=np.full(n, 1000.0),
        cached_tokens=np.array([0.0, 0.0, 0.0, 0.0, 900.0, 300.0]),
        prefix_id=np.array([7, 7, 8, 8, 7, -1]),
        prefix_tokens=np.array([800.0, 600.0, 500.0, 500.0, 800.0, 0.0]),
    )
    forecast = ArrivalForecast()
    forecast.observe(replace(problem, waiting=asked))

    def expected(cached: float) -> set[tuple[int, float, float]]:
        runs = replace(
            problem.running,
            cached_tokens=np.array([cached, 0.0]),
            prefix_id=np.array([7, -1]),
            prefix_tokens=np.array([800.0, 0.0]),
        )
        nobody = problem.waiting.take(np.empty(0, dtype=np.int64))
        now = replace(problem, running=runs, waiting=nobody)
        forecast.observe(now)
        rows = forecast.expected(now, 20.0, 100)
        assert (rows.prefill_left_tokens == rows.prompt_tokens - rows.cached_tokens).all()
        columns = rows.prefix_id.tolist(), rows.prefix_tokens.tolist(), rows.cached_tokens.tolist()
        return set(zip(*columns, strict=True))

    unshared, unseen = (-1, 0.0, 300.0), (8, 500.0, 0.0)
    assert expected(0.0) == {(7, 800.0, 0.0), (7, 600.0, 0.0), unseen, unshared}
    # the whole of it: the one that found more found a beginning of its own behind it
    whole = {(7, 800.0, 800.0), (7, 800.0, 900.0), (7, 600.0, 600.0), unseen, unshared}
    assert expected(800.0) == whole
    assert expected(640.0) == {(7, 800.0, 640.0), (7, 600.0, 600.0), unseen, unshared}


def test_nothing_is_expected_of_the_unknown():
    forecast, problem = ArrivalForecast(), draw_problem(1, waiting=0)
    assert len(forecast.expected(replace(problem, arrival_rate_rps=9.0), 10.0, 10)) == 0
    assert forecast.mean_objective_s(problem) == DEFAULT_OBJECTIVE_S


def test_the_mean_objective_is_that_of_those_who_have_one():
    problem = draw_problem(1, waiting=3)
    rows = replace(
        problem.waiting,
        ttft_s=np.array([2.0, np.inf, np.inf]),
        e2e_s=np.array([np.inf, 6.0, np.inf]),
    )
    forecast = ArrivalForecast()
    forecast.observe(replace(problem, waiting=rows))
    assert forecast.mean_objective_s(problem) == pytest.approx(4.0)


def test_a_clock_that_steps_back_counts_nobody_twice_for_long():
    forecast, problem = ArrivalForecast(), draw_problem(1, waiting=5)
    forecast.observe(problem)
    forecast.observe(replace(problem, now_s=-1.0))
    later = replace(problem.waiting, arrival_s=problem.waiting.arrival_s + 100.0)
    forecast.observe(replace(problem, now_s=106.0, waiting=later))
    coming = forecast.expected(replace(problem, now_s=106.0, arrival_rate_rps=10.0), 1.0, 100)
    assert len(coming) > 0
    assert (coming.arrival_s > 106.0).all()


@given(usual=st.floats(0.0, 50.0), extra=st.floats(0.0, 50.0), horizon_s=st.floats(0.1, 40.0))
def test_a_burst_fades(usual, extra, horizon_s):
    at_s = arrival_times(usual, usual + extra, horizon_s, 10_000)
    assert (np.diff(at_s) >= 0).all()
    assert usual * horizon_s - 1 <= len(at_s) <= (usual + extra) * horizon_s + 1
    half = np.searchsorted(at_s, horizon_s / 2)
    assert half >= len(at_s) - half - 1


def shot_of(rows: RequestArrays, expected: int, slots: int = 1):
    """A snapshot of waiting rows, from ``expected`` on still to come, at 5 s."""
    problem = Problem(
        5.0, LEVELS, rows.take(np.arange(expected)), RequestArrays.empty(len(LEVELS)),
        Capacity(slots, 10**6, 2048), MODEL, 60.0,
    )  # fmt: skip
    return snapshot(problem, rows, 0, expected, 0.5)


def requests(tokens, arrival_s, e2e_s, **columns):
    tokens = np.asarray(tokens, dtype=float)
    return RequestArrays.build(
        np.repeat(tokens[:, None], len(LEVELS), axis=1), arrival_s, e2e_s=e2e_s, **columns
    )


def test_expected_arrivals_push_out_the_long():
    """A long answer and a short one can both be met; thirty short ones to come change that."""
    own = requests([4000, 100], 5.0, [15.0, 60.0])
    assert selection_order(shot_of(own, 2)).tolist() == [0, 1]
    coming = requests(np.full(30, 100.0), np.linspace(5.1, 12.0, 30), 4.0)
    order = selection_order(shot_of(own.concatenated(coming), 2)).tolist()
    assert order.index(0) > order.index(1)
    assert order.index(0) >= 31


def test_the_selection_is_taken_then_dropped_then_hopeless():
    rows = requests([50, 5000, 50, 50], 5.0, [2.0, 14.0, 1e-3, 1.0])
    order = selection_order(shot_of(rows, 4)).tolist()
    assert order[-1] == 2
    assert order[:2] == [3, 0]


def test_the_densest_first_and_the_hopeless_last():
    rows = requests([50, 500, 400, 50], 5.0, [30.0, 30.0, 30.0, 1e-3], weight=[1.0, 1.0, 10.0, 5.0])
    order = density_order(shot_of(rows, 4)).tolist()
    assert order == [2, 0, 1, 3]


@given(seed=st.integers(0, 2000), waiting=st.integers(1, 30), slots=st.integers(1, 8))
def test_both_orders_are_permutations_of_all_that_queue_or_will(seed, waiting, slots):
    problem = draw_problem(seed, waiting, running=0, max_num_seqs=slots)
    shot = snapshot(problem, problem.waiting, 0, waiting - waiting // 3, 0.7)
    fast = too_fast(shot)
    orders = [
        order(shot, off) for order in (selection_order, density_order) for off in (None, fast)
    ]
    for order in (*orders, balanced_order(shot, 4.0), balanced_order(shot, 4.0, fast)):
        assert sorted(order.tolist()) == list(range(waiting))


def test_who_is_written_off_goes_last_however_dense_or_urgent():
    """A pace that a full batch's steps with their prompts cannot keep is nobody's right."""
    rows = requests([50, 200, 60, 300], 5.0, [30.0, np.inf, np.inf, 20.0])
    rows = replace(rows, tpot_s=np.array([np.inf, 1e-4, 1e3, np.inf]), ttft_s=np.full(4, 30.0))
    shot = shot_of(rows, 4)
    fast = too_fast(shot)
    assert fast.tolist() == [False, True, False, False]
    for order in (selection_order, density_order, partial(balanced_order, slot_price=4.0)):
        assert order(shot, written_off=fast).tolist()[-1] == 1
    assert sorted(density_order(shot, fast).tolist()[:3]) == [0, 2, 3]
