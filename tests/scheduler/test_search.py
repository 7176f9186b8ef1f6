from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from planning_cases import draw_problem, problems

from lengthwise.scheduler.exact import best_order
from lengthwise.scheduler.plan.anneal import anneal
from lengthwise.scheduler.plan.jobs import prepare
from lengthwise.scheduler.plan.moves import KINDS, apply_move
from lengthwise.scheduler.plan.objective import Evaluator, Objective


@given(
    kind=st.integers(0, KINDS - 1),
    i=st.integers(0, 19),
    j=st.integers(0, 19),
    length=st.integers(1, 8),
)
def test_a_move_permutes_and_names_its_first_change(kind, i, j, length):
    order = np.arange(20)
    first = apply_move(order, kind, i, j, length)
    assert sorted(order) == list(range(20))
    assert (order[:first] == np.arange(first)).all()


@given(problem=problems, paper_g=st.booleans())
def test_never_worse_than_the_start_and_a_permutation(problem, paper_g):
    jobs = prepare(problem)
    n = len(jobs)
    objective = Objective(price=1e-3, paper_g=paper_g)
    start = np.random.default_rng(0).permutation(n)
    found = anneal(Evaluator(jobs, objective, n), start, np.random.default_rng(1), iterations=120)
    assert sorted(found.order) == list(range(n))
    assert found.cost <= found.start_cost
    fresh = Evaluator(jobs, objective, n)
    assert fresh.cost(found.order) == pytest.approx(found.cost, rel=1e-9, abs=1e-9)
    assert fresh.cost(start) == pytest.approx(found.start_cost, rel=1e-9, abs=1e-9)


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("paper_g", [False, True])
def test_finds_the_optimum_of_short_queues(seed, paper_g):
    problem = draw_problem(seed, waiting=3 + seed % 5, running=2, max_num_seqs=2)
    jobs = prepare(replace(problem, now_s=8.0))
    n = len(jobs)
    evaluator = Evaluator(jobs, Objective(paper_g=paper_g), n)
    _, optimum = best_order(evaluator, n)
    found = [
        anneal(
            Evaluator(jobs, Objective(paper_g=paper_g), n),
            np.arange(n),
            np.random.default_rng(luck),
            iterations=2_000,
        ).cost
        for luck in range(3)
    ]
    assert min(found) == pytest.approx(optimum, rel=1e-9, abs=1e-12)


def test_same_seed_same_search():
    jobs = prepare(draw_problem(1, waiting=30))
    runs = [
        anneal(
            Evaluator(jobs, Objective(), 30),
            np.arange(30),
            np.random.default_rng(7),
            iterations=300,
        )
        for _ in range(2)
    ]
    assert (runs[0].order == runs[1].order).all()
    assert runs[0].cost == runs[1].cost


def test_the_kept_head_stays():
    jobs = prepare(draw_problem(2, waiting=30))
    found = anneal(
        Evaluator(jobs, Objective(), 30),
        np.arange(30),
        np.random.default_rng(0),
        iterations=300,
        first=5,
    )
    assert found.order[:5].tolist() == [0, 1, 2, 3, 4]


def test_exhaustive_search_refuses_long_queues():
    jobs = prepare(draw_problem(2, waiting=9))
    with pytest.raises(ValueError, match="got 9"):
        best_order(Evaluator(jobs, Objective(), 9), 9)
