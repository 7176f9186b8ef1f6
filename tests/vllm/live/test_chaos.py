"""Faults on the real engine: in each, every request is answered once and something tells of it.

The session's server runs with ``faults/`` on its path and obeys its control file. What would end
that server, or needs it started otherwise, has a server of its own, in ``test_chaos_bare.py`` and
``test_chaos_killed.py``. ``make chaos`` runs the long half too.
"""

from __future__ import annotations

import asyncio
import json
import shutil
import time
from pathlib import Path

import httpx
import pytest
from chaos_load import all_once, configure, long_ones, serve, some, status
from request_accounts import ask, drive, metric, wait_for, wait_for_rows

from lengthwise.data.request_log import read_request_log
from lengthwise.scheduler.serving.settings import ServerSettings

pytestmark = pytest.mark.vllm

STUCK_S = 5.0


@pytest.fixture
def well(server):
    """The session's server as it was, before and after."""
    configure(server, policy="sa", lengths="learned", reset_stats=True)
    yield server
    server.faults.set()


# -- the planner -------------------------------------------------------------------------------


def test_a_planner_over_its_budget_is_not_waited_for(well):
    """A plan of 300 ms, 15 times its budget, is made beside the engine's loop."""
    asked = some("slow-planner")
    with well.faults.during(planner="slow", planner_s=0.3):
        account = serve(well, asked)
        # where plans cost the steps, the gate may be shut over all of so few requests
        wait_for(lambda: _plans_after_one(well), lambda count: count > 0, 30)
    all_once(well, account, asked)
    plan = status(well)["plan"]
    assert plan["ms_p99"] > 10 * plan["budget_ms"]
    assert plan["processor_share"] < plan["share"]
    assert plan["fallbacks"] == {}


@pytest.mark.parametrize("fault", ["raise", "nonsense"])
def test_a_planner_that_fails_means_order_of_arrival(well, fault):
    plans = status(well)["plan"]["count"]
    # the gate may still be shut after the slow plan of another test
    wait_for(lambda: _plans_after_one(well), lambda count: count > plans, 30)
    configure(well, reset_stats=True)
    before = metric(well.url, "lengthwise_fallbacks_total", cause="planner")
    asked = some(f"planner-{fault}")
    with well.faults.during(planner=fault):
        account = serve(well, asked)
        # the gate may shut over all of so few requests, too
        wait_for(lambda: _plans_after_one(well), lambda count: count > 0, 30)
    all_once(well, account, asked)
    plan = status(well)["plan"]
    assert plan["count"] > 0
    counted = metric(well.url, "lengthwise_fallbacks_total", cause="planner") - before
    assert counted == (plan["count"] if fault == "raise" else 0)


def _plans_after_one(server):
    serve(server, some(f"again-{time.monotonic_ns()}", 12))
    return status(server)["plan"]["count"]


# -- the predictor -----------------------------------------------------------------------------


@pytest.mark.parametrize("fault", ["raise", "nan", "shape", "rows"])
def test_a_prediction_that_is_none_is_counted(well, fault):
    before = metric(well.url, "lengthwise_predictions_total", outcome="failed")
    asked = some(f"predictor-{fault}")
    with well.faults.during(predictor=fault):
        account = serve(well, asked)
    all_once(well, account, asked)
    after = metric(well.url, "lengthwise_predictions_total", outcome="failed")
    assert after - before == len(asked)
    fallbacks = status(well)["plan"]["fallbacks"]
    assert fallbacks == {"no-prediction": len(asked)}


def test_a_slow_predictor_holds_nobody_for_long(well):
    """5 s a call: whoever asks first waits for the time-out, whoever comes later not at all."""
    late = {"outcome": "timeout|skipped"}
    with well.faults.during(predictor="slow", predictor_s=STUCK_S):
        first = some("turns-slow", 4)
        account = serve(well, first)
        all_once(well, account, first)
        assert account.elapsed_s < STUCK_S
        assert "predicting in a thread" in well.server_log.read_text(errors="replace")
        before = metric(well.url, "lengthwise_predictions_total", **late)
        asked = some("stays-slow")
        account = serve(well, asked)
        assert account.elapsed_s < STUCK_S
    all_once(well, account, asked)
    assert metric(well.url, "lengthwise_predictions_total", **late) - before == len(asked)
    for fault in ("raise", "nan", "rows"):  # in the thread now
        asked = some(f"thread-{fault}", 8)
        with well.faults.during(predictor=fault):
            account = serve(well, asked)
        all_once(well, account, asked)
    ok = metric(well.url, "lengthwise_predictions_total", outcome="ok")
    serve(well, some("well-again", 4))
    assert metric(well.url, "lengthwise_predictions_total", outcome="ok") == ok + 4


