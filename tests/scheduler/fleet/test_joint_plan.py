"""Late binding: who is held is in one line once, and the search never loses by its own measure."""

import numpy as np
import pytest
from fleet_cases import LEVELS, engine, request, router_named, state
from hypothesis import given, settings
from hypothesis import strategies as st

from lengthwise.scheduler.fleet import fleet_rows as fr
from lengthwise.scheduler.fleet.gain import BY_DEADLINE
from lengthwise.scheduler.fleet.joint_plan import UNIFORMS, line_value, plan_lines
from lengthwise.scheduler.fleet.knowledge import Knowledge
from lengthwise.scheduler.fleet.late_binding import CELL, LateRouter


def cell_of(m, n, seed, busy=2):
    """Instances with a few running, and ``n`` requests held."""
    rng = np.random.default_rng(seed)
    k = Knowledge(LEVELS, BY_DEADLINE)
    key = 0
    for i in range(m):
        k.add(f"i{i}", engine(slots=3, speed=float(rng.choice([0.5, 1.0]))), 0.0)
        there = [request(key + p, tokens=float(rng.integers(5, 80))) for p in range(busy)]
        k.observe(i, state(1.0, running=[r.key for r in there], generated=2.0), there)
        key += busy
    slots = []
    for _ in range(n):
        asked = request(key, 1.0, tokens=float(rng.integers(5, 80)), e2e_s=rng.uniform(0.5, 4.0))
        slots.append(k.meet(asked))
        key += 1
    k.make_room(busy + n)
    return k, np.array(slots, dtype=np.int64)


def plan_of(k, slots, m, steps, ahead_s=0.3, seed=0):
    uniforms = np.random.default_rng(seed).random((steps, UNIFORMS))
    return plan_lines(
        k.rows, k.known.columns, np.arange(m), slots, np.zeros((len(slots), m)), k.weighing(1.0),
        ahead_s, uniforms, k.scratch,
    )  # fmt: skip


@given(m=st.integers(1, 4), n=st.integers(1, 40), seed=st.integers(0, 50))
@settings(max_examples=25)
def test_lines_hold_everybody_once_and_the_search_never_loses(m, n, seed):
    k, slots = cell_of(m, n, seed)
    plan = plan_of(k, slots, m, steps=40, seed=seed)
    lines = [plan.lines.of[c, : plan.lines.size[c]] for c in range(m)]
    assert sorted(np.concatenate(lines).tolist()) == list(range(n))
    assert plan.value >= plan.start_value
    if m > 1 and n > 1:
        w = k.weighing(1.0)
        values = [
            line_value(
                k.rows, k.known.columns, c, c, slots, np.zeros((n, m)), plan.lines, w, w.horizon_s,
                k.scratch,
            )
            for c in range(m)
        ]  # fmt: skip
        assert sum(values) == pytest.approx(plan.value)
    for c in range(m):
        assert set(plan.sendable(c)) <= set(lines[c].tolist())
    assert (k.rows.counts[:m, fr.ALL] == 2).all()  # planning has sent nobody


def test_search_finds_what_a_bad_list_leaves():
    k, slots = cell_of(3, 24, 3)
    assert plan_of(k, slots, 3, steps=0).value == 0.0  # nothing to compare
    many = [plan_of(k, slots, 3, steps=120, seed=s) for s in range(5)]
    assert max(plan.value - plan.start_value for plan in many) > 0.0


def test_only_those_that_would_begin_soon_may_go():
    k, slots = cell_of(1, 12, 1)
    few = plan_of(k, slots, 1, steps=0, ahead_s=0.02).sendable(0)
    assert len(few) == 1  # three slots, two run
    assert len(plan_of(k, slots, 1, steps=0, ahead_s=60.0).sendable(0)) == 12


def late(m=2, **kwargs):
    router = LateRouter(LEVELS, policy="fcfs", rng=np.random.default_rng(0), **kwargs)
    for i in range(m):
        router.add(f"i{i}", engine(slots=2), 0.0)
    return router


