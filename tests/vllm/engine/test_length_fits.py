"""A served model whose order the predictor does not know, on the toy engine."""

from __future__ import annotations

import time

import numpy as np
import pytest
from toy_engine import QUANTILES, make_request, planning_toy

from lengthwise.data.request_log import read_request_log
from lengthwise.predictor.serving.online_lengths import FIRST_ROWS
from lengthwise.scheduler.serving.engine.observed import length_fits

LONG, SHORT = [1.0, 0.0, 3.0], [-1.0, 0.0, 3.0]


@pytest.fixture(autouse=True)
def _no_pause_between_fits(monkeypatch):
    monkeypatch.setattr(length_fits, "_LEAST_BETWEEN_S", 0.0)


def told(name, features, **more):
    return make_request(
        name, pred_quantiles=QUANTILES, slo_class="chat", lw_features=features, lw_contract="toy",
        **more,
    )  # fmt: skip


def serve(fake, rows, first=0):
    """Half of the prompts are answered four times as long as the other half."""
    rng = np.random.default_rng(first)
    for i in range(first, first + rows):
        is_long = bool(rng.random() < 0.5)
        row = [(1.0 if is_long else -1.0) * rng.uniform(0.8, 1.2), rng.normal(), 3.0]
        fake.add(told(f"r{i}", row), output_tokens=40 if is_long else 10)
    fake.run()
    fake.core.update_gauges(time.monotonic())


def planned(fake, name):
    return fake.core.table.get(name).quantiles[5]


def test_who_answers_long_is_told_by_the_prompt_after_some_answers(tmp_path):
    fake = planning_toy(slots=8, request_log=str(tmp_path))
    assert fake.status()["length_residual"] == {
        "wanted": True, "in_force": False, "fits": 0, "answers": 0,
    }  # fmt: skip
    serve(fake, 3 * FIRST_ROWS)
    status = fake.status()["length_residual"]
    assert status["in_force"]
    assert status["answers"] == 3 * FIRST_ROWS
    fake.add(told("long", LONG), output_tokens=40)
    fake.add(told("short", SHORT), output_tokens=10)
    fake.add(told("osl", LONG, pred_version="osl"))
    assert planned(fake, "long") > 2.5 * planned(fake, "short")
    assert planned(fake, "osl") == QUANTILES[5]
    assert fake.core.table.get("long").predicted.tolist() == list(QUANTILES)
    fake.run()
    fake.core.close()
    row = read_request_log(tmp_path).set_index("request_id").loc["long"]
    assert row["predicted_tokens"] == QUANTILES[5]
    assert list(row["features"]) == LONG


def test_a_fit_is_made_in_a_thread_where_plans_are():
    fake = planning_toy(slots=8, plan_in_thread=True)
    serve(fake, 3 * FIRST_ROWS)
    for _ in range(500):
        fake.core.update_gauges(time.monotonic())
        if fake.status()["length_residual"]["fits"]:
            break
        time.sleep(0.01)
    assert fake.status()["length_residual"]["in_force"]
    fake.core.close()


def test_what_was_learned_goes_with_the_tallies_and_not_into_other_lengths():
    fake = planning_toy(slots=8)
    serve(fake, 3 * FIRST_ROWS)
    fake.control.configure({"reset_stats": True})
    assert not fake.status()["length_residual"]["in_force"]
    fake.add(told("long", LONG))
    assert planned(fake, "long") == pytest.approx(QUANTILES[5])


def test_without_the_setting_level_and_spread_are_followed_alone(tmp_path):
    fake = planning_toy(slots=8, length_residual=False)
    serve(fake, 3 * FIRST_ROWS)
    assert fake.status()["length_residual"]["fits"] == 0
    assert fake.status()["length_correction"] != {}
    fake.add(told("long", LONG))
    fake.add(told("short", SHORT))
    assert planned(fake, "long") == planned(fake, "short")


def test_features_that_only_the_residual_reads_are_not_logged(tmp_path):
    fake = planning_toy(slots=8, request_log=str(tmp_path), log_features=False)
    serve(fake, 5)
    fake.core.close()
    rows = read_request_log(tmp_path)
    assert rows["features"].isna().all()
    assert rows["feature_contract"].isna().all()


@pytest.mark.parametrize("features", ["words", [None] * 3, [[1.0]], [1e400] * 3, [], [1.0]])
def test_odd_features_stop_nobody(features):
    fake = planning_toy(slots=8)
    serve(fake, 3 * FIRST_ROWS)
    fake.add(told("odd", features))
    assert planned(fake, "odd") >= 1.0
    fake.run()
    assert fake.finished["odd"] == "finished"


def test_a_fit_that_fails_is_counted_and_serving_goes_on(monkeypatch):
    def broken(misses, in_force):
        raise ValueError("no fit")

    monkeypatch.setattr(length_fits, "refit", broken)
    fake = planning_toy(slots=8)
    serve(fake, 3 * FIRST_ROWS)
    assert fake.status()["plan"]["fallbacks"]["length residual"] >= 1
    serve(fake, 5, first=1000)
    assert len(fake.finished) == 3 * FIRST_ROWS + 5
