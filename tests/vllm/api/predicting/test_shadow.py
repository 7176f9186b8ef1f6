"""The shadow: asked beside the champion, never obeyed, never in the way."""

from __future__ import annotations

import asyncio
import time

import pytest
from echo_client import COMPLETIONS, Client, WordPredictor
from prometheus_client import REGISTRY
from test_reload import Live, role

from lengthwise.scheduler.serving.api.api_metrics import api_metrics
from lengthwise.scheduler.serving.api.predicting.batching import ServedPredictor
from lengthwise.scheduler.serving.api.predicting.shadow import Shadow
from lengthwise.scheduler.serving.settings import make_settings


def counted(outcome):
    name = "lengthwise_shadow_predictions_total"
    return REGISTRY.get_sample_value(name, {"outcome": outcome}) or 0.0


def shadowed(predictor, quick=False, champion=None, **settings):
    client = Client(champion or WordPredictor(), predictor_version="v1", **settings)
    client.service.replace_shadow(ServedPredictor(predictor, "v2", quick))
    return client


@pytest.mark.parametrize("quick", [False, True])
def test_its_prediction_travels_beside_the_champions(quick):
    body = {"prompt": "one two three", "max_tokens": 45}
    xargs = shadowed(WordPredictor(), quick, shadow_timeout_ms=5000).xargs(body)
    assert (xargs["pred_version"], xargs["lw_shadow_version"]) == ("v1", "v2")
    assert xargs["lw_shadow"] == xargs["pred_quantiles"]
    assert "lw_shadow" not in shadowed(WordPredictor(), quick).xargs({"prompt": [1, 2]})


def test_it_predicts_where_the_champion_is_not_asked():
    client = shadowed(WordPredictor(), lengths="none", shadow_timeout_ms=5000)
    assert {"lw_shadow", "pred_quantiles"} & set(client.xargs({"prompt": "a"})) == {"lw_shadow"}


def test_a_slow_shadow_costs_its_time_out_once_and_is_skipped_while_stuck():
    slow = WordPredictor()
    slow.stall_s = 3.0  # long enough for five more requests on a busy machine
    client = shadowed(slow, shadow_timeout_ms=20)

    async def ask():
        began_s = time.perf_counter()
        answer = await client._call("POST", COMPLETIONS, json={"prompt": "hi"})
        xargs = answer.json()["vllm_xargs"]
        assert "pred_quantiles" in xargs
        assert "lw_shadow" not in xargs
        return time.perf_counter() - began_s

    async def scenario():
        await ask()
        skipped = counted("skipped")
        took_s = [await ask() for _ in range(5)]
        assert counted("skipped") == skipped + 5
        assert len(slow.calls) == 1
        return min(took_s)

    assert asyncio.run(scenario()) < 0.1


def test_a_raising_shadow_harms_nobody_and_is_given_a_rest():
    broken = WordPredictor()
    broken.error = RuntimeError("broken")
    now = [0.0]
    settings = make_settings({"shadow_timeout_ms": 5000})
    shadow = Shadow(
        ServedPredictor(broken, "v2", quick=True), settings, api_metrics(), lambda: now[0]
    )

    async def ask(times):
        return [(await shadow.predict(["hi"], "chat"))[0] for _ in range(times)]

    assert asyncio.run(ask(15)) == [None] * 15
    assert len(broken.calls) == 10
    broken.error = None
    now[0] = 11.0
    (found,) = asyncio.run(ask(1))
    assert found.version == "v2"


def test_the_live_file_names_it_and_takes_it_away(tmp_path, predictor_dir):
    client = Live(tmp_path, WordPredictor(), predictor_version="words/1", shadow_timeout_ms=5000)
    client.write(shadow={"directory": str(predictor_dir), "version": "models:/m/7"})
    assert client.check()["shadow"] == "loaded"
    assert client.core.asked == []  # the engine need not know
    assert client.xargs({"prompt": "hi"})["lw_shadow_version"] == "models:/m/7"
    status = client.call("GET", "/lengthwise/status").json()["api"]
    assert (status["shadow_version"], role("shadow", "models:/m/7")) == ("models:/m/7", 1)
    client.write()
    assert client.check()["shadow"] == "loaded"
    assert "lw_shadow" not in client.xargs({"prompt": "hi"})
    assert role("shadow", "models:/m/7") == 0
