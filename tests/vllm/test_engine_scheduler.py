"""The scheduler class on vLLM's own bookkeeping, without an engine."""

from __future__ import annotations

import time

import pytest
from engineless import FakeEngine, make_request
from prometheus_client import REGISTRY

from lengthwise.data.request_log import read_request_log

QUANTILES = [10.0, 12, 14, 16, 18, 20, 22, 24, 26, 30, 35, 50]


def scaled(factor):
    return [factor * q for q in QUANTILES]


@pytest.fixture
def engine(tiny_dir):
    def build(ahead=1, blocks=1000, max_num_seqs=4, **settings):
        defaults = {"policy": "sjf", "plan_share": 1.0, "refit_steps": 0}
        return FakeEngine(
            tiny_dir, defaults | settings, ahead=ahead, blocks=blocks, max_num_seqs=max_num_seqs
        )

    return build


def test_the_plan_decides_who_is_admitted_next(engine):
    fake = engine(max_num_seqs=1)
    for name, factor in (("long", 50), ("middle", 5), ("short", 1)):
        fake.add(make_request(name, pred_quantiles=scaled(factor)))
    fake.run()
    assert fake.admitted == ["short", "middle", "long"]


def test_without_a_plan_the_order_is_of_arrival(engine):
    fake = engine(max_num_seqs=1, policy="fcfs")
    for name, factor in (("long", 50), ("short", 1)):
        fake.add(make_request(name, pred_quantiles=scaled(factor)))
    fake.run()
    assert fake.admitted == ["long", "short"]


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


@pytest.mark.parametrize("ahead", [1, 2])
def test_slots_of_the_hopeless_go_to_those_that_can_be_met(engine, ahead):
    """Four long answers were to end within 300 ms; what comes later has three seconds."""
    fake = engine(policy="sa", policy_params={"calm": 0.0}, ahead=ahead)
    for i in range(4):
        fake.add(make_request(f"late{i}", pred_quantiles=scaled(40), slo_e2e_ms=300), 400)
    fake.step()
    time.sleep(0.35)
    for i in range(6):
        fake.add(make_request(f"quick{i}", pred_quantiles=QUANTILES, slo_e2e_ms=3000), 20)
    fake.run()
    status = fake.scheduler.lengthwise_status()
    assert status["queue"]["yields"] > 0
    assert status["plan"]["fallbacks"] == {}
    assert set(fake.finished) == {f"late{i}" for i in range(4)} | {f"quick{i}" for i in range(6)}
    assert {fake.tokens[f"late{i}"] for i in range(4)} == {400}
    assert {fake.tokens[f"quick{i}"] for i in range(6)} == {20}
    assert list(fake.finished)[-1].startswith("late")


def test_where_vllm_cannot_drop_what_is_in_flight_no_slot_is_taken(engine):
    fake = engine(policy="sa", policy_params={"calm": 0.0})
    fake.scheduler._may_yield = False
    for i in range(4):
        fake.add(make_request(f"late{i}", pred_quantiles=scaled(40), slo_e2e_ms=50), 60)
    fake.step()
    time.sleep(0.06)
    for i in range(6):
        fake.add(make_request(f"quick{i}", pred_quantiles=QUANTILES, slo_e2e_ms=3000), 20)
    fake.run()
    assert fake.scheduler.lengthwise_status()["queue"]["yields"] == 0
    assert len(fake.finished) == 10


class Unreasonable:
    name = "unreasonable"

    def __call__(self, problem):
        raise RuntimeError("no plan")


def test_a_raising_planner_means_arrival_order_and_a_count(engine):
    fake = engine(max_num_seqs=1)
    fake.scheduler._planner.policy = Unreasonable()
    for name, factor in (("long", 50), ("middle", 5), ("short", 1)):
        fake.add(make_request(name, pred_quantiles=scaled(factor)))
    fake.run()
    assert fake.admitted == ["long", "middle", "short"]
    assert len(fake.finished) == 3
    assert fake.scheduler.lengthwise_status()["plan"]["fallbacks"]["planner"] > 0


