"""Tenants in the adapter: names, numbers, tallies, and fair plans in the scheduler."""

from __future__ import annotations

import time

import numpy as np
import pytest
from engineless import FakeEngine, make_request
from hypothesis import given
from hypothesis import strategies as st
from toy_engine import QUANTILES

from lengthwise.data.errors import InputError
from lengthwise.data.request_log import read_request_log
from lengthwise.scheduler.serving.engine.engine_metrics import engine_metrics
from lengthwise.scheduler.serving.engine.plans.snapshots import Running
from lengthwise.scheduler.serving.engine.requests.tenants import (
    MOST_TENANTS,
    OTHER,
    TenantIds,
    TenantTallies,
)
from lengthwise.scheduler.serving.wire.tenant_name import parse_tenant


@pytest.mark.parametrize("name", ["a", "A-9_.:-", "x" * 64, "-", "0"])
def test_a_tenant_comes_from_the_header_or_the_body(name):
    assert parse_tenant({"tenant": name}, {}) == name
    assert parse_tenant({}, {"x-tenant": name}) == name


def test_the_header_wins_because_a_gateway_sets_it():
    assert parse_tenant({"tenant": "forged"}, {"x-tenant": "true"}) == "true"
    assert parse_tenant({}, {}) is None


@pytest.mark.parametrize("name", [None, "", "  "])
def test_a_tenant_of_nothing_is_none(name):
    assert parse_tenant({"tenant": name}, {}) is None


@pytest.mark.parametrize("name", ["x" * 65, "a b", "é", "a\n", 7, 1.5, ["a"], "a/b"])
def test_a_bad_name_is_refused(name):
    with pytest.raises(InputError, match="tenant must be 1-64"):
        parse_tenant({"tenant": name}, {})


@given(st.lists(st.tuples(st.booleans(), st.sampled_from(["a", "b", None])), max_size=60))
def test_numbers_are_as_many_as_tenants_at_once(steps):
    ids, alive = TenantIds({"a": 2.0}), {"a": [], "b": [], None: []}
    most = 0
    for arrives, name in steps:
        if arrives:
            alive[name].append(ids.acquire(name))
        elif alive[name]:
            alive[name].pop()
            ids.release(name)
        present = [set(numbers) for numbers in alive.values() if numbers]
        most = max(most, len(present))
        assert len(ids) == len(present)
        assert all(len(numbers) == 1 for numbers in present)
        assert len(set().union(*present)) == len(present)
        assert len(ids.weights()) <= most
        if alive["a"]:
            assert ids.weights()[alive["a"][0]] == 2.0


def test_tallies_are_bounded_and_know_who_got_what():
    tallies = TenantTallies(engine_metrics())
    for i in range(MOST_TENANTS + 5):
        tallies.note(f"t{i}", i % 2 == 0, 1.0, 0.0)
    tallies.note("t0", None, 1.0, 0.0)
    by_tenant = tallies.status(0.0)["by_tenant"]
    assert len(by_tenant) == MOST_TENANTS + 1
    assert by_tenant["t0"] == {"attained": 1, "missed": 0, "served_s": 2.0}
    assert by_tenant[OTHER]["attained"] + by_tenant[OTHER]["missed"] == 5
    tallies.reset()
    assert tallies.status(0.0) == {
        "jain_index": {"attainment": 1.0, "served": 1.0},
        "by_tenant": {},
    }


def test_the_index_is_of_recent_outcomes():
    tallies = TenantTallies(engine_metrics())
    for _ in range(9):
        tallies.note("a", True, 1.0, 0.0)
        tallies.note("b", False, 1.0, 0.0)
    assert tallies.jain(0.0) == pytest.approx({"attainment": 0.5, "served": 1.0})
    for _ in range(9):
        tallies.note("b", True, 1.0, 3000.0)
    assert tallies.jain(3000.0)["attainment"] == pytest.approx(1.0, abs=0.01)


def planning_at_every_step(fake):
    """A plan is not held back by how long the last one took, so a busy machine changes nothing."""
    fake.scheduler.core.planner.gate.planned = lambda now_s, elapsed_s: None
    return fake


def test_a_flood_of_one_tenant_leaves_the_other_its_turn(tiny_dir, tmp_path):
    """The victim's answer is longer than the flooder's, so by worth alone it would go later."""
    places = {}
    for fair in (True, False):
        log = tmp_path / str(fair)
        settings = {
            "policy": "sa", "plan_share": 1.0, "refit_steps": 0, "fair_tenants": fair,
            "request_log": str(log),
        }  # fmt: skip
        fake = planning_at_every_step(FakeEngine(tiny_dir, settings, max_num_seqs=1))
        quantiles = [20 * q for q in QUANTILES]
        for i in range(40):
            fake.add(
                make_request(f"f{i}", pred_quantiles=quantiles, slo_e2e_ms=3000, tenant="flood")
            )
        fake.step()
        longer = [1.5 * q for q in quantiles]
        fake.add(make_request("v", pred_quantiles=longer, slo_e2e_ms=3000, tenant="victim"))
        fake.run()
        assert len(fake.finished) == 41
        places[fair] = fake.admitted.index("v")
        status = fake.scheduler.lengthwise_status()
        assert status["plan"]["fallbacks"] == {}
        tenants = status["tenants"]
        assert (tenants["fair"], tenants["active"]) == (fair, 0)
        assert tenants["by_tenant"]["victim"]["attained"] == 1
        assert 0 < tenants["jain_index"]["served"] < 1
        fake.scheduler.shutdown()
        assert set(read_request_log(log)["tenant"]) == {"flood", "victim"}
    assert places[True] < 5
    assert places[True] < places[False]


@pytest.mark.parametrize("fair", [True, False])
def test_overdue_requests_of_a_flood_leave_turns_to_the_other_tenant(tiny_dir, fair):
    settings = {
        "policy": "feasible-edf", "plan_share": 1.0, "refit_steps": 0, "max_wait_s": 30.0,
        "fair_tenants": fair,
    }  # fmt: skip
    fake = planning_at_every_step(FakeEngine(tiny_dir, settings, max_num_seqs=1))
    now = time.time()
    for i in range(12):
        late = make_request(
            f"f{i}", arrival_time=now - 50 + i, pred_quantiles=QUANTILES, tenant="f"
        )
        fake.add(late)
    fake.step()
    fake.add(make_request("v", pred_quantiles=QUANTILES, slo_e2e_ms=60_000, tenant="v"))
    fake.run()
    overdue = [name for name in fake.admitted if name != "v"]
    assert overdue == [f"f{i}" for i in range(12)]
    assert fake.scheduler.lengthwise_status()["plan"]["fallbacks"] == {}
    place = fake.admitted.index("v")
    assert place < 4 if fair else place == 12


def test_weights_favour_a_tenant(tiny_dir):
    settings = {"tenant_weights": {"gold": 4.0}}
    scheduler = FakeEngine(tiny_dir, settings).scheduler
    for name in ("gold", "iron"):
        scheduler.add_request(make_request(name, pred_quantiles=QUANTILES, tenant=name))
    tenants = scheduler.core.snapshots.take(Running([], [], []), time.monotonic()).build().tenants
    assert tenants.weight[tenants.waiting].tolist() == [4.0, 1.0]
    assert len(np.unique(tenants.waiting)) == 2
