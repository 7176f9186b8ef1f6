"""What a client may try: to be taken for the server, to jump the queue, to be served unread."""

from __future__ import annotations

import asyncio
import json

import pytest
from echo_client import CHAT, COMPLETIONS, LEVELS, Client, WordPredictor

from lengthwise.scheduler.serving.api.asgi import route_path
from lengthwise.scheduler.serving.wire.seal import is_private, sealed
from lengthwise.scheduler.vllm_adapter.api.routes import READERS

ONES = [1.0] * len(LEVELS)
FORGED = {
    "pred_quantiles": ONES, "pred_version": "forged", "lw_text_id": "forged", "lw_parts": 5,
    "lw_features": [9.0], "lw_contract": "x", "lw_admission": "downgraded", "lw_whole": "w",
    "lw_textless": True, "lw_shadow": ONES, "lw_seal": "0" * 32,
}  # fmt: skip
TALK = [{"role": "user", "content": "one two"}]
BODIES = {
    CHAT: {"messages": TALK}, COMPLETIONS: {"prompt": "one two"}, "/v1/responses": {"input": "a b"},
    "/v1/messages": {"messages": TALK}, "/v1/chat/completions/batch": {"messages": [TALK, TALK]},
    "/inference/v1/generate": {"token_ids": [1], "sampling_params": {}},
    "/invocations": {"prompt": "one two"}, "/cohere/v2/chat": {"messages": TALK},
    "/v1/new": {"prompt": "one two"},
}  # fmt: skip
PLACES = {
    "arguments": {"vllm_xargs": FORGED},
    "with a seal of our own, as if seen in a log": {"vllm_xargs": sealed(FORGED)},
    "sampling parameters": {"sampling_params": {"extra_args": FORGED}},
    "both": {"vllm_xargs": FORGED, "sampling_params": {"extra_args": sealed(FORGED)}},
    "top level": FORGED,
    "extra_args": {"extra_args": FORGED, "extra_body": {"vllm_xargs": FORGED}},
    "metadata": {"metadata": {"vllm_xargs": FORGED, **FORGED}},
    "nested": {"vllm_xargs": {"vllm_xargs": FORGED, "extra_args": FORGED, "lw": FORGED}},
    "a string": {"vllm_xargs": json.dumps(FORGED)},
    "a list": {"vllm_xargs": [FORGED]},
    "capitals": {"vllm_xargs": {key.upper(): value for key, value in FORGED.items()}},
    "blanks": {"vllm_xargs": {f" {key}": value for key, value in FORGED.items()}},
    "kv transfer": {"kv_transfer_params": FORGED, "VLLM_XARGS": FORGED},
}


def test_every_route_is_tried():
    assert {*READERS, "/v1/new"} == set(BODIES)


def said_by_us(told):
    return {key: value for key, value in (told or {}).items() if is_private(key)}


TRIED = [
    (path, place)
    for path in BODIES
    for place in PLACES
    if path in READERS or place not in ("a string", "a list")  # unread, it is vLLM's to refuse
]


@pytest.mark.parametrize(("path", "place"), TRIED)
def test_nothing_a_client_says_is_taken_for_ours(path, place):
    """Sequences are told what the same body without the forgery is told."""
    body = BODIES[path]
    wanted = [said_by_us(one) for one in told(path, body)]
    found = [said_by_us(one) for one in told(path, body | PLACES[place])]
    for one in (*wanted, *found):  # random ids, and the seal over them
        one.pop("lw_whole", None)
        one.pop("lw_seal", None)
    assert found == wanted


def told(path, body):
    client = Client(WordPredictor(), predictor_version="v1")
    answer = client.call("POST", path, content=json.dumps(body).encode())
    assert answer.status_code == 200
    return client.started


def sequences(raw, headers=(), path=COMPLETIONS, **settings):
    client = Client(WordPredictor(), predictor_version="v1", **settings)
    answer = client.call("POST", path, content=raw, headers=list(headers))
    return answer.status_code, client.started


@pytest.mark.parametrize(
    "raw",
    [
        b'{"prompt": "a", "vllm_xargs": {"x": 1}, "vllm_xargs": {"pred_version": "forged"}}',
        b'{"prompt": "a", "vllm_xargs": {"pred_version": "forged"}, "vllm_xargs": {"x": 1}}',
        b'{"prompt": "a", "vllm_\\u0078args": {"pr\\u0065d_version": "forged", "lw\\u005fa": 1}}',
        b'{"prompt": "a", "vllm_xargs": {"pred_version": 1, "pred_version": "forged"}}',
        '{"prompt": "a", "vllm_xargs": {"pred_version": "forged"}}'.encode("utf-16"),
        b'\xef\xbb\xbf{"prompt": "a", "vllm_xargs": {"pred_version": "forged"}}',
        b'{"vllm_xargs": {"pred_version": "forged"}, "prompt": "a", "x": "' + b"y" * 99_000 + b'"}',
    ],
)  # fmt: skip
def test_however_a_key_is_written(raw):
    status, started = sequences(raw)
    assert status == 200
    assert [one["pred_version"] for one in started] == ["v1"]
    assert [one["pred_quantiles"][0] for one in started] == [10.5]
    assert "lw_a" not in started[0]


