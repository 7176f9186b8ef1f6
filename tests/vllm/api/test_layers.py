"""Behind vLLM's own layers: its real application, with our middleware named as users name it."""

from __future__ import annotations

import asyncio
import json
from types import SimpleNamespace

import httpx
import pytest
from echo_client import CHAT, COMPLETIONS, FakeEngineCore, WordPredictor
from engineless import FakeEngine, make_request
from starlette.responses import JSONResponse
from vllm_app import vllm_app

from lengthwise.data.slo import SloTable, parse_slo
from lengthwise.scheduler.serving.api import middleware
from lengthwise.scheduler.serving.api.api_metrics import api_metrics
from lengthwise.scheduler.serving.api.predicting.prediction import PredictionService
from lengthwise.scheduler.serving.settings import make_settings
from lengthwise.scheduler.vllm_adapter.api.vllm_middleware import LengthwiseMiddleware

ORIGIN = {"origin": "http://page.example"}
KEY = {"authorization": "Bearer secret"}
BODY = {"model": "m", "prompt": "one two", "max_tokens": 3}


class Server:
    """vLLM's application as `build_app` makes it, no engine behind; its layers are vLLM's own."""

    def __init__(self, monkeypatch, api_key=("secret",), **settings):
        self.predictor, self.core, self.reached = WordPredictor(), FakeEngineCore(), []
        settings = make_settings({"slo_table": {"chat": {"ttft_ms": 500}}} | settings)
        service = PredictionService(settings, api_metrics(), self.predictor)
        monkeypatch.setattr(middleware, "settings_from_environment", lambda: settings)
        monkeypatch.setattr(middleware, "load_service", lambda *_: service)
        self.app = vllm_app(
            api_key=list(api_key),
            allowed_origins=[ORIGIN["origin"]],
            middleware=["lengthwise.Middleware"],
        )
        self.app.state.engine_client = SimpleNamespace(
            engine_core=self.core, generate=lambda *a, **k: None
        )
        for route in self.app.routes:
            if getattr(route, "path", None) in (CHAT, COMPLETIONS, "/v1/responses"):
                route.app = self._reach

    async def _reach(self, scope, receive, send):
        self.reached.append(await receive())
        await JSONResponse({})(scope, receive, send)

    def post(self, path, body, headers=None):
        async def call():
            transport = httpx.ASGITransport(app=self.app)
            async with httpx.AsyncClient(transport=transport, base_url="http://t") as client:
                said = headers.items() if isinstance(headers, dict) else headers or ()
                return await client.post(path, headers=[*ORIGIN.items(), *said], **body)

        return asyncio.run(call())


WRONG = [
    ({"json": BODY}, {"x-slo-class": "vip"}),
    ({"json": BODY}, {"x-slo-ttft-ms": "soon"}),
    ({"json": BODY | {"vllm_xargs": {"tenant": "a b"}}}, {}),
    ({"json": BODY | {"prompt": "x" * 3000}}, {}),
    ({"json": BODY}, {"x-slo-class": "chat"}),
]


@pytest.mark.parametrize(("body", "headers"), WRONG)
@pytest.mark.parametrize("path", [CHAT, COMPLETIONS, "/v1/responses", "/v1/messages"])
@pytest.mark.parametrize("key", [{}, {"authorization": "Bearer wrong"}])
def test_without_the_key_nothing_is_read_judged_or_said(monkeypatch, path, body, headers, key):
    server = Server(monkeypatch, max_body_bytes=2000, admission={"mode": "shed"})
    server.core.answer = {"action": "shed", "retry_after_s": 1.0}
    read = []
    monkeypatch.setattr(middleware, "read_limited", lambda *_: read.append(1) or asyncio.sleep(0))
    answer = server.post(path, body, headers | key)
    assert (answer.status_code, answer.json()) == (401, {"error": "Unauthorized"})
    assert (read, server.predictor.calls, server.core.asked) == ([], [], [])


