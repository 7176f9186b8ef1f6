"""The scheduler class on vLLM's own bookkeeping, without an engine."""

from __future__ import annotations

import time
from types import SimpleNamespace

import numpy as np
import pytest
from engineless import make_request
from toy_engine import QUANTILES, scaled

from lengthwise.data.request_log import read_request_log
from lengthwise.scheduler.problem import Plan
from lengthwise.scheduler.vllm_adapter.engine.scheduler import _accepted


def test_the_plan_decides_who_is_admitted_next(engine):
    fake = engine(max_num_seqs=1)
    for name, factor in (("long", 50), ("middle", 5), ("short", 1)):
        fake.add(make_request(name, pred_quantiles=scaled(factor)))
    fake.run()
    assert fake.admitted == ["short", "middle", "long"]


@pytest.mark.parametrize("ahead", [1, 2])
def test_nothing_is_lost_under_preemption(engine, ahead):
    """12 blocks hold 192 tokens; four answers of 90 tokens want 4 x 98."""
    fake = engine(blocks=13, ahead=ahead)
    for i in range(10):
        fake.add(make_request(f"r{i}", pred_quantiles=QUANTILES), output_tokens=90)
    fake.run()
    assert fake.preemptions > 0
    assert set(fake.finished) == {f"r{i}" for i in range(10)}
    assert set(fake.tokens.values()) == {90}
    status = fake.scheduler.lengthwise_status()
    assert status["tracked"] == 0
    assert status["queue"]["waiting"] == 0
    assert status["outcomes"]["default"]["finished"] == 10
    assert status["plan"]["fallbacks"] == {}


class Yielding:
    """Whoever's deadline has passed gives up its slot and stands last."""

    name = "yielding"

    def __call__(self, problem):
        waiting, running = problem.waiting, problem.running
        late = waiting.arrival_s + waiting.e2e_s < problem.now_s
        lost = running.arrival_s + running.e2e_s < problem.now_s
        return Plan(np.argsort(late, kind="stable"), preempt=np.flatnonzero(lost))


@pytest.mark.parametrize("ahead", [1, 2])
def test_slots_that_a_plan_takes_back_lose_no_token(engine, ahead):
    """Four long answers were to end within 100 ms; what comes later has time."""
    fake = engine(ahead=ahead)
    fake.scheduler.core.planner.policy = Yielding()
    for i in range(4):
        fake.add(make_request(f"late{i}", pred_quantiles=scaled(40), slo_e2e_ms=100), 400)
    fake.step()
    time.sleep(0.15)
    for i in range(6):
        fake.add(make_request(f"quick{i}", pred_quantiles=QUANTILES, slo_e2e_ms=600_000), 20)
    fake.run()
    status = fake.scheduler.lengthwise_status()
    assert status["queue"]["yields"] >= 4
    assert status["plan"]["fallbacks"] == {}
    assert {fake.tokens[f"late{i}"] for i in range(4)} == {400}
    assert {fake.tokens[f"quick{i}"] for i in range(6)} == {20}
    assert all(name.startswith("quick") for name in list(fake.finished)[:6])


def test_where_vllm_cannot_drop_what_is_in_flight_no_slot_is_taken(engine):
    fake = engine()
    fake.scheduler.core.planner.policy = Yielding()
    fake.scheduler.core.may_yield = False
    for i in range(4):
        fake.add(make_request(f"late{i}", pred_quantiles=scaled(40), slo_e2e_ms=50), 60)
    fake.step()
    time.sleep(0.06)
    for i in range(6):
        fake.add(make_request(f"quick{i}", pred_quantiles=QUANTILES, slo_e2e_ms=3000), 20)
    fake.run()
    assert fake.scheduler.lengthwise_status()["queue"]["yields"] == 0
    assert len(fake.finished) == 10


def test_a_pooling_request_has_no_sampling_parameters(engine):
    request = make_request("pooling")
    request.sampling_params = None
    scheduler = engine().scheduler
    scheduler.add_request(request)
    tracked = scheduler.core.table.get("pooling")
    assert tracked.slo.is_best_effort
    assert tracked.length_source == "prior"


