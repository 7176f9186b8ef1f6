"""The core on a toy engine: order, outcomes, lengths, switching; no vLLM is imported."""

from __future__ import annotations

import subprocess
import sys
import time

import numpy as np
import pytest
from prometheus_client import REGISTRY
from toy_engine import QUANTILES, ToyEngine, make_request, planning_toy, scaled

from lengthwise.data.request_log import read_request_log
from lengthwise.scheduler.serving.engine.plans.snapshots import Running


@pytest.fixture
def engine():
    return planning_toy


def test_without_a_plan_the_order_is_of_arrival(engine):
    fake = engine(slots=1, policy="fcfs")
    for name, factor in (("long", 50), ("short", 1)):
        fake.add(make_request(name, pred_quantiles=scaled(factor)))
    fake.run()
    assert fake.admitted == ["long", "short"]


class Unreasonable:
    name = "unreasonable"

    def __call__(self, problem):
        raise RuntimeError("no plan")


def test_a_raising_planner_means_arrival_order_and_a_count(engine):
    fake = engine(slots=1)
    fake.core.planner.policy = Unreasonable()
    for name, factor in (("long", 50), ("middle", 5), ("short", 1)):
        fake.add(make_request(name, pred_quantiles=scaled(factor)))
    fake.run()
    assert fake.admitted == ["long", "middle", "short"]
    assert len(fake.finished) == 3
    assert fake.status()["plan"]["fallbacks"]["planner"] > 0


def test_finished_answers_correct_the_lengths_planned_with_but_not_the_log(engine, tmp_path):
    """The served model says four times as much as predicted."""
    fake = engine(slots=8, request_log=str(tmp_path))
    for i in range(60):
        request = make_request(f"r{i}", pred_quantiles=QUANTILES, slo_class="chat")
        fake.add(request, output_tokens=80)
    fake.run()
    learned = fake.status()["length_correction"]
    assert 2.5 < learned["chat"] < 4.0
    fake.add(make_request("next", pred_quantiles=QUANTILES, slo_class="chat"), output_tokens=80)
    fake.add(make_request("told", pred_quantiles=[20.0] * 12, pred_version="osl"))
    table = fake.core.table
    assert table.get("next").quantiles[5] == pytest.approx(20 * learned["chat"])
    assert table.get("told").quantiles.tolist() == [20.0] * 12
    fake.run()
    fake.core.close()
    row = read_request_log(tmp_path).set_index("request_id").loc["next"]
    assert row["predicted_tokens"] == 20.0
    fake.control.configure({"reset_stats": True})
    assert fake.status()["length_correction"] == {}


def test_who_waited_too_long_goes_first_whatever_the_plan(engine):
    fake = engine(slots=1, max_wait_s=30.0)
    fake.add(make_request("running", pred_quantiles=QUANTILES))
    fake.step()
    now = time.time()
    fake.add(make_request("overdue", arrival_time=now - 40, pred_quantiles=scaled(100)))
    fake.add(make_request("older", arrival_time=now - 50, pred_quantiles=scaled(90)))
    fake.add(make_request("short", pred_quantiles=QUANTILES))
    fake.core.planner.policy = Unreasonable()  # the bound holds with no planner
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
    assert sum(fake.status()["plan"]["fallbacks"].values()) > 0


def test_policy_and_lengths_switch_while_serving(engine):
    fake = engine()
    answer = fake.control.configure({"policy": "edf", "lengths": "none"})
    assert answer == {"policy": "edf", "policy_params": {}, "lengths": "none"}
    assert fake.status()["policy"] == "edf"


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
    answer = fake.control.configure(body)
    assert named in answer["error"]
    assert fake.status()["policy"] == "sjf"


@pytest.mark.parametrize("policy", ["sa", "sa-paper", "feasible-edf", "llf"])
def test_every_kind_of_policy_serves_all(engine, policy):
    fake = engine(policy=policy, slots=2)
    for i in range(12):
        fake.add(
            make_request(f"r{i}", slo_e2e_ms=1000 + 100 * i, pred_quantiles=scaled(1 + i % 3)),
            output_tokens=3 + i,
        )
    fake.run()
    assert len(fake.finished) == 12
    plan = fake.status()["plan"]
    assert plan["count"] > 0
    assert plan["fallbacks"] == {}