def test_what_would_wait_is_held_and_goes_when_a_slot_is_free():
    router = late()
    for i in range(2):
        router.observe(i, state(1.0, sequence=0))
    sent = [d for key in range(10) for d in router.offer(request(key, 1.0, tokens=200.0), 1.0)]
    sent += router.release(1.1)
    assert len(sent) == 4  # two slots on each
    assert router.held == 6
    for decision in sent[:2]:
        router.completed(decision.key, 1.5)
    freed = router.release(1.5)
    assert len(freed) == 2
    assert {d.instance for d in freed} == {d.instance for d in sent[:2]}
    assert len({d.key for d in sent + freed}) == 6


def test_what_is_held_survives_a_death():
    router = late()
    for i in range(2):
        router.observe(i, state(1.0))
    sent = [d for key in range(10) for d in router.offer(request(key, 1.0, tokens=200.0), 1.0)]
    sent += router.release(1.1)
    lost = router.remove(0)
    assert set(lost) == {d.key for d in sent if d.instance == 0}
    rest = router.release(1.2)  # one instance is left: nothing to choose
    assert {d.instance for d in rest} == {1}
    assert {d.key for d in sent + rest} == set(range(10))
    assert router.held == 0


def test_a_client_that_leaves_while_it_is_held_is_forgotten():
    router = late()
    for i in range(2):
        router.observe(i, state(1.0))
    for key in range(10):
        router.offer(request(key, 1.0, tokens=200.0), 1.0)
    held = router.held_keys()
    router.completed(held[0], 1.0)
    router.completed(12345, 1.0)
    assert router.held_keys() == held[1:]
    assert held[0] not in router.knowledge.known


def test_too_old_a_picture_holds_nobody():
    router = late()
    for i in range(2):
        router.observe(i, state(1.0))
    sent = [d for key in range(10) for d in router.offer(request(key, 8.0, tokens=200.0), 8.0)]
    assert len(sent) == 10
    assert {d.rung for d in sent} == {"least-work"}


def test_more_than_a_cell_is_planned_cell_by_cell():
    router = late(m=CELL + 2)
    for i in range(CELL + 2):
        router.observe(i, state(1.0))
    sent = [d for key in range(50) for d in router.offer(request(key, 1.0, tokens=200.0), 1.0)]
    sent += router.release(1.1)
    counts = np.bincount([d.instance for d in sent], minlength=CELL + 2)
    assert counts.max() <= 2  # a slot each
    assert len(sent) + router.held == 50
    assert len(sent) >= 30


def test_who_has_waited_for_the_most_is_held_no_longer():
    router = late(max_wait_s=1.0)
    for i in range(2):
        router.observe(i, state(1.0))
    for key in range(8):
        router.offer(request(key, 1.0, tokens=400.0), 1.0)
    router.release(1.1)
    assert router.held == 4
    for i in range(2):
        router.observe(i, state(2.0, sequence=1))
    assert len(router.release(2.1)) == 4


def test_a_plan_that_fails_holds_nobody(monkeypatch, caplog):
    router = late()
    for i in range(2):
        router.observe(i, state(1.0))

    def broken(*args):
        raise ZeroDivisionError

    monkeypatch.setattr(router, "_plan", broken)
    assert [d.key for d in router.offer(request(1, 1.0), 1.0)] == [1]
    assert router.held == 0
    assert router.status(1.0)["errors"] == 1
    assert "joint plan failed" in caplog.text


def test_settings_are_checked():
    for wrong in ({"ahead_s": 0.0}, {"steps": -1}, {"max_wait_s": 0.0}):
        with pytest.raises(ValueError, match=f"need .*{next(iter(wrong))}"):
            late(**wrong)
    assert isinstance(router_named("gain-late-list"), LateRouter)
    assert router_named("gain-late-list").steps == 0
