"""The middleware against an echo application: what vLLM would receive, what a client gets."""

from __future__ import annotations

import asyncio
import json
import time
from dataclasses import dataclass
from types import SimpleNamespace

import httpx
import numpy as np
import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, StreamingResponse
from starlette.routing import Route

from lengthwise.scheduler.vllm_adapter.api.api_metrics import api_metrics
from lengthwise.scheduler.vllm_adapter.api.middleware import LengthwiseMiddleware
from lengthwise.scheduler.vllm_adapter.api.predicting.prediction import PredictionService
from lengthwise.scheduler.vllm_adapter.api.routes import READERS
from lengthwise.scheduler.vllm_adapter.settings import make_settings

LEVELS = (0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99)
TABLE = {"chat": {"ttft_ms": 3000.0}, "code": {"e2e_ms": 20000.0}}
CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"
UNREAD = ("/v1/embeddings", "/v1/audio/transcriptions")


class WordPredictor:
    """Predicts ten tokens a word at every level times (1 + level); fails or stalls on demand."""

    version = "words/1"
    feature_contract = "words"
    levels = LEVELS

    def __init__(self):
        self.calls = []
        self.error = None
        self.stall_s = 0.0

    def predict(self, prompts, slo_class=None, rows=None):
        self.calls.append(list(prompts))
        time.sleep(self.stall_s)
        if self.error:
            raise self.error
        words = np.array([[10.0 * len(p.split())] for p in prompts])
        return SimpleNamespace(quantiles=words * (1 + np.array(LEVELS)))

    def features(self, prompts, slo_class=None):
        return np.array([[len(p.split()), np.nan] for p in prompts], dtype=np.float32)

    def class_gaussian(self, slo_class):
        return np.full(len(LEVELS), 77.0 if slo_class == "chat" else 55.0)


class FakeEngineCore:
    def __init__(self):
        self.asked = []
        self.answer = {"policy": "sa", "lengths": "learned"}

    async def call_utility_async(self, method, *args):
        self.asked.append((method, *args))
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer


@dataclass
class Params:
    """What of vLLM's sampling parameters our side reads."""

    extra_args: dict | None = None
    n: int = 1
    max_tokens: int | None = None
    min_tokens: int = 0
    ignore_eos: bool = False
    stop: list | None = None


def engine_groups(path, body):
    """How many sequence groups vLLM starts for a body, as its own routes do."""
    if path.endswith("/batch"):
        return len(body["messages"])
    prompt = body.get("prompt")
    if path == COMPLETIONS and isinstance(prompt, list) and not isinstance(prompt[0], int):
        return len(prompt)
    return 1


async def serve(request: Request):
    """As vLLM: a JSON object starts its sequences, all of them with one `extra_args`."""
    body = await request.body()
    assert int(request.headers["content-length"]) == len(body)
    try:
        received = json.loads(body)
    except (ValueError, RecursionError):
        return JSONResponse({"raw": repr(body)}, status_code=400)
    if not isinstance(received, dict) or request.url.path == "/v1/embeddings":
        return JSONResponse(received)
    client = request.app.state.engine_client
    sampling = received.get("sampling_params") or received
    extra = sampling.get("extra_args") or received.get("vllm_xargs")
    told = []
    for index in range(engine_groups(request.url.path, received)):
        names = ("n", "max_tokens", "min_tokens", "ignore_eos", "stop")
        given = {name: sampling[name] for name in names if name in sampling}
        params = Params(extra, **given)
        before = json.dumps(extra)
        told.append(await client.generate({"prompt_token_ids": [1]}, params, f"r-{index}"))
        assert json.dumps(params.extra_args) == before  # shared by all sequences: not to be touched
    if received.get("stream"):
        return StreamingResponse(
            (f"data: {i}\n\n" for i in range(3)), media_type="text/event-stream"
        )
    shown = [{k: v for k, v in (one or {}).items() if k != "lw_seal"} for one in told]
    return JSONResponse(received | {"vllm_xargs": shown[0], "told": shown})


