"""vLLM's batch runner: lines are read as their routes would be, odd ones refused one by one."""

from __future__ import annotations

import asyncio
import inspect
import json
from types import SimpleNamespace

import pytest
from echo_client import CHAT, TABLE, FakeEngineCore, Params, WordPredictor

from lengthwise.data.errors import InputError
from lengthwise.data.slo import SloTable
from lengthwise.scheduler.serving.api.api_metrics import api_metrics
from lengthwise.scheduler.serving.api.body.request_body import ParsedRequest
from lengthwise.scheduler.serving.api.predicting.prediction import PredictionService
from lengthwise.scheduler.serving.settings import make_settings
from lengthwise.scheduler.vllm_adapter.api.batch_runner import BatchLines, install, vllm_runner
from lengthwise.scheduler.vllm_adapter.api.vllm_front import VllmFront


def line(custom_id, content="one two", url=CHAT, headers=None, **xargs):
    body = {"messages": [{"role": "user", "content": content}], "model": "m"}
    request = {"custom_id": custom_id, "method": "POST", "url": url, "body": body}
    if xargs:
        body["vllm_xargs"] = xargs
    return json.dumps(request | ({"headers": headers} if headers else {}))


class Runner:
    """As vLLM's module: `run_batch` finds `read_file` and `run_request` among its own names."""

    def __init__(self, text):
        self.text, self.completed, self.client = text, 0, None

    async def read_file(self, path):
        return self.text

    async def run_request(self, handler, request, tracker):
        await asyncio.sleep(0.001)
        extra = request.body.get("vllm_xargs")
        assert None not in (extra or {}).values()  # vLLM would end the whole run
        return request.custom_id, handler({"p": 1}, Params(extra), request.custom_id)

    def make_error_request_output(self, request, error_msg):
        return request.custom_id, error_msg

    async def run_batch(self):
        tracker = SimpleNamespace(completed=lambda: setattr(self, "completed", self.completed + 1))
        futures = []
        for one in (await self.read_file("in")).strip().split("\n"):
            if one.strip():
                request = SimpleNamespace(**json.loads(one))
                futures.append(self.run_request(self.client.generate, request, tracker))
        return await asyncio.gather(*futures)


def run(*lines, **settings):
    runner, core = Runner("\n".join(lines) + "\n"), FakeEngineCore()
    core.answer = {"action": "shed"}
    runner.client = SimpleNamespace(
        engine_core=core, generate=lambda p, params, i: params.extra_args
    )
    settings = make_settings({"slo_table": TABLE} | settings)
    front = VllmFront(settings, PredictionService(settings, api_metrics(), WordPredictor()),
                  api_metrics())  # fmt: skip
    install(runner, front, settings.slos, runner.client)
    return asyncio.run(runner.run_batch())


def test_a_line_is_read_like_a_request():
    headers = {"X-SLO-TTFT-ms": "700", "x-tenant": "t1"}
    found = run(
        line("a", "one two three", headers=headers, slo_class="chat", mine=1),
        line("b", pred_quantiles=[1.0] * 12, lw_text_id="x", slo_e2e_ms=None),
        line("c", url="/v1/embeddings"),
    )
    (a, told_a), (b, told_b), (c, told_c) = found
    assert (a, b, c) == ("a", "b", "c")
    assert (told_a["slo_ttft_ms"], told_a["tenant"], told_a["mine"]) == (700.0, "t1", 1)
    assert told_a["pred_quantiles"][0] == 31.5
    assert told_b["pred_quantiles"][0] == 21.0
    assert not {"lw_text_id", "slo_e2e_ms"} & set(told_b)
    assert told_c is None


def test_a_wrong_line_is_refused_alone_and_equal_ids_stay_apart():
    found = run(line("a", slo_class="vip"), line("a", "one"), line("a", "one two"))
    assert "unknown slo_class 'vip'" in found[0][1]
    assert [told["pred_quantiles"][0] for _, told in found[1:]] == [10.5, 21.0]


def test_admission_is_asked():
    found = run(line("a", slo_e2e_ms=500), line("b"), admission={"mode": "shed"})
    assert "cannot meet its SLO" in found[0][1]
    assert found[1][1]["slo_class"] == "default"


@pytest.mark.parametrize("text", ["", "not json", "[]", '{"url": 3}', '{"url": "' + CHAT + '"}'])
def test_what_is_no_request_is_vllms_to_refuse(text):
    assert BatchLines(SloTable({})).read(text) == text


ODD = [None, 5, "x", [], [1], {"vllm_xargs": 5}, {"messages": 7}, {"vllm_xargs": [None]}]


@pytest.mark.parametrize("body", ODD, ids=repr)
@pytest.mark.parametrize("headers", [{"x-slo-ttft-ms": "soon"}, [], "x", {"x-tenant": 5}, None])
def test_an_odd_body_under_odd_headers_ends_no_run_of_ours(body, headers):
    """vLLM's own reader is the one to refuse it."""
    text = json.dumps({"custom_id": "a", "url": CHAT, "body": body, "headers": headers})
    lines = BatchLines(SloTable({}))
    assert json.loads(lines.read(text))["custom_id"] == "a"
    assert isinstance(lines.take("a", CHAT), ParsedRequest | InputError)


def test_the_installed_runner_has_what_we_put_ourselves_into():
    runner = vllm_runner()
    assert "read_file(" in inspect.getsource(runner.run_batch)
    assert "run_request(" in inspect.getsource(runner.handle_endpoint_request)
    assert "run_batch(engine_client, args)" in inspect.getsource(runner.main)
    names = list(inspect.signature(runner.run_request).parameters)
    assert len(names) == 3
    assert "error_msg" in inspect.signature(runner.make_error_request_output).parameters


def test_the_command_imports_nothing_that_the_engines_processes_would_import_again():
    import subprocess
    import sys

    name = "lengthwise.scheduler.vllm_adapter.api.run_batch"
    code = (
        f"import {name}, json, sys; print(json.dumps([*{{m.split('.')[0] for m in sys.modules}}]))"
    )
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not {"numpy", "numba", "torch", "vllm", "pandas"} & set(json.loads(shown.stdout))