@pytest.mark.parametrize(
    ("body", "headers", "status"),
    [(*WRONG[0], 400), (*WRONG[1], 400), (*WRONG[2], 400), (*WRONG[3], 413), (*WRONG[4], 503)],
)
def test_a_refusal_of_ours_leaves_through_the_servers_layers(monkeypatch, body, headers, status):
    server = Server(monkeypatch, max_body_bytes=2000, admission={"mode": "shed"})
    server.core.answer = {"action": "shed", "retry_after_s": 1.0}
    answer = server.post(COMPLETIONS, body, KEY | headers | {"x-request-id": "mine"})
    assert answer.status_code == status
    assert answer.headers["access-control-allow-origin"] == ORIGIN["origin"]
    assert answer.headers["x-request-id"] == "mine"
    assert server.reached == []


def test_with_the_key_a_request_reaches_its_route_as_it_came(monkeypatch):
    server = Server(monkeypatch)
    raw = json.dumps(BODY, indent=3).encode()
    answer = server.post(COMPLETIONS, {"content": raw}, KEY)
    assert answer.status_code == 200
    assert server.reached == [{"type": "http.request", "body": raw, "more_body": False}]
    assert server.predictor.calls == [["one two"]]


def test_our_own_routes_ask_for_the_key_and_answer_through_the_layers(monkeypatch):
    server = Server(monkeypatch)
    answer = server.post("/lengthwise/reload", {})
    assert answer.status_code == 401
    assert answer.headers["access-control-allow-origin"] == ORIGIN["origin"]
    assert server.post("/lengthwise/reload", {}, KEY).status_code == 409


@pytest.mark.parametrize(
    "given",
    [
        ["Bearer secret"], ["bearer secret"], ["BEARER secret"], ["Bearer  secret"], ["secret"],
        ["Basic secret"], ["Bearer secret "], ["Bearer Secret"], ["Bearer"], [""], [],
        ["Bearer secret", "Bearer x"], ["Bearer x", "Bearer secret"], ["Bearer secret, Bearer x"],
        [b"Bearer \xe9"], [b"Bearer secret\xe9"],
    ],
    ids=repr,
)  # fmt: skip
def test_our_own_routes_take_the_keys_that_the_server_takes(monkeypatch, given):
    server = Server(monkeypatch)
    headers = [("authorization", value) for value in given]
    served = server.post(COMPLETIONS, {"json": BODY}, headers).status_code == 200
    assert (server.post("/lengthwise/reload", {}, headers).status_code == 409) == served


def test_where_the_layers_are_not_known_a_stranger_is_passed_on_unread(monkeypatch):
    reached = []

    async def framework(scope, receive, send):
        reached.append(await receive())
        await JSONResponse({}, 401)(scope, receive, send)

    predictor = WordPredictor()
    settings = make_settings({})
    service = PredictionService(settings, api_metrics(), predictor)
    ours = LengthwiseMiddleware(framework, settings, service)
    app = SimpleNamespace(state=SimpleNamespace(args=SimpleNamespace(api_key=["secret"])))

    async def call(headers):
        sent = []

        async def receive():
            return {"type": "http.request", "body": b'{"prompt": "hi"}'}

        async def send(message):
            sent.append(message)

        scope = {"type": "http", "method": "POST", "path": COMPLETIONS, "app": app,
                 "headers": [(k.encode(), v.encode()) for k, v in headers.items()]}  # fmt: skip
        await ours(scope, receive, send)
        return sent[0]["status"]

    assert asyncio.run(call({"x-slo-class": "a b"})) == 401
    assert predictor.calls == []
    assert asyncio.run(call(KEY | {"x-slo-class": "a b"})) == 400


