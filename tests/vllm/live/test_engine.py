"""The real engine: one lengthwise server on `tiny` for the whole file."""

from __future__ import annotations

import asyncio
import json
import re
import time
from pathlib import Path

import httpx
import numpy as np
import pytest

from lengthwise.data.request_log import FILE_PATTERN, read_request_log

pytestmark = pytest.mark.vllm

LIMIT_S = 120.0
CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"


def completion(replay_id=None, prompt="Tell me about rivers.", max_tokens=1000, **extra):
    xargs = extra.pop("xargs", {})
    if replay_id is not None:
        xargs = xargs | {"replay_id": replay_id}
    return {
        "model": "tiny", "prompt": prompt, "max_tokens": max_tokens, "temperature": 0,
        "vllm_xargs": xargs,
    } | extra  # fmt: skip


def chat(replay_id, **extra):
    body = completion(replay_id, **extra)
    body["messages"] = [{"role": "user", "content": body.pop("prompt")}]
    return body


def forced(replay_id):
    """The length the fixture's table gives the id."""
    return 1 + (37 * replay_id) % 61


def post(server, path, body, headers=None):
    return httpx.post(server.url + path, json=body, headers=headers, timeout=LIMIT_S)


def together(server, calls):
    """Post all at once; the answers in the order of the calls."""

    async def run():
        limits = httpx.Limits(max_connections=None)
        async with httpx.AsyncClient(timeout=LIMIT_S, limits=limits) as client:
            return await asyncio.gather(
                *(client.post(server.url + path, json=body) for path, body in calls)
            )

    return asyncio.run(run())


def configure(server, **body):
    answer = post(server, "/lengthwise/configure", body)
    assert answer.status_code == 200, answer.text


def status(server):
    return httpx.get(f"{server.url}/lengthwise/status", timeout=LIMIT_S).json()


def logged(server, request_id, patience_s=10.0):
    """The request log's row whose engine id contains the client's."""
    deadline = time.monotonic() + patience_s
    while time.monotonic() < deadline:
        if any(server.log_dir.glob(FILE_PATTERN)):  # the texts' file may be there before it
            rows = read_request_log(server.log_dir)
            found = rows[rows["request_id"].str.contains(request_id, regex=False)]
            if len(found):
                return found.iloc[0]
        time.sleep(0.2)
    raise AssertionError(f"no row for {request_id}")


@pytest.fixture(autouse=True)
def usual_configuration(server):
    configure(server, policy="sa", lengths="learned", reset_stats=True)


def usage(answer):
    assert answer.status_code == 200, answer.text
    return answer.json()["usage"]["completion_tokens"]


def streamed_usage(server, path, body, headers=None):
    body = body | {"stream": True, "stream_options": {"include_usage": True}}
    chunks = []
    with httpx.stream(
        "POST", server.url + path, json=body, headers=headers, timeout=LIMIT_S
    ) as answer:
        assert answer.status_code == 200
        for line in answer.iter_lines():
            if line.startswith("data: ") and line != "data: [DONE]":
                chunks.append(json.loads(line.removeprefix("data: ")))
    return chunks[-1]["usage"]["completion_tokens"], len(chunks)


def test_chat_and_completions_with_slo_reach_the_request_log(server):
    headers = {"x-slo-class": "code", "x-slo-ttft-ms": "30000"}
    answer = post(server, CHAT, chat(5, xargs={"tenant": "t1"}), headers)
    assert usage(answer) == forced(5)
    row = logged(server, answer.json()["id"])
    assert (row["slo_class"], row["slo_ttft_ms"], row["slo_e2e_ms"]) == ("code", 30000, 60000)
    assert row["predictor"] == "test/1"
    assert row["quantiles"]["0.05"] <= row["predicted_tokens"] <= row["quantiles"]["0.99"]
    assert (row["status"], row["output_tokens"], row["tenant"]) == ("finished", forced(5), "t1")
    assert bool(row["met"]) is True
    assert row["prompt"] == "Tell me about rivers."
    assert len(row["features"]) > 10

    answer = post(server, COMPLETIONS, completion(6, xargs={"slo_class": "chat"}))
    assert usage(answer) == forced(6)
    assert logged(server, answer.json()["id"])["slo_tpot_ms"] == 200