def test_finished_answers_correct_the_lengths_planned_with_but_not_the_log(engine, tmp_path):
    """The served model says four times as much as predicted."""
    fake = engine(max_num_seqs=8, request_log=str(tmp_path))
    for i in range(60):
        request = make_request(f"r{i}", pred_quantiles=QUANTILES, slo_class="chat")
        fake.add(request, output_tokens=80)
    fake.run()
    learned = fake.scheduler.lengthwise_status()["length_correction"]
    assert 2.5 < learned["chat"] < 4.0
    fake.add(make_request("next", pred_quantiles=QUANTILES, slo_class="chat"), output_tokens=80)
    fake.add(make_request("told", pred_quantiles=[20.0] * 12, pred_version="osl"))
    table = fake.scheduler._table
    assert table.get("next").quantiles[5] == pytest.approx(20 * learned["chat"])
    assert table.get("told").quantiles.tolist() == [20.0] * 12
    fake.run()
    fake.scheduler.shutdown()
    row = read_request_log(tmp_path).set_index("request_id").loc["next"]
    assert row["predicted_tokens"] == 20.0
    fake.scheduler.lengthwise_configure({"reset_stats": True})
    assert fake.scheduler.lengthwise_status()["length_correction"] == {}


def test_who_waited_too_long_goes_first_whatever_the_plan(engine):
    fake = engine(max_num_seqs=1, max_wait_s=30.0)
    fake.add(make_request("running", pred_quantiles=QUANTILES))
    fake.step()
    now = time.time()
    fake.add(make_request("overdue", arrival_time=now - 40, pred_quantiles=scaled(100)))
    fake.add(make_request("older", arrival_time=now - 50, pred_quantiles=scaled(90)))
    fake.add(make_request("short", pred_quantiles=QUANTILES))
    fake.scheduler._planner.policy = Unreasonable()  # the bound holds with no planner
    fake.run()
    assert fake.admitted == ["running", "older", "overdue", "short"]


MALFORMED = [
    {"pred_quantiles": "soon"},
    {"pred_quantiles": [1.0, 2.0]},
    {"pred_quantiles": [float("nan")] * 12},
    {"pred_quantiles": list(reversed(QUANTILES))},
    {"pred_quantiles": [0.0, *QUANTILES[1:]]},
    {"slo_ttft_ms": -1},
    {"slo_e2e_ms": "soon"},
    {"slo_class": 7},
    {"lw_features": 3, "tenant": 4, "lw_prompt": [1], "pred_version": {}},
]


@pytest.mark.parametrize("extra", MALFORMED)
def test_malformed_arguments_fall_back(engine, extra):
    fake = engine()
    fake.add(make_request("odd", **extra))
    fake.add(make_request("even", pred_quantiles=QUANTILES))
    fake.run()
    assert set(fake.finished) == {"odd", "even"}
    assert sum(fake.scheduler.lengthwise_status()["plan"]["fallbacks"].values()) > 0


def test_a_pooling_request_has_no_sampling_parameters(engine):
    from lengthwise.scheduler.vllm_adapter.engine.intake import Intake
    from lengthwise.scheduler.vllm_adapter.priors import generic_priors

    request = make_request("pooling")
    request.sampling_params = None
    scheduler = engine().scheduler
    intake = Intake(scheduler._settings.slos, generic_priors(), "learned", lambda *_: None)
    tracked = intake.track(request, now_s=5.0, unix_s=time.time())
    assert tracked.slo.is_best_effort
    assert tracked.length_source == "prior"