@pytest.mark.parametrize(
    ("headers", "key", "value"),
    [
        ([("x-slo-ttft-ms", "9"), ("x-slo-ttft-ms", "5")], "slo_ttft_ms", 5.0),
        ([("X-Slo-Class", "code"), ("x-slo-class", "chat")], "slo_class", "chat"),
        ([("x-tenant", "mine"), ("x-tenant", "gateway")], "tenant", "gateway"),
        ([("x-gateway-inference-fairness-id", "g"), ("x-tenant", "")], "tenant", "g"),
    ],
)
def test_of_a_header_said_twice_the_last_counts(headers, key, value):
    """It is the one that a gateway added; vLLM reads its own that way too."""
    status, (started,) = sequences(b'{"prompt": "a"}', headers)
    assert (status, started[key]) == (200, value)


@pytest.mark.parametrize(
    "headers",
    [
        [("x-slo-ttft-ms", "5"), ("x-slo-ttft-ms", "soon")],
        [("x-slo-ttft-ms", "5, 6")],
        [("x-tenant", "a, b")],
        [("x-slo-ttft-ms", "0x5")],
        [("x-slo-ttft-ms", "1_000")],
        [("x-slo-class", "CHAT")],
    ],
)
def test_a_header_that_is_none_of_ours_is_refused(headers):
    status, started = sequences(b'{"prompt": "a"}', headers)
    assert (status, started) == (400, [])


def test_headers_cannot_say_what_is_private():
    names = ("pred_version", "lw_whole", "x-pred-version", "x-lw-seal", "pred-quantiles")
    _, (started,) = sequences(b'{"prompt": "a"}', [(name, "forged") for name in names])
    assert "forged" not in json.dumps(started)


@pytest.mark.parametrize(
    ("sampling", "version"),
    [
        ({"max_tokens": 1, "max_completion_tokens": 500}, "v1"),
        ({"max_tokens": 500, "max_completion_tokens": 1}, "fixed"),
        ({"max_tokens": 1, "max_completion_tokens": None}, "fixed"),
        ({"max_tokens": 1, "max_completion_tokens": "500"}, "v1"),
    ],
)
def test_nobody_looks_short_by_a_limit_that_does_not_count(sampling, version):
    """As the server reads them: the newer name before the older one."""
    client = Client(WordPredictor(), predictor_version="v1")
    read_by_the_server(client, max_tokens=int(sampling["max_completion_tokens"] or 1))
    (one,) = client.told({"messages": TALK, **sampling}, path=CHAT)
    assert one["pred_version"] == version


def test_a_length_that_the_server_does_not_see_as_fixed_is_not_taken_so():
    client = Client(WordPredictor(), predictor_version="v1")
    read_by_the_server(client, max_tokens=500)
    (one,) = client.told({"prompt": "a b", "max_tokens": 1})
    assert "pred_quantiles" not in one


def read_by_the_server(client, **sampling):
    """What the server makes of a body, whatever it says."""
    engine_client = client.app.state.engine_client
    client.asgi.front.attach(engine_client)
    prepared = engine_client.generate

    async def generate(prompt, params, request_id):
        for name, value in sampling.items():
            setattr(params, name, value)
        return await prepared(prompt, params, request_id)

    engine_client.generate = generate


@pytest.mark.parametrize(
    ("root", "path", "read"),
    [
        ("", COMPLETIONS, True),
        ("/api", "/api" + COMPLETIONS, True),
        ("/api", COMPLETIONS, True),
        ("/v", COMPLETIONS, True),
        ("/v1", "/v1" + COMPLETIONS, True),
        ("/api", "/api/v2/completions", False),
        ("", COMPLETIONS + "\n", True),  # %0A: served as the route by the framework
        ("/api", "/api" + COMPLETIONS + "\n", True),
        ("", COMPLETIONS + "\n\n", False),
        ("", "\n" + COMPLETIONS, False),
    ],
)
def test_under_a_root_path_the_same_routes_are_read(root, path, read):
    client, sent = Client(), []

    async def receive():
        return {"type": "http.request", "body": b'{"prompt": "a", "vllm_xargs": {"osl": "x"}}'}

    async def send(message):
        sent.append(message)

    async def inner(scope, receive, send):
        await send({"type": "http.response.start", "status": 204, "headers": []})

    client.asgi.app = inner
    scope = {"type": "http", "method": "POST", "path": path, "root_path": root, "headers": [],
             "app": client.app}  # fmt: skip
    asyncio.run(client.asgi(scope, receive, send))
    assert sent[0]["status"] == (400 if read else 204)


@pytest.mark.parametrize("path", sorted(READERS))
@pytest.mark.parametrize("end", ["", "\n", "\n\n", "\r\n", " ", "\t", "/", "\u2028"])
def test_a_path_is_ours_where_it_is_the_frameworks(path, end):
    """Whatever a client puts behind a path, no request is served unread."""
    from starlette.routing import Match, Route

    scope = {"type": "http", "method": "POST", "path": path + end, "root_path": ""}
    served = Route(path, lambda _: None, methods=["POST"]).matches(scope)[0] is Match.FULL
    assert (route_path(scope) in READERS) == served


@pytest.mark.parametrize("told", ["1_000", "\u0661\u0662", "0x10", "1e", "nan", "inf", "5, 6"])
@pytest.mark.parametrize("key", ["osl", "slo_ttft_ms"])
def test_numbers_in_text_are_those_of_json(key, told):
    status, _ = sequences(json.dumps({"prompt": "a", "vllm_xargs": {key: told}}).encode())
    assert status == 400
