"""A better estimate takes the first one's place in the engine: order, log, and what is refused."""

from __future__ import annotations

from functools import partial

import pytest
from hypothesis import given
from hypothesis import strategies as st
from toy_engine import QUANTILES, make_request, planning_toy, reestimated, scaled

from lengthwise.data.request_log import read_request_log
from lengthwise.scheduler.serving.wire.reestimate import Reestimate


@pytest.fixture
def engine():
    return partial(planning_toy, slots=1)


def told(name, factor, key, **xargs):
    said = {"pred_quantiles": scaled(factor), "pred_version": "v1", "lw_reestimate": key}
    return make_request(name, slo_class="chat", **said | xargs)


def test_the_plan_follows_the_better_estimate(engine, tmp_path):
    fake = engine(request_log=str(tmp_path))
    fake.add(told("runs", 1, "k0"), output_tokens=6)
    fake.step()
    fake.add(told("seems short", 1, "k1"))
    fake.add(told("seems long", 5, "k2"))
    fake.step()
    assert reestimated(fake, ["k1", scaled(20), "v1"], ["k2", scaled(0.5), "v1"]) == {"replaced": 2}
    fake.run()
    assert fake.admitted == ["runs", "seems long", "seems short"]
    fake.core.close()
    log = read_request_log(tmp_path).set_index("request_id")
    assert log.loc["seems short", "predicted_tokens"] == 400.0


def test_one_that_came_before_its_request_waits_for_all_its_samples(engine):
    fake = engine(slots=4)
    assert reestimated(fake, ["k", scaled(3), "v1"]) == {"early": 1}
    for name in ("first", "second"):
        fake.add(told(name, 1, "k"))
        assert fake.core.table.get(name).quantiles[5] == pytest.approx(60.0)
    assert fake.status()["reestimates"] == {"early": 1, "replaced": 2}


def test_many_early_ones_are_not_kept(engine):
    fake = engine()
    for i in range(1500):
        fake.core.reestimated([[f"k{i}", scaled(2), "v1"]], 0.0)
    fake.add(told("old", 1, "k0"))
    fake.add(told("new", 1, "k1499"))
    table = fake.core.table
    medians = table.get("old").quantiles[5], table.get("new").quantiles[5]
    assert medians == pytest.approx((20.0, 40.0))


def test_it_is_cut_to_what_the_request_allows_and_corrected(engine):
    fake = engine()
    fake.add(told("r", 1, "k", pred_version=None))
    fake.core.table.get("r").max_tokens = 50
    reestimated(fake, ["k", scaled(3), None])
    tracked = fake.core.table.get("r")
    assert tracked.quantiles.max() == 50.0
    assert tracked.predicted[-1] == 150.0
    rows = fake.core.table.rows(["r"])
    assert fake.core.table.arrays(rows).quantiles[0].tolist() == tracked.quantiles.tolist()


@pytest.mark.parametrize(
    "wrong",
    [
        None, 7, [], ["k"], ["k", [1.0], "v1"], ["k", scaled(1)[::-1], "v1"],
        ["k", [float("nan")] * 12, "v1"], [7, scaled(2), "v1"], ["k", scaled(2), 7],
        ["k", ["x"] * 12, "v1"],
    ],
)  # fmt: skip
def test_what_is_malformed_is_counted_and_changes_nothing(engine, wrong):
    fake = engine()
    fake.add(told("r", 1, "k"))
    assert reestimated(fake, wrong) == {"malformed": 1}
    assert fake.core.table.get("r").quantiles.tolist() == pytest.approx(QUANTILES)


@pytest.mark.parametrize(
    ("xargs", "settings", "version"),
    [
        ({"pred_version": "osl"}, {}, "osl"),
        ({"pred_version": "fixed"}, {}, "fixed"),
        ({}, {}, "v2"),  # the predictor was replaced meanwhile
        ({}, {"lengths": "oracle"}, "v1"),
        ({}, {"lengths": "none"}, "v1"),
    ],
)
def test_lengths_that_no_predictor_is_to_say_stay(engine, xargs, settings, version):
    fake = engine(**settings)
    fake.add(told("r", 1, "k", **xargs))
    before = fake.core.table.get("r").quantiles.tolist()
    assert reestimated(fake, ["k", scaled(2), version]) == {"unwanted": 1}
    assert fake.core.table.get("r").quantiles.tolist() == before


def test_a_request_without_a_first_estimate_gets_this_one(engine):
    fake = engine()
    fake.add(make_request("r", slo_class="chat", lw_reestimate="k"))
    assert reestimated(fake, ["k", scaled(2), "v1"]) == {"replaced": 1}
    tracked = fake.core.table.get("r")
    assert (tracked.length_source, tracked.predictor) == ("learned", "v1")
    assert tracked.quantiles.tolist() == pytest.approx(scaled(2))


def test_ended_requests_leave_no_trace(engine):
    fake = engine(slots=4)
    for i in range(5):
        fake.add(told(f"r{i}", 1, f"k{i % 2}"))
    fake.run()
    assert fake.core.reestimates._by_key == {}
    assert reestimated(fake, ["k0", scaled(2), "v1"])["early"] == 1


def test_a_client_cannot_name_a_key(engine):
    fake = engine()
    forged = make_request("r")
    forged.xargs["lw_reestimate"] = "k"  # without this server's seal
    fake.add(forged)
    assert fake.core.table.get("r").reestimate_key is None


rows = st.lists(st.floats(1.0, 1e6), min_size=4, max_size=4).map(lambda row: tuple(sorted(row)))


@given(st.text(), rows, st.none() | st.text())
def test_an_estimate_reads_back_as_it_was_said(key, quantiles, version):
    said = Reestimate(key, quantiles, version)
    assert Reestimate.from_wire(said.to_wire(), 4) == said