@pytest.mark.skipif(
    "live_file" not in ServerSettings.model_fields, reason="this server has no live file"
)
def test_a_corrupted_artifact_is_not_reloaded(well, predictor_dir, tmp_path):
    """Refused under load; the old predictor stays and nobody notices."""
    broken = tmp_path / "broken"
    shutil.copytree(predictor_dir, broken)
    victim = max((broken / "estimator").rglob("*"), key=lambda file: file.stat().st_size)
    victim.write_bytes(victim.read_bytes()[: victim.stat().st_size // 2])
    live_file = Path(well.live_file)
    good = live_file.read_text()
    state = json.loads(good) | {"predictor": {"directory": str(broken), "version": "broken/1"}}
    refusals = metric(well.url, "lengthwise_reloads_total", outcome="refused")
    asked = some("reloading")

    async def scenario():
        load = asyncio.create_task(drive(well.url, asked))
        live_file.write_text(json.dumps(state))
        async with httpx.AsyncClient(timeout=60) as client:
            answer = await client.post(f"{well.url}/lengthwise/reload")
        return await load, answer

    try:
        account, answer = asyncio.run(scenario())
        assert 400 <= answer.status_code < 500, answer.text
        all_once(well, account, asked)
        assert metric(well.url, "lengthwise_reloads_total", outcome="refused") > refusals
        assert status(well)["predictor_version"] == "test/1"
    finally:
        live_file.write_text(good)
        httpx.post(f"{well.url}/lengthwise/reload", timeout=60)


# -- clients and memory ------------------------------------------------------------------------


def test_clients_that_leave_while_everybody_is_preempted(well):
    """Those who stay have whole answers; those who leave have one row, as aborted.

    On a starved machine an answer may be whole before the server sees its client gone.
    """
    preempted = metric(well.url, "vllm:num_preemptions_total")
    stay = long_ones("stays", 10)
    leave = long_ones("leaves-midway", 6, leaves_after=2)
    flee = long_ones("leaves-before", 6, leaves_after=0)
    asked = [one for three in zip(stay, leave + stay[6:], flee + stay[6:], strict=True)
             for one in three]  # fmt: skip
    asked = list(dict.fromkeys(asked))
    account = serve(well, asked)
    all_once(well, account, asked)
    assert metric(well.url, "vllm:num_preemptions_total") > preempted
    rows = read_request_log(well.log_dir).set_index("request_id")
    left = rows[rows.index.str.contains("leaves-")]
    assert (left["status"] == "aborted").sum() > len(left) / 2
    assert set(left.loc[left["status"] != "aborted", "output_tokens"]) <= {500}
    assert status(well)["tracked"] == 0
    assert status(well)["queue"]["waiting"] == 0


@pytest.mark.chaos
def test_twenty_thousand_queued(well):
    """A thousand posts at once, twenty prompts each: all answered, none twice, none forgotten."""
    posts, each = 1000, 20
    asked = [
        ask(f"many-{i}", None, each, prompt=[f"Say {i}, {k}." for k in range(each)], max_tokens=1)
        for i in range(posts)
    ]
    deepest = []

    async def watch():
        async with httpx.AsyncClient(timeout=60) as client:
            while True:
                answer = await client.get(f"{well.url}/lengthwise/status")
                deepest.append(answer.json()["queue"]["waiting"])
                await asyncio.sleep(1)

    async def scenario():
        watcher = asyncio.create_task(watch())
        account = await drive(well.url, asked, timeout_s=500)
        watcher.cancel()
        return account

    account = asyncio.run(scenario())
    assert (account.answered, account.lost) == (posts, 0)
    assert max(deepest) > posts * each / 2
    names = [request.own_id for request in asked]
    assert wait_for_rows(well.log_dir, names, 60, each) == dict.fromkeys(names, each)
    # a flood may outrun the predictor, never the planner
    assert set(status(well)["plan"]["fallbacks"]) <= {"no-prediction"}
    assert status(well)["tracked"] == 0