def test_a_shadows_prediction_is_logged_and_not_obeyed(engine, tmp_path):
    fake = engine(slots=1, request_log=str(tmp_path))
    for name, factor, shadow in (("long", 50, 1), ("middle", 5, 5), ("short", 1, 50)):
        extra = {"lw_shadow": scaled(shadow), "lw_shadow_version": "v2"}
        fake.add(make_request(name, pred_quantiles=scaled(factor), pred_version="v1", **extra))
    fake.add(make_request("odd", pred_quantiles=scaled(90), lw_shadow=[3], lw_shadow_version="v2"))
    before = shadow_ratios()
    fake.run()
    assert fake.admitted == ["short", "middle", "long", "odd"]
    assert shadow_ratios() == before + 3
    fake.core.close()
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
    answer = fake.control.configure({"slo_table": {"vip": {"ttft_ms": 100.0, "weight": 3.0}}})
    assert "error" not in answer
    for name in ("vip", "chat", "nobody"):
        fake.add(make_request(name, slo_class=name, pred_quantiles=QUANTILES))
    table = fake.core.table
    assert (table.get("vip").slo.ttft_s, table.get("vip").weight) == (0.1, 3.0)
    assert (table.get("chat").slo.ttft_s, table.get("chat").weight) == (0.5, 1.0)
    assert table.get("nobody").slo.is_best_effort
    assert fake.status()["plan"]["fallbacks"] == {"slo": 1}


def test_a_new_predictor_is_not_taught_by_answers_the_old_one_predicted(engine, predictor_dir):
    fake = engine(slots=8)
    for i in range(60):
        request = make_request(
            f"r{i}", pred_quantiles=QUANTILES, pred_version="v1", slo_class="chat"
        )
        fake.add(request, output_tokens=80)
        if i == 30:
            fake.run()
            assert fake.status()["length_correction"]["chat"] > 2
    change = {"predictor_dir": str(predictor_dir), "predictor_version": "v2"}
    assert "error" not in fake.control.configure(change)
    fake.run()
    assert fake.status()["length_correction"] == {}
    fake.add(make_request("new", pred_quantiles=QUANTILES, pred_version="v2", slo_class="chat"))
    fake.run()
    assert set(fake.status()["length_correction"]) == {"chat"}


def test_policy_parameters_reload_and_show_in_the_version(engine, tmp_path):
    fake = engine(request_log=str(tmp_path))
    plain = fake.status()["policy_version"]
    change = {"policy": "sa", "policy_params": {"iterations": 50}}
    answer = fake.control.configure(change)
    status = fake.status()
    assert {key: answer[key] for key in change} == {key: status[key] for key in change} == change
    assert status["policy_version"].startswith(f"{plain}+")
    fake.control.configure({"slo_table": {}})
    assert fake.status()["policy_version"] == status["policy_version"]
    for params in ({"warp": 9}, {"head": "very"}):
        answer = fake.control.configure({"policy": "sa", "policy_params": params})
        assert answer["error"]
    fake.add(make_request("r", pred_quantiles=QUANTILES))
    fake.run()
    fake.core.close()
    row = read_request_log(tmp_path).iloc[0]
    assert (row["policy"], row["policy_version"]) == ("sa", status["policy_version"])


def test_steps_are_logged_to_the_servers_own_file_and_only_when_told(engine, tmp_path):
    log = tmp_path / "steps.jsonl"
    fake = engine(step_log=str(log))
    fake.add(make_request("a"), output_tokens=3)
    fake.run()
    assert not log.exists()
    fake.control.configure({"log_steps": True})
    fake.add(make_request("b"), output_tokens=3)
    fake.run()
    fake.control.configure({"log_steps": False})
    assert len(log.read_text().splitlines()) == 3
    assert "step_log" in engine().control.configure({"log_steps": True})["error"]


def test_the_request_logs_limits_reach_the_writer(engine, tmp_path):
    settings = {"request_log_max_mb": 0.008, "request_log_max_age_days": 2.0}
    fake = engine(request_log=str(tmp_path), **settings)
    log = fake.core.outcomes._log
    assert (log._max_total_bytes, log._max_bytes, log._max_age_s) == (8000, 1000, 172_800)
    log.close()


