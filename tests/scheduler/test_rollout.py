"""The compiled rollout and its value against their plain twins, and what both must keep."""

from __future__ import annotations

from dataclasses import replace

import naive
import numpy as np
import pytest
from hypothesis import example, given, settings
from rollout_cases import BEGIN_S, OBJECTIVE, cases, draw_case

from lengthwise.scheduler.plan.rollout import rollout_state as rs
from lengthwise.scheduler.plan.value import worth
from lengthwise.scheduler.policies.candidate_starts import Start
from lengthwise.scheduler.policies.promises import tokens_by

STATES = {
    rs.WAITING: "waiting",
    rs.PREFILLING: "prefilling",
    rs.DECODING: "decoding",
    rs.DONE: "done",
    rs.FRONT: "front",
    rs.TAIL: "waiting",  # the twin knows no other name for the line's end
}


def plainly(case):
    return naive.Play(
        case.engine, case.rows, case.running, case.recovering, case.expected, case.order.tolist(),
        case.given_up.astype(bool).tolist(), case.max_running, case.max_prefill, case.skip_late,
        case.begin_s, case.period, case.rested,
    ).until(case.until_s)  # fmt: skip


def same(found, wanted):
    assert list(found) == pytest.approx(list(wanted), rel=1e-9, abs=1e-9, nan_ok=True)


PLAIN = {
    "running": 3, "recovering": 1, "waiting": 6, "coming": 4, "slots": 6, "kv_tokens": 50_000,
    "batched_tokens": 130, "speed": 1.0, "max_running": 1e9, "max_prefill": 1e9, "prefixes": 0,
    "skip_late": False, "ahead_s": 100.0,
}  # fmt: skip


@settings(max_examples=600)
@given(case=cases)
@example(case=draw_case(1, **PLAIN))
@example(case=draw_case(2, **PLAIN | {"kv_tokens": 180}))
@example(case=draw_case(3, **PLAIN | {"prefixes": 2, "speed": 2.5}))
@example(case=draw_case(4, **PLAIN | {"period": 7.0, "rested": 2.0}))
def test_the_compiled_rollout_equals_its_plain_twin(case):
    w, play = case.played(), plainly(case)
    for i, request in enumerate(play.requests):
        recovers = case.running <= i < case.running + case.recovering
        if STATES[w.phase[i]] == "front" and recovers and request.state == "waiting":
            request.state = "front"
        assert STATES[w.phase[i]] == request.state, i
    same(w.first_s, [request.first_s for request in play.requests])
    same(w.finish_s, [request.finish_s for request in play.requests])
    assert w.end[rs.END_PREEMPTIONS] == play.preemptions
    assert w.end[rs.END_RUNNING] == len(play.running)
    assert w.end[rs.END_STEPS] == play.steps
    same(w.end[[rs.END_S, rs.END_RECOMPUTED]], [play.now_s, play.recomputed])
    took_s = [end_s - begun_s for begun_s, end_s in play.step_ends]
    last = [float(np.mean(took_s[-together:])) for together in range(1, len(took_s) + 1)]
    assert pytest.approx(w.end[rs.END_STEP_S], rel=1e-9) in (last or [0.0])


@settings(max_examples=200)
@given(case=cases)
@example(case=draw_case(4, **PLAIN | {"period": 7.0, "rested": 2.0}))
def test_the_tokens_expected_by_a_time_are_the_steps_until_then(case):
    start = Start("drawn", case.order, case.skip_late, case.parts().limits, 0, True)
    for steps, (begun_s, end_s) in list(enumerate(plainly(case).step_ends, start=1))[:40]:
        for share in (0.1, 0.5, 0.9):
            by_s = begun_s + share * (end_s - begun_s)
            tokens = tokens_by(case.picture(), case.parts(), start, by_s)
            # steps taken at once count as equally long
            assert tokens == pytest.approx(case.engine.tokens_per_step * (steps - 1 + share), 0.05)


@settings(max_examples=300)
@given(case=cases)
def test_its_value_equals_the_plain_twins(case):
    w, play = case.played(), plainly(case)
    chance = np.zeros(len(case.rows.need))
    value = worth(
        case.engine, case.rows, case.running, case.recovering, case.order, case.given_up,
        case.begin_s, case.until_s, OBJECTIVE, w, chance,
    )  # fmt: skip
    wanted, chances = naive.worth(play, case.begin_s, case.until_s, OBJECTIVE)
    same(chance, chances)
    assert value == pytest.approx(wanted, rel=1e-9, abs=1e-9)


@given(case=cases)
def test_everyone_is_served_once_and_in_time_order(case):
    case = replace(case, until_s=BEGIN_S + 1e4)
    w, rows = case.played(), case.rows
    assert (w.phase == rs.DONE).all()
    assert (w.finish_s >= w.first_s).all()
    fresh = np.isnan(rows.first_s)
    assert (w.first_s[fresh] > np.maximum(rows.arrival_s[fresh], 0.0)).all()
    assert w.end[rs.END_RUNNING] == 0


def test_one_slot_serves_in_the_plans_order():
    case = draw_case(4, **PLAIN | {"running": 0, "recovering": 0, "coming": 0, "slots": 1})
    w = case.played()
    assert (np.diff(w.first_s[case.order]) > 0).all()
    assert (w.first_s[case.order][1:] > w.finish_s[case.order][:-1]).all()


def test_less_memory_never_ends_sooner_and_preempts():
    wide = draw_case(5, **PLAIN | {"waiting": 14, "coming": 0})
    narrow = replace(wide, engine=wide.engine._replace(kv_tokens=260.0))
    ends = [case.played().end for case in (wide, narrow)]
    assert ends[0][rs.END_PREEMPTIONS] == 0
    assert ends[1][rs.END_PREEMPTIONS] > 0
    assert ends[1][rs.END_RECOMPUTED] > 0
    assert ends[1][rs.END_S] > ends[0][rs.END_S]


def test_a_shared_beginning_is_computed_once():
    alone = draw_case(6, **PLAIN | {"running": 0, "recovering": 0, "coming": 0, "prefixes": 1})
    alone = replace(alone, engine=alone.engine._replace(eager_s=0.0))
    nothing = np.zeros(len(alone.rows.need))
    apart = replace(alone, rows=alone.rows._replace(saved=nothing))
    assert alone.rows.saved.sum() > 0
    assert alone.played().end[rs.END_S] < apart.played().end[rs.END_S]


def test_those_skipped_as_late_come_last():
    case = draw_case(7, **PLAIN | {"running": 0, "recovering": 0, "coming": 0, "slots": 1})
    late = np.where(np.arange(6) == case.order[0], BEGIN_S - 1.0, np.inf)
    case = replace(case, rows=case.rows._replace(latest_s=late), skip_late=True)
    assert np.argmax(case.played().finish_s) == case.order[0]
