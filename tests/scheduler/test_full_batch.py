"""What a full batch costs: a step's seconds, each counted once."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rollout_cases import draw_rows

from lengthwise.scheduler.plan.rollout.decode_time import decode_s
from lengthwise.scheduler.plan.rollout.full_batch import (
    all_work_s,
    full_batch,
    token_cost_s,
    work_s,
)
from lengthwise.scheduler.plan.rollout.rollout_state import Engine

PROMPT, SHARED, LEFT, NEED = 600.0, 100.0, 500.0, 200.0


def engine_of(slots: float, kv_tokens: float, speed: float = 1.0, eager_s: float = 0.0) -> Engine:
    return Engine(
        0.02, 0.004, 1e-4, 2e-4, 1e-7, eager_s, 0.0, slots, kv_tokens, 8192.0, speed, np.ceil(speed)
    )


@given(
    slots=st.integers(1, 400),
    kv_tokens=st.integers(800, 400_000),
    speed=st.sampled_from([1.0, 2.5]),
    need=st.integers(1, 3000),
)
def test_a_full_batch_of_requests_alike_costs_its_steps(slots, kv_tokens, speed, need):
    engine = engine_of(float(slots), float(kv_tokens), speed)
    full = full_batch(engine, PROMPT, SHARED, LEFT, float(need), 10_000)
    context = PROMPT + need / 2.0
    step_s = decode_s(engine, 1.0, full.size, full.size * context)
    each_s = token_cost_s(full.costs, PROMPT, SHARED, float(need))
    if full.size > 1.0:
        assert full.size * each_s * speed == pytest.approx(step_s)


def test_where_memory_binds_the_fixed_part_falls_on_what_is_held():
    slots, memory = engine_of(20.0, 1e9), engine_of(1e9, 14_000.0)
    by_slots = full_batch(slots, PROMPT, SHARED, LEFT, NEED, 1000)
    by_memory = full_batch(memory, PROMPT, SHARED, LEFT, NEED, 1000)
    assert (by_slots.size, by_memory.size) == (20.0, 20.0)

    def dearer(full):
        more_s = token_cost_s(full.costs, 4 * PROMPT, SHARED, NEED)
        return more_s / token_cost_s(full.costs, PROMPT, SHARED, NEED)

    assert dearer(by_slots) < 1.2 < 2.0 < dearer(by_memory)


def test_what_others_hold_too_costs_no_memory():
    costs = full_batch(engine_of(1e9, 14_000.0), PROMPT, SHARED, LEFT, NEED, 1000).costs
    alone_s = token_cost_s(costs, 4 * PROMPT, 0.0, NEED)
    sharing_s = token_cost_s(costs, 4 * PROMPT, 3 * PROMPT, NEED)
    # only reading the context is dearer than for one of a quarter's length
    less_s = token_cost_s(costs, PROMPT, 0.0, NEED)
    assert sharing_s - less_s == pytest.approx(costs.context_token_s * 3 * PROMPT)
    assert alone_s > 2.0 * sharing_s


def test_prompts_pay_what_their_steps_take_longer_and_share_it_where_they_share_steps():
    rare = full_batch(engine_of(4.0, 1e9), PROMPT, 0.0, LEFT, 4000.0, 1000)
    assert rare.costs.prompt_s == pytest.approx(0.004, rel=0.01)
    often = full_batch(engine_of(400.0, 1e9), PROMPT, 0.0, LEFT, 10.0, 1000)  # 40 in each step
    assert often.costs.prompt_s == pytest.approx(0.004 / 40.0)
    eager = full_batch(engine_of(4.0, 1e9, eager_s=0.2), PROMPT, 0.0, LEFT, 4000.0, 1000)
    step_s = 0.02 + 4 * (2e-4 + 1e-7 * 2600)
    assert eager.costs.prompt_s == pytest.approx(0.2 - step_s - 1e-4 * LEFT, rel=0.01)


def test_a_row_costs_its_prompt_only_while_any_of_it_is_left():
    costs = full_batch(engine_of(20.0, 1e9), PROMPT, 0.0, LEFT, NEED, 1000).costs
    token_s = token_cost_s(costs, PROMPT, 0.0, NEED)
    assert work_s(costs, token_s, 0.0, NEED) == pytest.approx(token_s * NEED)
    more_s = work_s(costs, token_s, LEFT, NEED) - work_s(costs, token_s, 0.0, NEED)
    assert more_s == pytest.approx(costs.prompt_s + 1e-4 * LEFT)


@given(seed=st.integers(0, 1000))
def test_all_rows_cost_what_each_does(seed):
    rows = draw_rows(np.random.default_rng(seed), (2, 1, 5, 3), 2)[0]
    costs = full_batch(engine_of(20.0, 12_000.0), PROMPT, SHARED, LEFT, NEED, 1000).costs
    wanted = []
    for i in range(len(rows.need)):
        shared = rows.shared[i] + rows.saved[i]
        token_s = token_cost_s(costs, rows.target[i], shared, rows.need[i])
        wanted.append(work_s(costs, token_s, rows.left[i], rows.need[i]))
    assert all_work_s(costs, rows) == pytest.approx(np.array(wanted))