def test_a_core_needs_no_engine():
    code = (
        "import sys; sys.modules['vllm'] = None\n"
        "import lengthwise.scheduler.serving.engine.control as control\n"
        "assert control.Control"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_who_was_preempted_stands_before_the_plan_in_the_picture_too(engine):
    fake = engine(slots=2)
    for i in range(5):
        fake.add(make_request(f"r{i}", prompt_tokens=30, pred_quantiles=QUANTILES), 50)
    for _ in range(3):
        fake.step()
    victim = fake.running.pop()
    victim.prefill_left = victim.prompt_tokens + victim.generated
    fake.queue.prepend_request(victim)
    picture = fake.core.snapshots.take(fake.running_now(), time.monotonic()).build()
    rows = picture.problem.recovering
    assert len(rows) == 1
    assert victim.request_id not in picture.waiting_ids
    assert rows.generated_tokens[0] > 0
    assert rows.prefill_left_tokens[0] == 30 + rows.generated_tokens[0]
    fake.step()
    assert fake.running[-1] is victim
    assert (
        fake.core.snapshots.take(fake.running_now(), time.monotonic()).build().problem.recovering
        is None
    )


def test_a_clock_that_stands_still_paces_plans_by_their_nominal_time():
    """As in warped time without charge for own work: else there would be a plan a step."""
    engine = ToyEngine({"policy": "fcfs", "plan_share": 0.1, "refit_steps": 0}, slots=1)
    planner = engine.core.planner
    planner._clock = lambda: 0.0
    planner.policy.nominal_s = 0.02
    for i in range(3):
        engine.add(make_request(f"r{i}", pred_quantiles=QUANTILES), 1000)
    for ms in range(1000):
        planner.changed()
        engine.core.before_step(0, engine.running_now, 1e6 + ms / 1e3)
    assert engine.status()["plan"]["count"] == 5


def test_one_slow_plan_is_not_paid_for_with_as_long_a_silence():
    """An engine's first plan on an H200 took .6 s, and none came for the next 15 s."""
    engine = ToyEngine({"policy": "fcfs", "plan_share": 0.1, "refit_steps": 0}, slots=1)
    planner, took_s = engine.core.planner, iter([0.6] + [0.02] * 50)
    reads = (t for d in took_s for t in (0.0, d, d))  # a plan's start and end, and when it is taken
    planner._clock = lambda: next(reads)
    planner.policy.nominal_s = 0.02
    for i in range(3):
        engine.add(make_request(f"r{i}", pred_quantiles=QUANTILES), 1000)
    made = []
    for ms in range(2000):
        planner.changed()
        engine.core.before_step(0, engine.running_now, 1e6 + ms / 1e3)
        made.append(engine.status()["plan"]["count"])
    assert made[590] == 1
    assert made[610] == 2
    assert made[-1] == 8


def test_nothing_to_predict_on_is_no_fault_of_the_predictors(engine):
    """A prompt of token ids, as the API process marks it; without its word it is a fault."""
    fake = engine(lengths="learned")
    before = REGISTRY.get_sample_value("lengthwise_without_text_total")
    fake.add(make_request("ids", lw_textless=True))
    fake.add(make_request("ids-too", lw_textless=True))
    assert fake.status()["without_text"] == 2
    assert fake.status()["plan"]["fallbacks"] == {}
    assert REGISTRY.get_sample_value("lengthwise_without_text_total") == before + 2
    fake.add(make_request("lost"))
    assert fake.status()["plan"]["fallbacks"] == {"no-prediction": 1}
    assert fake.status()["without_text"] == 2


def test_a_plan_begins_with_the_first_tokens_of_the_steps_that_still_run(engine):
    fake = engine(slots=1)
    for name in ("runs", "waits"):
        fake.add(make_request(name, pred_quantiles=scaled(1)))
    fake.running.append(fake.queue.pop_request())
    now_s = time.monotonic()
    fake.core.stepped(["runs"], (8, 0, 0), fake.running_now, now_s)
    alone = fake.core.snapshots.take(Running(["runs"], [1], [0]), now_s).build().problem
    assert alone.now_s > now_s
    assert alone.running.first_token_s == alone.now_s
    fake.core.stepped([], (0, 1, 9), fake.running_now, now_s)
    behind = fake.core.snapshots.take(Running(["runs"], [2], [0]), now_s).build().problem
    assert behind.running.first_token_s == alone.now_s < behind.now_s
    assert behind.running.generated_tokens == 2
    assert np.isnan(behind.waiting.first_token_s)
