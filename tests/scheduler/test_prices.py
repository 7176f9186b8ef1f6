"""The price of work rises with what waits, and least where a backlog stays anyway."""

from dataclasses import replace

import pytest
from planning_cases import draw_problem

from lengthwise.scheduler.plan.prices import work_price
from lengthwise.scheduler.plan.rollout.rows import Snapshot, snapshot

HORIZON_S, MAX_WAIT_S = 20.0, 120.0


def shot_of(waiting: int) -> Snapshot:
    problem = replace(draw_problem(3, waiting=waiting), recovering=None)
    everybody = problem.running.concatenated(problem.waiting)
    running = len(problem.running)
    return snapshot(problem, everybody, running, running + waiting, 0.7)


def price(shot: Snapshot, rate_rps: float, backlog: float, bound: float) -> float:
    return work_price(shot, rate_rps, HORIZON_S, MAX_WAIT_S, 2.0, backlog, bound)


def test_without_the_backlog_the_price_is_its_base():
    assert price(shot_of(20), 1.0, 0.0, 0.0) == 2.0


@pytest.mark.parametrize(("backlog", "bound"), [(5.0, 0.0), (0.0, 12.0)])
def test_work_is_dearer_the_more_of_it_waits(backlog, bound):
    few, many = shot_of(4), shot_of(40)
    assert 2.0 < price(few, 0.0, backlog, bound) < price(many, 0.0, backlog, bound)


def test_the_scales_are_the_horizon_and_the_maximum_wait():
    shot = shot_of(20)
    waits_s = float(shot.work_s[shot.waiting : shot.expected].sum())
    assert price(shot, 0.0, 5.0, 0.0) == pytest.approx(2.0 * (1.0 + 5.0 * waits_s / HORIZON_S))
    assert price(shot, 0.0, 0.0, 12.0) == pytest.approx(2.0 * (1.0 + 12.0 * waits_s / MAX_WAIT_S))


def test_in_overload_only_the_maximum_wait_counts():
    shot = shot_of(20)
    mean_s = float(shot.work_s[shot.waiting :].mean())
    assert price(shot, 2.0 / mean_s, 5.0, 0.0) == 2.0
    assert price(shot, 2.0 / mean_s, 5.0, 12.0) > 2.0
    assert 2.0 < price(shot, 1.1 / mean_s, 5.0, 0.0) < price(shot, 0.9 / mean_s, 5.0, 0.0)
