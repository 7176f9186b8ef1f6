"""Estimates from answers' openings in the engine: put in place once, of those that still run."""

from __future__ import annotations

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st
from toy_engine import QUANTILES, make_request, planning_toy, reestimated, scaled

from lengthwise.data.request_log import read_request_log
from lengthwise.scheduler.serving.wire.reestimate import Reestimate


@pytest.fixture
def engine():
    return planning_toy


def told(name, factor=1, **xargs):
    said = {"pred_quantiles": scaled(factor), "pred_version": "v1"}
    return make_request(name, slo_class="chat", **said | xargs)


def started(fake, name, steps=1, **xargs):
    fake.add(told(name, **xargs), output_tokens=60)
    for _ in range(steps):
        fake.step()


def test_the_plan_goes_by_the_opening_and_the_log_by_the_prompt(engine, tmp_path):
    fake = engine(request_log=str(tmp_path))
    started(fake, "r", steps=16)
    assert reestimated(fake, ["r", scaled(3), "v1", 16]) == {"opened": 1}
    table = fake.core.table
    running = table.arrays(table.rows(["r"]))
    assert running.quantiles[0].tolist() == pytest.approx(scaled(3))
    assert table.get("r").predicted.tolist() == QUANTILES
    fake.run()
    fake.core.close()
    log = read_request_log(tmp_path).set_index("request_id")
    assert log.loc["r", "predicted_tokens"] == 20.0


def test_a_plan_made_after_it_sees_what_is_left_by_it(engine):
    fake = engine(slots=1)
    started(fake, "r", steps=16)
    reestimated(fake, ["r", scaled(3), "v1", 16])
    fake.add(told("waits"), output_tokens=2)
    seen = fake.core.snapshots.take(fake.running_now(), time.monotonic()).build()
    assert seen.problem.running.quantiles[0].tolist() == pytest.approx(scaled(3))
    assert seen.problem.running.generated_tokens.tolist() == [16.0]


def test_an_opening_is_no_reason_to_plan(engine):
    fake = engine()
    started(fake, "r")
    changed = []
    fake.core.planner.changed = lambda: changed.append(1)
    reestimated(fake, ["r", scaled(3), "v1", 16])
    assert changed == []


def test_each_is_applied_once_and_the_one_that_saw_most_stays(engine):
    fake = engine()
    started(fake, "r")
    assert reestimated(fake, ["r", scaled(2), "v1", 16], ["r", scaled(3), "v1", 16]) == {
        "opened": 1, "stale": 1,
    }  # fmt: skip
    assert fake.core.table.get("r").quantiles[5] == pytest.approx(40.0)
    reestimated(fake, ["r", scaled(4), "v1", 48], ["r", scaled(5), "v1", 16])
    assert fake.core.table.get("r").quantiles[5] == pytest.approx(80.0)
    assert fake.status()["reestimates"] == {"opened": 2, "stale": 2}


def test_a_reader_that_comes_after_the_opening_is_too_late(engine):
    fake = engine()
    started(fake, "r", lw_reestimate="k")
    reestimated(fake, ["r", scaled(2), "v1", 16])
    assert reestimated(fake, ["k", scaled(7), "v1"]) == {"opened": 1, "stale": 1}
    assert fake.core.table.get("r").quantiles[5] == pytest.approx(40.0)


def test_samples_of_one_prompt_are_told_apart(engine):
    fake = engine()
    for name in ("0_r", "1_r"):
        started(fake, name)
    reestimated(fake, ["1_r", scaled(2), "v1", 16])
    medians = [fake.core.table.get(name).quantiles[5] for name in ("0_r", "1_r")]
    assert medians == pytest.approx([20.0, 40.0])


def test_answers_that_have_ended_or_never_were_are_counted_and_leave_no_trace(engine):
    fake = engine()
    fake.add(told("r"), output_tokens=2)
    fake.step()
    reestimated(fake, ["r", scaled(2), "v1", 16])
    fake.run()
    assert reestimated(fake, ["r", scaled(3), "v1", 48], ["never", scaled(3), "v1", 16]) == {
        "opened": 1, "gone": 2,
    }  # fmt: skip
    assert fake.core.reestimates._seen_tokens == {}
    fake.add(told("r"), output_tokens=2)  # the same name again: another answer
    assert fake.core.table.get("r").quantiles[5] < 21.0
    assert reestimated(fake, ["r", scaled(2), "v1", 16])["opened"] == 2


@pytest.mark.parametrize(
    "wrong",
    [
        ["r", scaled(2), "v1", 0], ["r", scaled(2), "v1", -16], ["r", scaled(2), "v1", "16"],
        ["r", scaled(2), "v1", True], ["r", scaled(2), "v1", 16.0], ["r", scaled(2), "v1", None],
        ["r", scaled(2), "v1", 16, 1], ["r", scaled(2)[::-1], "v1", 16], ["r", [1.0], "v1", 16],
    ],
)  # fmt: skip
def test_what_is_malformed_is_counted_and_changes_nothing(engine, wrong):
    fake = engine()
    started(fake, "r")
    assert reestimated(fake, wrong) == {"malformed": 1}
    assert fake.core.table.get("r").quantiles.tolist() == pytest.approx(QUANTILES)


@pytest.mark.parametrize(
    ("xargs", "settings", "version"),
    [
        ({"pred_version": "osl"}, {}, "osl"),
        ({}, {}, "v2"),  # the predictor was replaced meanwhile
        ({}, {"lengths": "oracle"}, "v1"),
        ({"pred_quantiles": None}, {}, "v1"),  # no prediction was known to go by
    ],
)
def test_lengths_that_no_predictor_has_said_stay(engine, xargs, settings, version):
    fake = engine(**settings)
    started(fake, "r", **xargs)
    before = fake.core.table.get("r").quantiles.tolist()
    assert reestimated(fake, ["r", scaled(2), version, 16]) == {"unwanted": 1}
    assert fake.core.table.get("r").quantiles.tolist() == before


def test_it_is_cut_to_what_the_request_allows(engine):
    fake = engine()
    fake.add(told("r"), output_tokens=60)
    fake.core.table.get("r").max_tokens = 50
    reestimated(fake, ["r", scaled(3), "v1", 16])
    assert fake.core.table.get("r").quantiles.max() == 50.0


rows = st.lists(st.floats(1.0, 1e6), min_size=4, max_size=4).map(lambda row: tuple(sorted(row)))


@given(st.text(), rows, st.none() | st.text(), st.integers(0, 10**6))
def test_an_estimate_reads_back_as_it_was_said(key, quantiles, version, tokens):
    said = Reestimate(key, quantiles, version, tokens)
    assert Reestimate.from_wire(said.to_wire(), 4) == said