def test_outcomes_reach_the_request_log(engine, tmp_path, predictor_dir):
    fake = engine(request_log=str(tmp_path / "log"), predictor_dir=str(predictor_dir))
    fake.add(
        make_request(
            "met", slo_e2e_ms=60_000, slo_class="code", pred_quantiles=QUANTILES,
            pred_version="v9", tenant="t1", lw_prompt="hello",
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
    fake.scheduler._outcomes.close()
    rows = read_request_log(tmp_path / "log").set_index("request_id")
    assert rows["status"].to_dict() == {
        "met": "finished", "late": "finished", "capped": "length", "aborted": "aborted",
    }  # fmt: skip
    met = rows.loc["met"]
    assert met["met"] == True  # noqa: E712 (numpy and Python booleans)
    assert (met["output_tokens"], met["slo_class"], met["predictor"]) == (5, "code", "v9")
    assert (met["predicted_tokens"], met["tenant"], met["prompt"]) == (20.0, "t1", "hello")
    assert 0 <= met["ttft_s"] <= met["e2e_s"]
    assert rows.loc["late"]["met"] == False  # noqa: E712
    assert rows.loc["late"]["ttft_s"] >= 5
    assert rows.loc["capped"]["output_tokens"] == 3


def test_steps_are_timed_with_what_they_did(engine):
    fake = engine()
    fake.add(make_request("a", prompt_tokens=20), output_tokens=6)
    fake.run()
    samples = fake.scheduler._timer.samples()
    assert samples[0, :3].tolist() == [20, 0, 0]
    assert (samples[1:, 0] == 0).all()
    assert (samples[1:, 1] == 1).all()
    assert samples[1:, 2].tolist() == [21, 22, 23, 24, 25]
    assert (samples[:, 3] > 0).all()


def test_policy_and_lengths_switch_while_serving(engine):
    fake = engine()
    answer = fake.scheduler.lengthwise_configure({"policy": "edf", "lengths": "none"})
    assert answer == {"policy": "edf", "lengths": "none"}
    assert fake.scheduler.lengthwise_status()["policy"] == "edf"


@pytest.mark.parametrize(
    ("body", "named"),
    [
        ({"policy": "magic"}, "magic"),
        ({"lengths": "guess"}, "lengths"),
        ({"unknown": 1}, "unknown"),
        ({"predictor_dir": "/does/not/exist"}, "card.json"),
    ],
)
def test_a_wrong_configuration_is_refused_whole(engine, body, named):
    fake = engine()
    answer = fake.scheduler.lengthwise_configure(body)
    assert named in answer["error"]
    assert fake.scheduler.lengthwise_status()["policy"] == "sjf"


@pytest.mark.parametrize("policy", ["sa", "sa-paper", "feasible-edf", "llf"])
def test_every_kind_of_policy_serves_all(engine, policy):
    fake = engine(policy=policy, max_num_seqs=2)
    for i in range(12):
        fake.add(
            make_request(f"r{i}", slo_e2e_ms=1000 + 100 * i, pred_quantiles=scaled(1 + i % 3)),
            output_tokens=3 + i,
        )
    fake.run()
    assert len(fake.finished) == 12
    plan = fake.scheduler.lengthwise_status()["plan"]
    assert plan["count"] > 0
    assert plan["fallbacks"] == {}


@pytest.mark.parametrize(
    ("part", "method"),
    [
        ("_intake", "track"),
        ("_planner", "order"),
        ("_timer", "end"),
        ("_refit", "poll"),
        ("_outcomes", "record"),
        ("_table", "arrays"),
    ],
)
def test_a_fault_in_anything_we_add_is_counted_and_serving_goes_on(engine, part, method):
    def broken(*args, **kwargs):
        raise RuntimeError("broken")

    fake = engine(max_num_seqs=2)
    setattr(getattr(fake.scheduler, part), method, broken)
    for i in range(6):
        fake.add(make_request(f"r{i}"), output_tokens=3)
    fake.run()
    assert len(fake.finished) == 6
    assert set(fake.tokens.values()) == {3}
    assert sum(fake.scheduler.lengthwise_status()["plan"]["fallbacks"].values()) > 0
    assert len(fake.scheduler.waiting) == 0


def test_a_shadows_prediction_is_logged_and_not_obeyed(engine, tmp_path):
    fake = engine(max_num_seqs=1, request_log=str(tmp_path))
    for name, factor, shadow in (("long", 50, 1), ("middle", 5, 5), ("short", 1, 50)):
        extra = {"lw_shadow": scaled(shadow), "lw_shadow_version": "v2"}
        fake.add(make_request(name, pred_quantiles=scaled(factor), pred_version="v1", **extra))
    fake.add(make_request("odd", pred_quantiles=scaled(90), lw_shadow=[3], lw_shadow_version="v2"))
    before = shadow_ratios()
    fake.run()
    assert fake.admitted == ["short", "middle", "long", "odd"]
    assert shadow_ratios() == before + 3
    fake.scheduler.shutdown()
    rows = read_request_log(tmp_path).set_index("request_id")
    assert rows.loc["short"][["predictor", "shadow"]].tolist() == ["v1", "v2"]
    assert rows.loc["short"][["predicted_tokens", "shadow_tokens"]].tolist() == [20.0, 1000.0]
    assert rows.loc["short"]["shadow_quantiles"]["0.99"] == 2500.0
    assert rows.loc["odd"][["shadow", "shadow_quantiles"]].tolist() == [None, None]


def shadow_ratios():
    name = "lengthwise_predicted_over_actual_count"
    return REGISTRY.get_sample_value(name, {"source": "shadow"}) or 0.0


def test_a_reload_changes_the_slo_table_and_knows_the_old_classes_for_a_while(engine):
    fake = engine(slo_table={"chat": {"ttft_ms": 500.0}})
    answer = fake.scheduler.lengthwise_configure(
        {"slo_table": {"vip": {"ttft_ms": 100.0, "weight": 3.0}}}
    )
    assert "error" not in answer
    for name in ("vip", "chat", "nobody"):
        fake.add(make_request(name, slo_class=name, pred_quantiles=QUANTILES))
    table = fake.scheduler._table
    assert (table.get("vip").slo.ttft_s, table.get("vip").weight) == (0.1, 3.0)
    assert (table.get("chat").slo.ttft_s, table.get("chat").weight) == (0.5, 1.0)
    assert table.get("nobody").slo.is_best_effort
    assert fake.scheduler.lengthwise_status()["plan"]["fallbacks"] == {"slo": 1}


def test_a_new_predictor_is_not_taught_by_answers_the_old_one_predicted(engine, predictor_dir):
    fake = engine(max_num_seqs=8)
    for i in range(60):
        request = make_request(
            f"r{i}", pred_quantiles=QUANTILES, pred_version="v1", slo_class="chat"
        )
        fake.add(request, output_tokens=80)
        if i == 30:
            fake.run()
            assert fake.scheduler.lengthwise_status()["length_correction"]["chat"] > 2
    change = {"predictor_dir": str(predictor_dir), "predictor_version": "v2"}
    assert "error" not in fake.scheduler.lengthwise_configure(change)
    fake.run()
    assert fake.scheduler.lengthwise_status()["length_correction"] == {}
    fake.add(make_request("new", pred_quantiles=QUANTILES, pred_version="v2", slo_class="chat"))
    fake.run()
    assert set(fake.scheduler.lengthwise_status()["length_correction"]) == {"chat"}


def test_policy_parameters_reload_and_show_in_the_version(engine, tmp_path):
    fake = engine(request_log=str(tmp_path))
    plain = fake.scheduler.lengthwise_status()["policy_version"]
    change = {"policy": "sa", "policy_params": {"iterations": 50}}
    fake.scheduler.lengthwise_configure(change)
    status = fake.scheduler.lengthwise_status()
    assert status["policy"] == "sa"
    assert status["policy_version"].startswith(f"{plain}+")
    fake.scheduler.lengthwise_configure({"slo_table": {}})
    assert fake.scheduler.lengthwise_status()["policy_version"] == status["policy_version"]
    for params in ({"warp": 9}, {"calm": "very"}):
        answer = fake.scheduler.lengthwise_configure({"policy": "sa", "policy_params": params})
        assert answer["error"]
    fake.add(make_request("r", pred_quantiles=QUANTILES))
    fake.run()
    fake.scheduler.shutdown()
    row = read_request_log(tmp_path).iloc[0]
    assert (row["policy"], row["policy_version"]) == ("sa", status["policy_version"])


def test_steps_are_logged_to_the_servers_own_file_and_only_when_told(engine, tmp_path):
    log = tmp_path / "steps.jsonl"
    fake = engine(step_log=str(log))
    fake.add(make_request("a"), output_tokens=3)
    fake.run()
    assert not log.exists()
    fake.scheduler.lengthwise_configure({"log_steps": True})
    fake.add(make_request("b"), output_tokens=3)
    fake.run()
    fake.scheduler.lengthwise_configure({"log_steps": False})
    assert len(log.read_text().splitlines()) == 3
    assert "step_log" in engine().scheduler.lengthwise_configure({"log_steps": True})["error"]


def test_the_request_logs_limits_reach_the_writer(engine, tmp_path):
    settings = {"request_log_max_mb": 0.008, "request_log_max_age_days": 2.0}
    fake = engine(request_log=str(tmp_path), **settings)
    log = fake.scheduler._outcomes._log
    assert (log._max_total_bytes, log._max_bytes, log._max_age_s) == (8000, 1000, 172_800)
    log.close()