def test_outcomes_reach_the_request_log(engine, tmp_path, predictor_dir):
    fake = engine(request_log=str(tmp_path / "log"), predictor_dir=str(predictor_dir))
    fake.add(
        make_request(
            "met", slo_e2e_ms=60_000, slo_class="code", pred_quantiles=QUANTILES,
            pred_version="v9", tenant="t1", lw_text_id="t-0",
        ),
        output_tokens=5,
    )  # fmt: skip
    fake.add(make_request("late", slo_ttft_ms=1, arrival_time=time.time() - 5))
    fake.add(make_request("capped", max_tokens=3), output_tokens=50)
    fake.add(make_request("aborted", slo_e2e_ms=1000), output_tokens=500)
    for _ in range(8):
        fake.step()
    fake.abort("aborted")
    fake.run()
    fake.scheduler.core.outcomes.close()
    rows = read_request_log(tmp_path / "log").set_index("request_id")
    assert rows["status"].to_dict() == {
        "met": "finished", "late": "finished", "capped": "length", "aborted": "aborted",
    }  # fmt: skip
    met = rows.loc["met"]
    assert met["met"] == True  # noqa: E712 (numpy and Python booleans)
    assert (met["output_tokens"], met["slo_class"], met["predictor"]) == (5, "code", "v9")
    assert (met["predicted_tokens"], met["tenant"], met["text_id"]) == (20.0, "t1", "t-0")
    assert 0 <= met["ttft_s"] <= met["e2e_s"]
    assert rows.loc["late"]["met"] == False  # noqa: E712
    assert rows.loc["late"]["ttft_s"] >= 5
    assert rows.loc["capped"]["output_tokens"] == 3


def test_steps_are_timed_with_what_they_did(engine):
    fake = engine()
    fake.add(make_request("a", prompt_tokens=20), output_tokens=6)
    fake.run()
    samples = fake.scheduler.core.timer.samples()
    assert samples[0, :3].tolist() == [20, 0, 0]
    assert (samples[1:, 0] == 0).all()
    assert (samples[1:, 1] == 1).all()
    assert samples[1:, 2].tolist() == [21, 22, 23, 24, 25]
    assert (samples[:, 3] > 0).all()


def test_accepted_drafts_are_counted(engine):
    """Two of three sequences had drafts: one token and three came of them."""
    fake = engine()
    output = SimpleNamespace(
        req_id_to_index={"a": 0, "b": 1, "c": 2}, sampled_token_ids=[[7], [7, 7, 7], [7]]
    )
    assert _accepted({"a": [-1, -1], "b": [-1, -1], "gone": [-1]}, output) == (4, 2)
    assert fake.scheduler.lengthwise_status()["step_time"]["tokens_per_step"] == 1.0


def test_a_length_bounded_from_below_is_not_planned_shorter(engine):
    fake = engine()
    fake.add(make_request("long", max_tokens=400, min_tokens=300, pred_quantiles=QUANTILES))
    fake.add(make_request("free", max_tokens=40, pred_quantiles=QUANTILES))
    table = fake.scheduler.core.table
    assert table.get("long").quantiles.tolist() == [300.0] * len(QUANTILES)
    assert table.get("free").quantiles.max() == 40


@pytest.mark.parametrize("ahead", [1, 2])
def test_planned_in_a_thread_everything_is_served_whole(engine, ahead):
    fake = engine(policy="sa", plan_in_thread=True, blocks=60, ahead=ahead)
    for i in range(40):
        fake.add(
            make_request(f"r{i}", slo_e2e_ms=200 + 100 * (i % 9), pred_quantiles=scaled(1 + i % 3)),
            output_tokens=3 + i,
        )
    fake.run()
    assert {fake.tokens[f"r{i}"] for i in range(40)} == set(range(3, 43))
    status = fake.scheduler.lengthwise_status()
    assert status["plan"]["fallbacks"] == {}
    assert status["tracked"] == 0


@pytest.mark.parametrize(
    ("part", "method"),
    [
        ("intake", "track"),
        ("planner", "plan_now"),
        ("timer", "end"),
        ("refit", "poll"),
        ("outcomes", "record"),
        ("table", "arrays"),
    ],
)
def test_a_fault_in_anything_we_add_is_counted_and_serving_goes_on(engine, part, method):
    def broken(*args, **kwargs):
        raise RuntimeError("broken")

    fake = engine(max_num_seqs=2)
    setattr(getattr(fake.scheduler.core, part), method, broken)
    for i in range(6):
        fake.add(make_request(f"r{i}"), output_tokens=3)
    fake.run()
    assert len(fake.finished) == 6
    assert set(fake.tokens.values()) == {3}
    assert sum(fake.scheduler.lengthwise_status()["plan"]["fallbacks"].values()) > 0
    assert len(fake.scheduler.waiting) == 0
