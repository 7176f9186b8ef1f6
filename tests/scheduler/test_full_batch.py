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
    each_s = token_cost_s(full.costs, PROMPT, float(need))
    if full.size > 1.0:
        assert full.size * each_s * speed == pytest.approx(step_s)


def test_where_memory_binds_the_fixed_part_falls_on_what_is_held():
    slots, memory = engine_of(20.0, 1e9), engine_of(1e9, 12_000.0)
    by_slots = full_batch(slots, PROMPT, SHARED, LEFT, NEED, 1000)
    by_memory = full_batch(memory, PROMPT, SHARED, LEFT, NEED, 1000)
    assert (by_slots.size, by_memory.size) == (20.0, 20.0)

    def dearer(full):
        return token_cost_s(full.costs, 4 * PROMPT, NEED) / token_cost_s(full.costs, PROMPT, NEED)

    assert dearer(by_slots) < 1.2 < 2.0 < dearer(by_memory)


def test_shared_context_is_in_memory_once():
    engine = engine_of(1e9, 12_000.0)
    alone = full_batch(engine, PROMPT, 0.0, LEFT, NEED, 1000)
    sharing = full_batch(engine, PROMPT, SHARED, LEFT, NEED, 1000)
    assert (alone.size, sharing.size) == (pytest.approx(12_000 / 700), 20.0)


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
    token_s = token_cost_s(costs, PROMPT, NEED)
    assert work_s(costs, token_s, 0.0, NEED) == pytest.approx(token_s * NEED)
    more_s = work_s(costs, token_s, LEFT, NEED) - work_s(costs, token_s, 0.0, NEED)
    assert more_s == pytest.approx(costs.prompt_s + 1e-4 * LEFT)


@given(seed=st.integers(0, 1000))
def test_all_rows_cost_what_each_does(seed):
    rows = draw_rows(np.random.default_rng(seed), (2, 1, 5, 3), 2)[0]
    costs = full_batch(engine_of(20.0, 12_000.0), PROMPT, SHARED, LEFT, NEED, 1000).costs
    wanted = [
        work_s(costs, token_cost_s(costs, rows.target[i], rows.need[i]), rows.left[i], rows.need[i])
        for i in range(len(rows.need))
    ]
    assert all_work_s(costs, rows) == pytest.approx(np.array(wanted))