# -- never stricter than stock --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("xargs", "headers"),
    [
        ({}, {"x-slo-ttft-ms": "0"}),
        ({}, {"x-slo-ttft-ms": "-1"}),
        ({}, {"x-slo-e2e-ms": "172800000"}),
        ({}, {"x-slo-ttft-ms": ""}),
        ({"slo_ttft_ms": None}, {}),
        ({"slo_class": None, "tenant": None, "osl": None}, {}),
        ({"slo_class": "", "tenant": " ", "osl": ""}, {}),
        ({"slo_e2e_ms": 1e300}, {}),
        ({}, {"x-gateway-inference-objective": "not in the table"}),
        ({}, {"x-gateway-inference-fairness-id": "user 7, of the gateway's"}),
        ({}, {"x-gateway-inference-fairness-id": "u" * 5000}),
    ],
)
@pytest.mark.parametrize("admission", ["off", "shed"])
def test_what_gateways_and_clients_send_is_served(monkeypatch, xargs, headers, admission):
    server = Server(monkeypatch, admission={"mode": admission})
    body = BODY | {"vllm_xargs": xargs | {"mine": 1}}
    assert server.post(COMPLETIONS, {"json": body}, KEY | headers).status_code == 200
    sent = json.loads(server.reached[0]["body"])["vllm_xargs"]
    assert None not in sent.values()
    assert {key: value for key, value in sent.items() if value != 1e300} == {"mine": 1}


@pytest.mark.parametrize("headers", [{"x-slo-ttft-ms": "0"}, {"x-slo-e2e-ms": "-3"}])
def test_what_is_lost_already_is_served_and_not_shed(monkeypatch, headers):
    server = Server(monkeypatch, admission={"mode": "shed"})
    server.core.answer = {"action": "shed", "retry_after_s": 9.0}
    assert server.post(COMPLETIONS, {"json": BODY}, KEY | headers).status_code == 200
    assert server.post(COMPLETIONS, {"json": BODY}, KEY | {"x-slo-ttft-ms": "2"}).status_code == 503


@pytest.mark.parametrize("megabytes", [9, 40])
def test_a_large_body_is_served_unless_the_operator_set_a_limit(monkeypatch, megabytes):
    """Beyond what we read it streams through, whole, under the objectives of its headers."""
    raw = json.dumps(BODY | {"prompt": "x" * (megabytes * 1_000_000)}).encode()

    def chunks():
        for start in range(0, len(raw), 1_000_000):
            yield raw[start : start + 1_000_000]

    async def whole(scope, receive, send):
        body, more = b"", True
        while more:
            message = await receive()
            body, more = body + message.get("body", b""), message.get("more_body", False)
        await JSONResponse({"whole": body == raw})(scope, receive, send)

    async def content():
        for chunk in chunks():
            yield chunk

    server = Server(monkeypatch)
    for route in server.app.routes:
        if getattr(route, "path", None) == COMPLETIONS:
            route.app = whole
    assert server.post(COMPLETIONS, {"content": content()}, KEY).json() == {"whole": True}
    limited = Server(monkeypatch, max_body_bytes=8_000_000)
    assert limited.post(COMPLETIONS, {"content": content()}, KEY).status_code == 413


def test_what_is_lost_goes_after_those_that_can_be_met(tiny_dir):
    engine = FakeEngine(tiny_dir, {"plan_share": 1.0}, max_num_seqs=1)
    engine.add(make_request("running", pred_quantiles=[60.0] * 12), 60)
    engine.step()
    lost = parse_slo({}, {"x-slo-ttft-ms": "0"}, SloTable({})).to_xargs()
    for name in ("lost", "lost-too"):
        engine.add(make_request(name, pred_quantiles=[20.0] * 12, **lost), 20)
    for name in ("a", "b"):
        engine.add(make_request(name, pred_quantiles=[20.0] * 12, slo_e2e_ms=60_000), 20)
    engine.run()
    assert set(engine.admitted[1:3]) == {"a", "b"}
    assert set(engine.admitted[3:]) == {"lost", "lost-too"}
    assert engine.scheduler.lengthwise_status()["outcomes"]["default"] | {"finished": 0} == {
        "finished": 0, "met": 2, "missed": 2,
    }  # fmt: skip
