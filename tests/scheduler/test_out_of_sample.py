"""Plans judged on lengths they were not made for."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from planning_cases import draw_problem
from rollout_cases import cases, draw_case

from lengthwise.scheduler.plan.out_of_sample import all_known, mean_values, redrawn
from lengthwise.scheduler.plan.search import value_of
from lengthwise.scheduler.policies.make import make_policy


def known(case):
    """The same case with every length certain."""
    rows = case.rows._replace(strata=np.repeat(case.rows.need[:, None], 5, axis=1))
    return replace(case, rows=rows)


@given(case=cases, seed=st.integers(0, 99))
def test_lengths_are_drawn_from_what_they_may_be(case, seed):
    other = redrawn(case.picture(), np.random.default_rng(seed)).rows
    assert (other.need[:, None] == np.ceil(case.rows.strata)).any(axis=1).all()
    assert (other.left == case.rows.left).all()


@given(case=cases)
def test_a_known_length_is_drawn_as_it_is(case):
    picture = known(case).picture()
    assert all_known(picture)
    assert (redrawn(picture, np.random.default_rng(0)).rows.need == case.rows.need).all()
    assert not len(case.rows.need) or not all_known(case.picture())


@given(case=cases, draws=st.integers(1, 4))
def test_all_plans_are_valued_on_the_same_draws(case, draws):
    plan = case.parts(), case.skip_late
    twice = mean_values(case.picture(), [plan, plan], np.random.default_rng(3), draws)
    assert twice[0] == twice[1]
    certain = known(case).picture()
    (value,) = mean_values(certain, [plan], np.random.default_rng(3), draws)
    assert value == pytest.approx(value_of(certain, *plan))


def test_what_is_long_on_one_draw_costs_on_another():
    """Of two orders the one that fits the drawn lengths is worth more on the mean."""
    case = draw_case(11, 2, 0, 12, 0, 2, 50_000, 130, 1.0, 1e9, 1e9, 0, False, 3.0)
    rng = np.random.default_rng(0)
    values = mean_values(case.picture(), [(case.parts(), False)] * 3, rng, draws=8)
    others = mean_values(case.picture(), [(case.parts(), False)], np.random.default_rng(1), draws=8)
    assert len(set(values)) == 1
    assert others[0] != values[0]


@given(seed=st.integers(0, 300), waiting=st.integers(2, 40))
def test_orders_are_searched_only_by_lengths_that_are_known(seed, waiting):
    problem = draw_problem(seed, waiting, running=4, max_num_seqs=6)
    rows = problem.waiting
    guesses = rows.quantiles * np.linspace(0.5, 2.0, rows.quantiles.shape[1])
    problem = replace(problem, waiting=replace(rows, quantiles=guesses))
    orders = [
        make_policy("sa", iterations=steps, parts=("order",))(problem).order.tolist()
        for steps in (0, 60)
    ]
    assert orders[0] == orders[1]
