"""Aborts that a stop string may have caused: booked as what the API process says they were."""

from __future__ import annotations

import pytest
from engineless import FakeEngine, make_request
from toy_engine import QUANTILES

from lengthwise.data.request_log import read_request_log
from lengthwise.scheduler.serving.engine.observed.unsure_ends import HELD_S
from lengthwise.scheduler.serving.wire.left_early import LeftEarly

STOPPED, GONE = LeftEarly("r", 3).to_wire(), LeftEarly("r").to_wire()


def aborted(tiny_dir, tmp_path, said=(), may_stop=True, **extra):
    """One that ran and was aborted, and what the engine was then told."""
    engine = FakeEngine(tiny_dir, {"request_log": str(tmp_path)})
    if may_stop:
        extra["lw_may_stop"] = True
    engine.add(make_request("r", slo_e2e_ms=60_000, pred_quantiles=QUANTILES, **extra), 100)
    for _ in range(6):
        engine.step()
    learned = []
    engine.scheduler.core.intake.note_length = lambda tracked, tokens, cut: learned.append(tokens)
    engine.abort("r")
    for one in said:
        engine.scheduler.answers.answer("lengthwise_left_early", [one])
    return engine, learned


def outcome(engine):
    return engine.scheduler.lengthwise_status()["outcomes"].get("default", {})


@pytest.mark.parametrize(
    ("said", "booked"),
    [
        ([STOPPED], {"stopped": 1, "met": 1}),
        ([STOPPED, STOPPED, GONE], {"stopped": 1, "met": 1}),
        ([GONE], {"aborted": 1}),
        ([GONE, STOPPED], {"aborted": 1}),
        ([["another", 3], STOPPED], {"stopped": 1, "met": 1}),
        ([LeftEarly("r", 0).to_wire()], {"stopped": 1, "met": 1}),
        ([None, [], ["r"], ["r", -1], ["r", True], ["r", 2.5], [7, 3], "r3", GONE],
         {"aborted": 1}),
    ],
)  # fmt: skip
def test_it_is_what_is_said_of_it_once(tiny_dir, tmp_path, said, booked):
    """Judged by its times; of lengths it tells what the client chose, which nobody learns from."""
    engine, learned = aborted(tiny_dir, tmp_path, said)
    assert outcome(engine) == booked
    engine.scheduler.core.close()
    (row,) = read_request_log(tmp_path).to_dict("records")
    assert row["status"] in booked
    assert learned == []


def test_nothing_is_booked_before_and_the_time_is_that_of_the_abort(tiny_dir, tmp_path):
    engine, _ = aborted(tiny_dir, tmp_path)
    core = engine.scheduler.core
    assert (outcome(engine), len(core.unsure_ends), len(core.table)) == ({}, 1, 0)
    (end,) = core.unsure_ends.told([STOPPED])
    core.unsure_ends.hold(end)
    core.conclude_overdue(end.now_s + HELD_S + 1)
    core.close()
    e2e_s = read_request_log(tmp_path).iloc[0]["e2e_s"]
    assert e2e_s == pytest.approx(end.now_s - end.tracked.arrival_s)


@pytest.mark.parametrize("how", ["late", "closed"])
def test_what_nobody_speaks_of_was_given_up(tiny_dir, tmp_path, how):
    engine, learned = aborted(tiny_dir, tmp_path)
    core = engine.scheduler.core
    (end,) = core.unsure_ends.overdue(float("inf"))
    core.unsure_ends.hold(end)
    core.conclude_overdue(end.now_s + HELD_S - 0.1)
    assert len(core.unsure_ends) == 1
    if how == "late":
        core.conclude_overdue(end.now_s + HELD_S + 0.1)
        assert outcome(engine) == {"aborted": 1}
    core.close()
    assert [row["status"] for row in read_request_log(tmp_path).to_dict("records")] == ["aborted"]
    assert learned == []


def test_without_a_word_that_one_will_come_an_abort_is_booked_at_once(tiny_dir, tmp_path):
    engine, _ = aborted(tiny_dir, tmp_path, may_stop=False)
    assert outcome(engine) == {"aborted": 1}
    engine.scheduler.answers.answer("lengthwise_left_early", [STOPPED])
    assert outcome(engine) == {"aborted": 1}


def test_samples_of_one_request_that_stop_strings_end_are_one_outcome(tiny_dir, tmp_path):
    engine = FakeEngine(tiny_dir, {"request_log": str(tmp_path)})
    for name in ("a", "b"):
        extra = {"lw_whole": "w", "lw_parts": 2, "lw_may_stop": True}
        engine.add(make_request(name, slo_e2e_ms=60_000, **extra), 100)
    for _ in range(4):
        engine.step()
    engine.abort("a")
    engine.scheduler.answers.answer("lengthwise_whole_ended", "w")
    engine.abort("b")
    assert outcome(engine) == {}
    engine.scheduler.answers.answer("lengthwise_left_early", [["a", 2], ["b", 3]])
    assert outcome(engine) == {"stopped": 1, "met": 1}
