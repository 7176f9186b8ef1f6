"""The middleware against an echo application: what vLLM would receive, what a client gets."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace

import numpy as np
import pytest
from echo_client import CHAT, COMPLETIONS, LEVELS, Client, WordPredictor

from lengthwise.scheduler.serving.api.api_metrics import api_metrics
from lengthwise.scheduler.serving.settings import make_settings
from lengthwise.scheduler.vllm_adapter.api.vllm_middleware import LengthwiseMiddleware


def test_headers_and_body_are_merged_and_completed_from_the_table():
    client = Client()
    headers = {"x-slo-e2e-ms": "9000", "x-llm-d-slo-ttft-ms": "700", "x-slo-class": "chat"}
    xargs = client.xargs({"prompt": "hi", "vllm_xargs": {"slo_e2e_ms": 8000, "mine": 1}}, headers)
    assert xargs == {
        "slo_class": "chat", "slo_ttft_ms": 700.0, "slo_e2e_ms": 8000.0, "mine": 1,
    }  # fmt: skip
    assert client.xargs({"prompt": "hi"}, {"x-slo-class": "code"})["slo_e2e_ms"] == 20000.0


@pytest.mark.parametrize(
    ("body", "headers", "named"),
    [
        ({"vllm_xargs": {"slo_ttft_ms": "soon"}}, {}, "soon"),
        ({}, {"x-slo-tpot-ms": "nan"}, "nan"),
        ({}, {"x-slo-class": "vip"}, "vip"),
        ({"vllm_xargs": {"slo_class": "vip"}}, {}, "vip"),
        ({"vllm_xargs": {"slo_ttft_ms": True}}, {}, "True"),
        ({"vllm_xargs": {"slo_ttft_ms": [1]}}, {}, "[1]"),
        ({"vllm_xargs": {"osl": 0}}, {}, "osl"),
        ({"vllm_xargs": {"osl": "many"}}, {}, "osl"),
        ({"vllm_xargs": {"tenant": "a b"}}, {}, "tenant"),
        ({}, {"x-tenant": "a b"}, "tenant"),
    ],
)
def test_bad_input_is_a_400_that_names_the_value(body, headers, named):
    answer = Client().post(COMPLETIONS, {"prompt": "hi"} | body, headers)
    assert answer.status_code == 400
    error = answer.json()["error"]
    assert error["type"] == "invalid_request_error"
    assert named in error["message"]
    assert "\n" not in error["message"]


def test_a_literal_nan_in_the_body_is_a_400():
    raw = b'{"prompt": "hi", "vllm_xargs": {"slo_ttft_ms": NaN}}'
    assert Client().call("POST", COMPLETIONS, content=raw).status_code == 400


def test_what_only_the_server_may_say_is_stripped():
    sent = {"pred_quantiles": [1] * 12, "pred_x": 1, "lw_prompt": "x", "replay_id": 3, "osl": 4}
    xargs = Client(lengths="none").xargs({"prompt": "hi", "vllm_xargs": sent})
    assert set(xargs) == {"slo_class", "replay_id"}


def test_the_prediction_travels_as_it_was_said():
    """The engine clips it for planning; what is logged and judged is the prediction itself."""
    client = Client(WordPredictor(), predictor_version="models:/m/3", length_residual=False)
    xargs = client.xargs({"prompt": "one two three", "max_tokens": 45})
    assert xargs["pred_quantiles"] == pytest.approx([30 * (1 + level) for level in LEVELS])
    assert xargs["pred_version"] == "models:/m/3"
    assert "lw_features" not in xargs


def test_chat_messages_are_predicted_on_their_text():
    predictor = WordPredictor()
    messages = [{"role": "user", "content": [{"type": "text", "text": "a b"}]}]
    Client(predictor).xargs({"messages": messages}, path=CHAT)
    assert predictor.calls == [["a b"]]


def test_lengths_decide_where_the_prediction_comes_from():
    body = {"prompt": "one two", "vllm_xargs": {"osl": 300, "slo_class": "chat"}}
    plain = {"prompt": "one two", "vllm_xargs": {"slo_class": "chat"}}
    assert Client(WordPredictor(), lengths="oracle").xargs(body)["pred_quantiles"] == [300.0] * 12
    assert "pred_quantiles" not in Client(WordPredictor(), lengths="oracle").xargs(plain)
    assert Client(WordPredictor(), lengths="learned").xargs(body)["pred_quantiles"][0] == 300.0
    assert Client(WordPredictor(), lengths="class").xargs(body)["pred_quantiles"] == [77.0] * 12
    assert "pred_quantiles" not in Client(WordPredictor(), lengths="none").xargs(body)


def test_features_are_sent_where_somebody_reads_them(tmp_path):
    """The residual does, and a log that is to keep them."""
    log = {"request_log": str(tmp_path)}
    for settings in ({}, {"length_residual": False, **log}, {"log_features": False, **log}):
        xargs = Client(WordPredictor(), **settings).xargs({"prompt": "one two"})
        assert xargs["lw_features"] == [2.0, 0.0]
        assert xargs["lw_contract"] == "words"
    for settings in ({}, {"log_features": False, **log}):
        quiet = Client(WordPredictor(), length_residual=False, **settings)
        assert not {"lw_features", "lw_text_id"} & set(quiet.xargs({"prompt": "one two"}))


@pytest.mark.parametrize("inline", [False, True])
def test_a_raising_predictor_lets_the_request_through(inline):
    predictor = WordPredictor()
    predictor.error = RuntimeError("broken")
    client = Client(predictor, inline)
    assert "pred_quantiles" not in client.xargs({"prompt": "hi"})
    predictor.error = None
    assert "pred_quantiles" in client.xargs({"prompt": "hi"})


@pytest.mark.parametrize("inline", [False, True])
@pytest.mark.parametrize("features", [False, True])
@pytest.mark.parametrize(
    "spoil",
    [lambda q: q * np.nan, lambda q: q[:, :-1], lambda q: q[:-1], lambda q: q[0]],
    ids=["nan", "levels", "rows", "flat"],
)
def test_what_is_no_distribution_is_a_failed_prediction(spoil, features, inline):
    predictor = WordPredictor()
    genuine = predictor.predict
    predictor.predict = lambda *a, **k: SimpleNamespace(quantiles=spoil(genuine(*a, **k).quantiles))
    client = Client(predictor, inline, request_log="log" if features else None)
    failed = api_metrics().predictions.labels("failed")
    before = failed._value.get()
    assert "pred_quantiles" not in client.xargs({"prompt": "hi"})
    assert failed._value.get() == before + 1
    predictor.predict = genuine
    assert "pred_quantiles" in client.xargs({"prompt": "hi"})


def test_a_stuck_predictor_delays_one_request_at_most():
    predictor = WordPredictor()
    predictor.stall_s = 0.6
    client = Client(predictor, predict_timeout_ms=100)

    async def ask():
        answer = await client._call("POST", COMPLETIONS, json={"prompt": "hi"})
        return "pred_quantiles" in answer.json()["vllm_xargs"]

    async def scenario():
        assert not await ask()  # waited for the time-out
        assert not await ask()  # did not even ask: the first call is still stuck
        assert len(predictor.calls) == 1
        predictor.stall_s = 0.0
        for _ in range(50):
            await asyncio.sleep(0.1)
            if await ask():
                return
        raise AssertionError("no prediction after the stuck call ended")

    asyncio.run(scenario())


def test_a_predictor_that_turns_slow_leaves_the_event_loop():
    predictor = WordPredictor()
    client = Client(predictor, inline=True, predict_timeout_ms=5000)
    predictor.stall_s = 0.15
    assert "pred_quantiles" in client.xargs({"prompt": "hi"})
    assert not client.service.champion.inline
    assert "pred_quantiles" in client.xargs({"prompt": "hi"})  # from the thread now


@pytest.mark.parametrize("inline", [False, True])
def test_a_burst_is_predicted_in_few_calls(inline):
    predictor = WordPredictor()
    predictor.stall_s = 0.02
    client = Client(predictor, inline, predict_timeout_ms=5000)

    async def burst():
        calls = [
            client._call("POST", COMPLETIONS, json={"prompt": "a " * (i + 1)}) for i in range(40)
        ]
        return await asyncio.gather(*calls)

    answers = asyncio.run(burst())
    firsts = [a.json()["vllm_xargs"]["pred_quantiles"][0] for a in answers]
    assert firsts == [pytest.approx(10.5 * (i + 1)) for i in range(40)]
    assert len(predictor.calls) < 20


def test_a_huge_body_is_refused_before_it_is_parsed():
    answer = Client(max_body_bytes=1000).post(COMPLETIONS, {"prompt": "x" * 2000})
    assert answer.status_code == 413
    assert "1000" in answer.json()["error"]["message"]


@pytest.mark.parametrize("raw", [b"{not json", b"[1, 2]", b"\xff\xfe\x00", b"", b"1" * 5000])
def test_what_is_no_json_object_is_left_to_vllm(raw):
    answer = Client().call("POST", COMPLETIONS, content=raw)
    assert answer.status_code in (200, 400)
    assert "invalid_request_error" not in answer.text


def test_other_routes_and_streams_pass_untouched():
    client = Client(WordPredictor())
    body = {"input": "x", "vllm_xargs": {"pred_quantiles": 1}}
    assert client.post("/v1/embeddings", body).json() == body
    streamed = client.post(COMPLETIONS, {"prompt": "hi", "stream": True})
    assert streamed.text == "data: 0\n\ndata: 1\n\ndata: 2\n\n"


def test_a_client_that_leaves_while_sending_is_dropped():
    client = Client()
    sent = []

    async def receive():
        return {"type": "http.disconnect"}

    async def send(message):
        sent.append(message)

    scope = {"type": "http", "method": "POST", "path": COMPLETIONS, "headers": []}
    asyncio.run(client.asgi(scope, receive, send))
    assert sent == []


def test_a_disconnect_after_the_body_reaches_the_application():
    seen = []

    async def app(scope, receive, send):
        seen.append((await receive())["type"])
        seen.append((await receive())["type"])

    messages = iter(
        [
            {"type": "http.request", "body": b'{"prompt": ', "more_body": True},
            {"type": "http.request", "body": b'"hi"}'},
            {"type": "http.disconnect"},
        ]
    )

    async def receive():
        return next(messages)

    middleware = LengthwiseMiddleware(app, make_settings({}), Client().service)
    scope = {"type": "http", "method": "POST", "path": COMPLETIONS, "headers": []}
    asyncio.run(middleware(scope, receive, lambda message: None))
    assert seen == ["http.request", "http.disconnect"]
