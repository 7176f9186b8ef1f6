"""Drift, outcomes and plans as the engine's metrics, status and log tell them."""

from __future__ import annotations

import logging
import math
import time
from functools import partial

import numpy as np
import pytest
from engineless import make_request
from prometheus_client import REGISTRY

from lengthwise.data.request_log import read_request_log
from lengthwise.scheduler.serving.engine.engine_metrics import engine_metrics
from lengthwise.scheduler.serving.engine.observed.drift_watch import DriftWatch
from lengthwise.scheduler.serving.settings import LOGGER_NAME
from lengthwise.scheduler.serving.wire.answer_length import DEFAULT_LEVELS

QUANTILES = [2.0, 3, 4, 5, 6, 7, 8, 9, 10, 12, 14, 20]


def sample(name, **labels):
    return REGISTRY.get_sample_value(f"lengthwise_{name}", labels) or 0.0


@pytest.fixture
def engine(engine):
    return partial(engine, max_num_seqs=32)


def serve(fake, n, tokens, name="r", **extra):
    for i in range(n):
        fake.add(make_request(f"{name}{i}", pred_quantiles=QUANTILES, **extra), tokens)
    fake.run()


@pytest.fixture
def log_lines(caplog):
    logger = logging.getLogger(LOGGER_NAME)
    logger.addHandler(caplog.handler)  # vLLM's loggers do not propagate
    yield lambda: [r.getMessage() for r in caplog.records if "drift" in r.getMessage()]
    logger.removeHandler(caplog.handler)


def test_longer_answers_raise_an_alarm_in_status_metrics_and_log_until_reset(engine, log_lines):
    fake = engine()
    before = sample("drift_alarms_total", slo_class="drifting", cause="level")
    serve(fake, 120, tokens=28, slo_class="drifting", pred_version="v1")
    drift = fake.scheduler.lengthwise_status()["drift"]
    assert drift["predictor"] == "v1"
    alarms = {(a["cause"], a["slo_class"]): a for a in drift["alarms"]}
    # one that still runs is told as it is once it is longer than expected
    assert alarms["level", "drifting"]["value"] == pytest.approx(28 / 7, rel=0.05)
    assert drift["by_class"]["drifting"]["actual_over_predicted"] == pytest.approx(4.0, rel=0.05)
    assert sample("drift_alarm", slo_class="drifting", cause="level") == 1
    assert sample("drift_alarms_total", slo_class="drifting", cause="level") == before + 1
    assert sample("actual_over_predicted", slo_class="drifting") == pytest.approx(4.0, rel=0.05)
    assert sample("interval_coverage", slo_class="drifting") == 0
    told = f"{alarms['level', 'drifting']['value']:.2f} times as long as predicted"
    assert told in "".join(log_lines())
    fake.scheduler.answers.answer("lengthwise_configure", {"reset_stats": True})
    assert fake.scheduler.lengthwise_status()["drift"]["alarms"] == []
    assert sample("drift_alarm", slo_class="drifting", cause="level") == 0
    assert "alarm over" in log_lines()[-1]
    serve(fake, 1, tokens=5)
    assert math.isnan(sample("interval_coverage", slo_class="drifting"))


def test_only_what_the_predictor_said_counts_as_drift(engine):
    fake = engine()
    serve(fake, 5, tokens=28, name="told", pred_version="osl")
    fake.add(make_request("no-prediction"), 28)
    fake.run()
    assert fake.scheduler.lengthwise_status()["drift"]["by_class"]["*"]["rows"] == 0
    serve(fake, 5, tokens=28)
    assert fake.scheduler.lengthwise_status()["drift"]["by_class"]["*"]["rows"] == 5


def test_levels_off_the_grid_are_interpolated():
    watch = DriftWatch(np.array([0.05, 0.15, 0.45, 0.55, 0.85, 0.95]), engine_metrics())
    assert watch._three(np.array([10.0, 20, 40, 60, 80, 100])) == pytest.approx([15, 50, 90])
    exact = DriftWatch(np.array(DEFAULT_LEVELS), engine_metrics())
    assert exact._three(np.array(QUANTILES)) == [3, 7, 12]


def test_whole_requests_and_their_lengths_are_counted_by_class(engine):
    names = ("requests_attained_total", "requests_missed_total", "output_tokens_sum",
             "predicted_tokens_sum", "predicted_tokens_count")  # fmt: skip
    before = {name: sample(name, slo_class="whole") for name in names}
    fake = engine()
    met = {"slo_class": "whole", "slo_e2e_ms": 60_000}
    serve(fake, 3, tokens=11, name="a", **met)
    late = {"slo_ttft_ms": 1000, "arrival_time": time.time() - 5}  # one of two objectives
    serve(fake, 2, tokens=11, name="b", **met, **late)
    serve(fake, 4, tokens=11, name="c", slo_class="whole")  # best effort
    counted = [sample(name, slo_class="whole") - before[name] for name in names]
    assert counted == [3, 2, 99, 63, 9]


def test_gauges_are_right_when_the_engine_comes_to_rest(engine):
    fake = engine(max_wait_s=33.0, plan_budget_ms=2.0)
    serve(fake, 40, tokens=3)
    assert sample("queue_length") == 0
    assert sample("oldest_wait_seconds") == 0
    assert sample("longest_wait_seconds") > 0
    assert sample("max_wait_seconds") == 33
    assert sample("plan_budget_seconds") == 0.002
    versions = fake.scheduler.lengthwise_status()["versions"]
    assert sample("build_info", version=versions["lengthwise"], vllm=versions["vllm"]) == 1


def test_lost_log_rows_are_counted_once(engine, tmp_path):
    before = sample("log_rows_dropped_total")
    fake = engine(request_log=str(tmp_path))
    fake.scheduler.core.outcomes._log.close()
    serve(fake, 7, tokens=3)
    fake.scheduler.core.update_gauges(0.0)
    assert sample("log_rows_dropped_total") == before + 7


def test_reasons_of_degraded_plans_are_few():
    metrics = engine_metrics()
    first = metrics.reason_label("no time to search 400 requests in 1 ms")
    assert first == metrics.reason_label("no time to search 7 requests in 2.5 ms")
    labels = {metrics.reason_label("x" * n) for n in range(1, 50)}
    assert "other" in labels
    assert len(labels) <= 8


def test_a_class_has_its_counters_at_zero_before_its_first_outcome_and_classes_are_few():
    metrics = engine_metrics()
    engine_labels = {metrics.class_label(f"named-{n}") for n in range(100)}
    assert "other" in engine_labels
    assert len(engine_labels) <= 33
    first = next(name for name in engine_labels if name != "other")
    labels = {"slo_class": first}
    assert REGISTRY.get_sample_value("lengthwise_requests_missed_total", labels) == 0
    labels["objective"] = "ttft"
    assert REGISTRY.get_sample_value("lengthwise_slo_missed_total", labels) == 0
    alarm = {"slo_class": "*", "cause": "level"}
    assert REGISTRY.get_sample_value("lengthwise_drift_alarm", alarm) is not None


@pytest.mark.parametrize("name", ["r" * 256, "a text of the client's " * 5000, "\ud800" * 300])
def test_what_a_request_is_called_is_logged_within_bounds(engine, tmp_path, name):
    fake = engine(request_log=str(tmp_path))
    for end in ("", "!"):
        fake.add(make_request(name + end, slo_e2e_ms=60_000), 2)
    fake.run()
    fake.scheduler.core.close()
    ids = [row["request_id"] for row in read_request_log(tmp_path).to_dict("records")]
    assert len(set(ids)) == 2
    assert max(map(len, ids)) <= 256
