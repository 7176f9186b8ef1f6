"""What a plan costs the steps beside it, and plans that are made less often for it."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lengthwise.scheduler.serving.engine.observed.planning_cost import (
    AT_MOST,
    LEAST_SHARE,
    PlanningCost,
)

STEP_S, PLAN_S, SHARE = 0.01, 0.02, 0.1


def served(
    slowed: float, *, seconds: float = 30.0, share: float = SHARE, noise: float = 0.0, seed: int = 0
) -> tuple[PlanningCost, float]:
    """An engine whose steps beside a plan are ``slowed`` times as long, and the share so lost.

    Its model is 1.2 times too quick, and steps with prompts are nobody's guess.
    """
    cost, rng, now_s, free_s = PlanningCost(), np.random.default_rng(seed), 0.0, 0.0
    planned_s, lost_s = -1.0, 0.0
    while now_s < seconds:
        if now_s >= free_s:
            planned_s, free_s = now_s, now_s + PLAN_S / share
        beside = now_s < planned_s + 2 * STEP_S
        prompts = int(rng.random() < 0.1) * 300
        alone_s = STEP_S * (3.0 if prompts else 1.2) * rng.lognormal(0.0, noise)
        took_s = alone_s * (slowed if beside else 1.0)
        lost_s += took_s - alone_s
        cost.note_step(took_s, STEP_S, prompts, beside_plan=beside)
        now_s += took_s
        if beside and now_s >= planned_s + 2 * STEP_S:
            cost.note_plan(PLAN_S)
    return cost, lost_s / now_s


@pytest.mark.parametrize("noise", [0.0, 0.1])
@pytest.mark.parametrize("slowed", [1.4, 2.0])
def test_what_is_lost_is_what_steps_beside_a_plan_take_longer(slowed, noise):
    free, _ = served(1.0, noise=noise)
    assert free.lost == 0.0
    assert free.share(SHARE) == SHARE
    cost, lost = served(slowed, noise=noise)
    assert cost.lost == pytest.approx(lost, rel=0.35)


@pytest.mark.parametrize("slowed", [1.6, 2.0, 3.0])
def test_plans_become_rarer_until_what_is_lost_is_little(slowed):
    share = SHARE
    for seed in range(4):
        share = served(slowed, share=share, noise=0.05, seed=seed)[0].share(SHARE)
    assert LEAST_SHARE * SHARE <= share < SHARE
    _, lost = served(slowed, share=share, noise=0.05, seed=9)
    assert lost < 1.3 * AT_MOST or share == pytest.approx(LEAST_SHARE * SHARE)


def test_prompts_that_are_launched_beside_a_plan_are_not_its_doing():
    """As logged on an H200: a step's duration holds the launch of the next, and plans begin as
    requests come, so that nearly every step beside one is a step before prompts."""
    cost, now_s = PlanningCost(), 0.0
    while now_s < 30.0:
        cost.note_step(0.048, 0.010, 0, beside_plan=True)
        cost.note_plan(PLAN_S)
        cost.note_step(0.024, 0.062, 1648, beside_plan=True)
        for i in range(9):
            cost.note_step(0.010, 0.010, 0, beside_plan=i in (1, 2))
        now_s += 0.162
    assert cost.lost == 0.0
    assert cost.share(SHARE) == SHARE


def test_no_more_is_lost_than_planning_took():
    cost, _ = served(10.0)
    assert SHARE / 2 < cost.lost < 1.2 * SHARE


def test_one_plan_says_nothing_however_slow():
    cost = PlanningCost()
    for i in range(300):
        cost.note_step(STEP_S * (3.0 if i < 100 else 1.0), STEP_S, 0, beside_plan=i < 100)
    cost.note_plan(0.6)
    assert cost.share(SHARE) == SHARE


def test_a_short_while_says_nothing():
    cost, _ = served(2.0, seconds=2.0)  # a quarter of one beside plans
    assert cost.lost == 0.0
    assert cost.share(SHARE) == SHARE


@given(
    st.lists(
        st.tuples(
            st.floats(allow_nan=True, allow_infinity=True),
            st.floats(0.0, 1.0),
            st.integers(0, 100),
            st.booleans(),
        )
    ),
    st.lists(st.floats(0.0, 10.0)),
    st.floats(1e-3, 1.0),
)
def test_the_share_stays_within_what_is_allowed(steps, plans, most):
    cost = PlanningCost()
    for duration_s, modelled_s, prompts, beside in steps:
        cost.note_step(duration_s, modelled_s, prompts, beside_plan=beside)
    for spent_s in plans:
        cost.note_plan(spent_s)
    assert 0.0 <= cost.lost <= 1.0
    assert LEAST_SHARE * most <= cost.share(most) * (1 + 1e-12)
    assert cost.share(most) <= most