@pytest.mark.parametrize(("path", "make"), [(CHAT, chat), (COMPLETIONS, completion)])
def test_streaming_is_untouched(server, path, make):
    tokens, chunks = streamed_usage(server, path, make(9), {"x-slo-ttft-ms": "5000"})
    assert tokens == forced(9)
    assert chunks > 5  # several tokens may share a chunk on a busy machine


def test_forced_lengths_are_exact_under_load(server):
    calls = [(COMPLETIONS, completion(i, prompt=f"Request {i}.")) for i in range(24)]
    lengths = [usage(answer) for answer in together(server, calls)]
    assert lengths == [forced(i) for i in range(24)]


def test_a_table_that_grows_is_read_without_a_restart(server):
    table = json.loads(server.replay_table.read_text())
    server.replay_table.write_text(json.dumps(table | {"new": 17}))
    assert usage(post(server, COMPLETIONS, completion("new"))) == 17


@pytest.mark.parametrize("value", ["NaN", "soon", [5], "5 s"])
def test_a_bad_slo_is_a_400_and_serving_goes_on(server, value):
    answer = post(server, COMPLETIONS, completion(1, xargs={"slo_ttft_ms": value}))
    assert answer.status_code == 400
    assert "slo_ttft_ms" in answer.json()["error"]["message"]
    assert usage(post(server, COMPLETIONS, completion(1))) == forced(1)


@pytest.mark.parametrize("value", [-5, 0, 1e30, None, ""])
def test_an_objective_out_of_reach_is_served(server, value):
    answer = post(server, COMPLETIONS, completion(1, xargs={"slo_ttft_ms": value}))
    assert usage(answer) == forced(1)
    wanted = logged(server, answer.json()["id"])["slo_ttft_ms"]
    assert wanted in {-5: (1.0,), 0: (1.0,), 1e30: (86_400_000.0,)}.get(value, (wanted,))
    assert (wanted != wanted) == (value in (None, ""))  # absent is NaN in the frame


def test_an_unknown_class_an_empty_prompt_and_an_endless_one_are_400s(server):
    answer = post(server, CHAT, chat(1), {"x-slo-class": "vip"})
    assert answer.status_code == 400
    assert "vip" in answer.json()["error"]["message"]
    assert post(server, COMPLETIONS, completion(1, prompt="")).status_code == 400
    endless = post(server, COMPLETIONS, completion(1, prompt="word " * 100_000))
    assert endless.status_code == 400
    assert "1536" in endless.json()["error"]["message"]
    assert usage(post(server, COMPLETIONS, completion(1))) == forced(1)


def test_what_only_the_server_may_say_never_reaches_the_engine(server):
    forged = {"pred_quantiles": [1.0] * 12, "pred_version": "forged"}
    answer = post(server, COMPLETIONS, completion(2, xargs=forged))
    assert usage(answer) == forced(2)
    assert logged(server, answer.json()["id"])["predictor"] == "test/1"


def test_a_client_that_leaves_is_logged_as_aborted(server):
    body = completion("long") | {"stream": True}
    headers = {"x-request-id": "leaving-client"}
    with httpx.stream("POST", server.url + COMPLETIONS, json=body, headers=headers) as answer:
        for _ in zip(range(5), answer.iter_lines(), strict=False):
            pass
    row = logged(server, "leaving-client")
    assert row["status"] == "aborted"
    assert 0 < row["output_tokens"] < 500
    assert status(server)["tracked"] == 0


def test_preemption_loses_nothing(server):
    """Eight answers of 500 tokens want 4,000 tokens of a cache of 2,048."""
    calls = [(COMPLETIONS, completion("long", prompt=f"Story {i}.")) for i in range(10)]
    assert [usage(answer) for answer in together(server, calls)] == [500] * 10
    metrics = httpx.get(f"{server.url}/metrics", timeout=LIMIT_S).text
    preempted = [
        float(line.split()[-1])
        for line in metrics.splitlines()
        if line.startswith("vllm:num_preemptions_total")
    ]
    assert sum(preempted) > 0
    assert status(server)["queue"]["waiting"] == 0


