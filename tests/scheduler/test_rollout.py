import numpy as np
import pytest
from hypothesis import given
from planning_cases import draw_problem, problems

from lengthwise.scheduler.plan import kernels as k
from lengthwise.scheduler.plan.jobs import prepare
from lengthwise.scheduler.rollout import Job, rollout


def as_jobs(table):
    """The table's rows as the readable twin's jobs; slot steps already hold the chunks."""
    return [
        Job(row[k.PREFILL], row[k.CONTEXT], row[k.SLOT_STEPS] - row[k.CHUNKS] + 1) for row in table
    ]


@given(problem=problems)
def test_the_kernel_equals_the_readable_rollout(problem):
    jobs = prepare(problem)
    order = np.random.default_rng(1).permutation(len(jobs))
    running, waiting = rollout(
        problem.now_s,
        as_jobs(jobs.running),
        as_jobs(jobs.waiting),
        order.tolist(),
        problem.capacity,
        problem.step_time,
    )
    fast_running, fast_waiting = k.rollout(jobs.engine, jobs.running, jobs.waiting, order)
    for served, fast in ((running, fast_running), (waiting, fast_waiting)):
        slow = [(s.admitted_s, s.first_token_s, s.finish_s, s.step_s) for s in served]
        assert fast.ravel().tolist() == pytest.approx(np.array(slow).ravel().tolist(), rel=1e-9)


def test_one_slot_serves_one_after_the_other():
    problem = draw_problem(3, waiting=6, running=0, max_num_seqs=1)
    jobs = prepare(problem)
    order = np.array([4, 2, 0, 1, 3, 5])
    _, served = k.rollout(jobs.engine, jobs.running, jobs.waiting, order)
    admitted, finish = served[order, 0], served[order, 2]
    assert admitted[0] == problem.now_s
    assert admitted[1:] == pytest.approx(finish[:-1])


def test_kv_bounds_admission():
    narrow = draw_problem(4, waiting=12, running=0, max_num_seqs=8, kv_tokens=700)
    wide = draw_problem(4, waiting=12, running=0, max_num_seqs=8, kv_tokens=20_000)
    order = np.arange(12)
    starts = [
        k.rollout(j.engine, j.running, j.waiting, order)[1][:, 0].max()
        for j in (prepare(narrow), prepare(wide))
    ]
    assert starts[0] > starts[1]
