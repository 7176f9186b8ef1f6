"""The annealing: its moves, what it may accept, and what it finds."""

from __future__ import annotations

from itertools import permutations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rollout_cases import cases, draw_case

from lengthwise.scheduler.plan import search as s

ORDER = np.array([s.SWAP, s.INSERT, s.BLOCK])
ALL = np.array([s.SWAP, s.INSERT, s.BLOCK, s.BATCH, s.PREFILL, s.SLOT])
BUSY = {
    "running": 4, "recovering": 1, "waiting": 12, "coming": 6, "slots": 4, "kv_tokens": 900,
    "batched_tokens": 130, "speed": 1.0, "max_running": 1e9, "max_prefill": 1e9, "prefixes": 1,
    "skip_late": False, "ahead_s": 3.0,
}  # fmt: skip


def start_of(case):
    """A start as the policy makes one: nobody gives up a slot, limits within the engine's."""
    engine = case.engine
    limits = s.no_limits(engine)
    return s.Parts(case.order.copy(), np.zeros(case.running, dtype=np.int64), limits)


def copied(parts):
    return s.Parts(*(array.copy() for array in parts))


def search(case, steps, *, seed=0, kinds=ALL, first=0, head=64, temperatures=None):
    """(start's value, current, best, values) of one search."""
    picture, current = case.picture(), start_of(case)
    begun = s.value_of(picture, current, case.skip_late)
    best, trial, values = copied(current), copied(current), np.array([begun, begun])
    queued = len(current.order) - first
    losing = np.arange(case.running)
    if temperatures is None:
        temperatures = s.temperatures(0.0, 1.0, steps)
    s.anneal(
        picture, current, trial, best, values, case.skip_late, first, min(head, queued), queued,
        kinds, losing, temperatures, np.random.default_rng(seed).random((steps, s.UNIFORMS)),
    )  # fmt: skip
    # what is proposed next is a move away from what was accepted last
    assert all((a == b).all() for a, b in zip(trial, current, strict=True))
    return begun, current, best, values


def check_parts(case, parts):
    engine = case.engine
    assert sorted(parts.order) == sorted(case.order)
    assert set(parts.given_up.tolist()) <= {0, 1}
    assert 1.0 <= parts.limits[s.MAX_RUNNING] <= engine.slots
    least = min(s.LEAST_PREFILL_LIMIT, engine.batched_tokens)
    assert least <= parts.limits[s.MAX_PREFILL] <= engine.batched_tokens
    assert 1.0 <= parts.limits[s.PREFILL_PERIOD] <= s.LONGEST_PERIOD


@given(case=cases, seed=st.integers(0, 100))
def test_never_worth_less_than_the_start_and_still_a_plan(case, seed):
    begun, current, best, values = search(case, 60, seed=seed)
    assert values[1] >= begun
    assert values[1] >= values[0]
    for parts, value in ((current, values[0]), (best, values[1])):
        check_parts(case, parts)
        assert s.value_of(case.picture(), parts, case.skip_late) == value


@given(case=cases, kind=st.integers(0, 6), seed=st.integers(0, 1000))
def test_each_move_leaves_a_plan_and_says_whether_it_moved(case, kind, seed):
    parts, picture = start_of(case), case.picture()
    before, rng = copied(parts), np.random.default_rng(seed)
    queued, losing = len(parts.order), np.arange(case.running)
    for _ in range(8):
        first = int(rng.integers(0, queued + 1))
        head, reach = min(4, queued - first), queued - first
        moved = s.move(picture, parts, kind, rng.random(s.UNIFORMS), first, head, reach, losing)
        check_parts(case, parts)
        assert parts.order[:first].tolist() == before.order[:first].tolist()
        same = all((a == b).all() for a, b in zip(parts, before, strict=True))
        assert moved or same
        if kind <= s.BLOCK:
            assert moved != same
            assert (parts.limits == before.limits).all()
        elif kind == s.SLOT:
            assert moved == (case.running > 0)
            assert np.abs(parts.given_up - before.given_up).sum() == moved
        before = copied(parts)