class Client:
    """A server under test: `post` returns the answer, `received` what the echo was given."""

    def __init__(self, predictor=None, inline=False, **settings):
        app = Starlette(
            routes=[Route(path, serve, methods=["POST"]) for path in (*READERS, *UNREAD, "/v1/new")]
        )
        self.core = FakeEngineCore()
        self.started = []  # the extra arguments of every sequence that reached the engine
        app.state.engine_client = SimpleNamespace(engine_core=self.core, generate=self._generate)
        self.app = app
        settings = make_settings({"slo_table": TABLE} | settings)
        self.service = PredictionService(settings, api_metrics(), predictor, inline)
        self.asgi = LengthwiseMiddleware(self._with_app(app), settings, self.service)

    async def _generate(self, prompt, params, request_id):
        self.started.append(params.extra_args)
        return params.extra_args

    def _with_app(self, app):
        async def inner(scope, receive, send):
            await app(scope, receive, send)

        return inner

    async def _call(self, method, path, **kwargs):
        async def entry(scope, receive, send):
            scope["app"] = self.app
            await self.asgi(scope, receive, send)

        transport = httpx.ASGITransport(app=entry)
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            return await client.request(method, path, **kwargs)

    def call(self, method, path, **kwargs):
        return asyncio.run(self._call(method, path, **kwargs))

    def post(self, path, body, headers=None):
        return self.call("POST", path, json=body, headers=headers)

    def xargs(self, body, headers=None, path=COMPLETIONS):
        answer = self.post(path, body, headers)
        assert answer.status_code == 200, answer.text
        return answer.json()["vllm_xargs"]

    def close(self):
        """Write what is queued of the prompts' texts."""
        if self.asgi.front.texts is not None:
            self.asgi.front.texts.close()

    def told(self, body, headers=None, path=COMPLETIONS):
        """What each of the request's sequences is told."""
        answer = self.post(path, body, headers)
        assert answer.status_code == 200, answer.text
        return answer.json()["told"]


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
    client = Client(WordPredictor(), predictor_version="models:/m/3")
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


def test_features_are_sent_for_the_log_only_when_asked(tmp_path):
    xargs = Client(WordPredictor(), request_log=str(tmp_path)).xargs({"prompt": "one two"})
    assert xargs["lw_features"] == [2.0, 0.0]
    assert xargs["lw_contract"] == "words"
    quiet = Client(WordPredictor(), request_log=str(tmp_path), log_features=False)
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


def test_status_joins_engine_and_api():
    client = Client(WordPredictor(), predictor_version="v7")
    document = client.call("GET", "/lengthwise/status").json()
    assert document["policy"] == "sa"
    assert document["predictor_version"] == "v7"
    assert document["api"]["levels"] == 12
    client.core.answer = RuntimeError("dead")
    assert client.call("GET", "/lengthwise/status").status_code == 503


def test_configure_needs_permission():
    answer = Client().post("/lengthwise/configure", {"policy": "edf"})
    assert answer.status_code == 403


def test_configure_switches_both_processes():
    client = Client(WordPredictor(), allow_configure=True)
    assert client.post("/lengthwise/configure", {"lengths": "none"}).status_code == 200
    method, sent = client.core.asked[-1]
    assert method == "lengthwise_configure"
    assert sent["lengths"] == "none"
    assert "pred_quantiles" not in client.xargs({"prompt": "hi"})


@pytest.mark.parametrize(
    "body",
    [{"lengths": "guess"}, {"nonsense": 1}, [], {"policy": 1}, {"reset_stats": "x"},
     {"policy": "\ud800"}, {"\ud800": 1}],
)  # fmt: skip
def test_a_wrong_configure_body_is_a_400_and_changes_nothing(body):
    client = Client(WordPredictor(), allow_configure=True)
    raw = json.dumps(body).encode()
    assert client.call("POST", "/lengthwise/configure", content=raw).status_code == 400
    assert client.core.asked == []


def test_a_key_that_configure_does_not_know_is_named():
    client = Client(WordPredictor(), allow_configure=True)
    answer = client.post("/lengthwise/configure", {"polic": "sa"}).json()
    assert answer["error"]["message"] == "polic: no such key, got 'sa'"


def test_what_the_engine_refuses_is_a_400_and_changes_nothing():
    client = Client(WordPredictor(), allow_configure=True)
    client.core.answer = {"error": "unknown policy 'magic'"}
    answer = client.post("/lengthwise/configure", {"policy": "magic", "lengths": "none"})
    assert answer.status_code == 400
    assert "magic" in answer.json()["error"]["message"]
    assert client.service.lengths == "learned"


def test_configure_asks_for_vllms_key_where_there_is_one():
    client = Client(allow_configure=True)
    client.app.state.args = SimpleNamespace(api_key=["secret"])
    path, body = "/lengthwise/configure", {"reset_stats": True}
    assert client.post(path, body).status_code == 401
    assert client.post(path, body, {"authorization": "Bearer wrong"}).status_code == 401
    assert client.post(path, body, {"authorization": "Bearer secret"}).status_code == 200