def test_several_answers_and_prompts_a_request(server):
    two = post(server, COMPLETIONS, completion(3, n=2, temperature=1.0))
    assert len(two.json()["choices"]) == 2
    assert usage(two) == 2 * forced(3)
    pair = post(server, COMPLETIONS, completion(3, prompt=["One.", "Two."]))
    assert usage(pair) == 2 * forced(3)
    ids = post(server, COMPLETIONS, completion(3, prompt=[5, 6, 7]))
    assert usage(ids) == forced(3)
    assert np.isnan(logged(server, ids.json()["id"])["predicted_tokens"])


def test_who_cannot_meet_its_slo_is_turned_away_and_the_others_are_served(server):
    """No engine has a first token after 5 ms here; the others have no hurry."""

    def gated(e2e_ms, tenant):
        return completion(18, xargs={"slo_class": "gated", "slo_e2e_ms": e2e_ms, "tenant": tenant})

    hurried = [(COMPLETIONS, gated(5, "rush")) for _ in range(6)]
    patient = [(COMPLETIONS, gated(110_000, "calm")) for _ in range(12)]
    calls = [*patient[:6], *hurried, *patient[6:]]
    answers = together(server, calls)
    assert [answer.status_code for answer in answers] == [200] * 6 + [503] * 6 + [200] * 6
    assert all(int(answer.headers["retry-after"]) >= 1 for answer in answers[6:12])
    assert {usage(answer) for answer in answers[:6] + answers[12:]} == {forced(18)}
    document = status(server)
    assert document["outcomes"]["gated"] == {"finished": 12, "met": 12, "missed": 6, "shed": 6}
    assert document["admission"]["shed"] >= 6
    assert document["tenants"]["by_tenant"]["rush"]["missed"] == 6
    assert document["tenants"]["by_tenant"]["calm"]["attained"] == 12
    text = httpx.get(f"{server.url}/metrics", timeout=LIMIT_S).text
    assert 'lengthwise_shed_total{action="shed",slo_class="gated"}' in text
    assert 'lengthwise_tenant_missed_total{tenant="rush"} 6.0' in text
    deadline = time.monotonic() + 10.0
    while True:  # the log is flushed once a second
        rows = read_request_log(server.log_dir)
        shed = rows[(rows["status"] == "shed") & (rows["tenant"] == "rush")]
        if len(shed) == 6 or time.monotonic() > deadline:
            break
        time.sleep(0.2)
    assert len(shed) == 6
    assert set(shed["slo_e2e_ms"]) == {5}


def test_status_and_metrics_show_what_happened(server):
    calls = [
        (COMPLETIONS, completion(i, xargs={"slo_class": "chat"}, prompt=f"R {i}."))
        for i in range(20)
    ]
    document, rounds = status(server), 0
    while rounds == 0 or (rounds < 5 and not document["plan"]["count"]):
        together(server, calls)  # a queue may be gone before its first plan
        document, rounds = status(server), rounds + 1
    assert (document["policy"], document["lengths"]) == ("sa", "learned")
    assert document["predictor_version"] == "test/1"
    assert document["outcomes"]["chat"]["finished"] == 20 * rounds
    assert document["plan"]["count"] > 0
    assert document["plan"]["fallbacks"] == {}
    assert document["plan"]["ms_p50"] < 100
    assert document["capacity"]["kv_tokens"] == 64 * 32
    text = httpx.get(f"{server.url}/metrics", timeout=LIMIT_S).text
    for name in ("requests_total", "slo_attained_total", "plan_seconds", "predictions_total",
                 "requests_attained_total", "drift_alarm", "build_info"):  # fmt: skip
        assert f"lengthwise_{name}" in text
    assert document["drift"]["predictor"] == "test/1"
    assert document["drift"]["by_class"]["chat"]["rows"] >= 20


def test_vllm_has_the_metrics_that_the_dashboard_asks_it_for(server):
    dashboard = Path(__file__).parents[3] / "docs/operations/dashboard.json"
    asked = set(re.findall(r"vllm:\w+", dashboard.read_text()))
    text = httpx.get(f"{server.url}/metrics", timeout=LIMIT_S).text
    assert asked
    assert asked <= set(re.findall(r"^vllm:\w+", text, re.MULTILINE))


def test_the_server_log_has_no_traceback(server):
    assert "Traceback" not in server.server_log.read_text(errors="replace")