def test_the_limits_reach_both_their_ends_and_lift_again():
    case = draw_case(1, **BUSY)
    parts, picture, rng = start_of(case), case.picture(), np.random.default_rng(0)
    seen = {s.MAX_RUNNING: set(), s.MAX_PREFILL: set(), s.PREFILL_PERIOD: set()}
    for _ in range(400):
        for kind in (s.BATCH, s.PREFILL, s.PERIOD):
            s.move(picture, parts, kind, rng.random(s.UNIFORMS), 0, 1, 1, np.arange(0))
        for limit, values in seen.items():
            values.add(parts.limits[limit])
    engine = case.engine
    assert seen[s.MAX_RUNNING] == {1.0, 2.0, 3.0, 4.0}
    assert min(seen[s.MAX_PREFILL]) == s.LEAST_PREFILL_LIMIT
    assert max(seen[s.MAX_PREFILL]) == engine.batched_tokens
    assert {1.0, 2.0, s.LONGEST_PERIOD} <= seen[s.PREFILL_PERIOD]


def test_same_uniforms_same_plan():
    case = draw_case(2, **BUSY)
    runs = [search(case, 200, seed=5) for _ in range(2)]
    for a, b in zip(runs[0][2], runs[1][2], strict=True):
        assert (a == b).all()
    assert (runs[0][3] == runs[1][3]).all()


@given(case=cases)
def test_without_temperature_only_what_is_no_worse_is_accepted(case):
    value = search(case, 0)[0]
    for steps in range(0, 40, 5):
        now = search(case, steps, temperatures=np.zeros(steps))[3]
        assert now[0] >= value
        assert now[0] == now[1]
        value = now[0]


def test_heat_accepts_what_is_worse_and_the_best_is_kept():
    case = draw_case(3, **BUSY)
    _, _, _, values = search(case, 200, temperatures=np.full(200, 1e6))
    assert values[0] < values[1]


@pytest.mark.parametrize("seed", range(8))
def test_finds_the_best_order_of_short_queues(seed):
    few = {"waiting": 3 + seed % 4, "coming": 0, "recovering": 0, "slots": 2, "running": 2}
    case = draw_case(seed, **BUSY | few)
    parts, picture = start_of(case), case.picture()
    best = max(
        s.value_of(picture, parts._replace(order=np.array(order)), case.skip_late)
        for order in permutations(case.order.tolist())
    )
    found = max(search(case, 800, seed=luck, kinds=ORDER)[3][1] for luck in range(3))
    assert found == pytest.approx(best, rel=1e-12, abs=1e-12)


def test_the_head_that_is_kept_stays():
    case = draw_case(4, **BUSY)
    _, current, best, _ = search(case, 300, first=5, temperatures=np.full(300, 10.0))
    for parts in (current, best):
        assert parts.order[:5].tolist() == case.order[:5].tolist()
    assert current.order.tolist() != case.order.tolist()


def test_only_the_losing_lose_their_slots():
    case = draw_case(5, **BUSY)
    picture, current = case.picture(), start_of(case)
    best, trial = copied(current), copied(current)
    s.anneal(
        picture, current, trial, best, np.zeros(2), False, 0, 1, 1, np.array([s.SLOT]),
        np.array([2]), np.full(51, 1e9), np.random.default_rng(0).random((51, s.UNIFORMS)),
    )  # fmt: skip
    assert current.given_up[[0, 1, 3]].sum() == 0


@given(case=cases, done=st.floats(0.0, 1.0), steps=st.integers(0, 50))
def test_temperatures_fall_and_join(case, done, steps):
    cooled = s.temperatures(done, 1.0, steps)
    assert len(cooled) == steps
    assert (np.diff(cooled) <= 0).all()
    if steps:
        assert cooled[0] == pytest.approx(s.FIRST_TEMPERATURE * s.COOLING**done)


def test_more_steps_find_more():
    """What the search brings grows with its steps, on the mean of drawn pictures."""
    gains = []
    for steps in (8, 400):
        found = [search(draw_case(seed, **BUSY), steps, seed=seed) for seed in range(12)]
        gains.append(np.mean([values[1] - begun for begun, _, _, values in found]))
    assert gains[1] > gains[0] > 0
