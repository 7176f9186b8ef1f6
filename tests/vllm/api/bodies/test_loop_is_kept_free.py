"""Large bodies and slow predictors do not keep the event loop."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import threading
from types import SimpleNamespace

import pytest
from echo_client import CHAT, COMPLETIONS, Client, WordPredictor
from starlette.requests import Request

from lengthwise.scheduler.serving.api.asgi import given_again
from lengthwise.scheduler.serving.api.body import large_body, request_body
from lengthwise.scheduler.serving.api.body.request_body import MOST_INLINE_BYTES

BATCH = "/v1/chat/completions/batch"


@pytest.fixture
def readings(monkeypatch):
    """(thread, bytes) of every call of Python's JSON reader."""
    seen = []
    genuine = json.loads

    def loads(text, **options):
        seen.append((threading.get_ident(), len(text)))
        return genuine(text, **options)

    for module in (large_body, request_body):
        own = SimpleNamespace(loads=loads, dumps=json.dumps, detect_encoding=json.detect_encoding)
        monkeypatch.setattr(module, "json", own)
    return seen


LARGE = {
    "text": (COMPLETIONS, {"prompt": "word " * 400_000}),
    "wide text": (COMPLETIONS, {"prompt": "word " * 400_000}),
    "list of texts": (COMPLETIONS, {"prompt": ["word " * 1_000] * 300}),
    "empty lists": (COMPLETIONS, {"prompt": [[]] * 330_000}),
    "empty lists as messages": (CHAT, {"messages": [[]] * 330_000}),
    "messages": (CHAT, {"messages": [{"role": "user", "content": "hello " * 100}] * 5_000}),
    "conversations": (BATCH, {"messages": [[{"role": "user", "content": "a " * 100}]] * 500}),
    "unknown": (CHAT, {"messages": [], "guided": {"a": [{}] * 100_000}}),
    "nulls of ours": (CHAT, {"messages": [], "vllm_xargs": {"osl": None}, "x": "y" * 10**6}),
}


@pytest.mark.parametrize("kind", LARGE)
def test_a_large_body_is_read_in_a_thread_a_little_at_a_time(readings, kind):
    path, body = LARGE[kind]
    reached = []

    async def inner(scope, receive, send):
        received, more = b"", True
        while more:
            message = await receive()
            assert len(message["body"]) <= 2**20
            received, more = received + message["body"], message["more_body"]
        reached.append(received)
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b""})

    client = Client(WordPredictor())
    client.asgi.app = inner
    readings.clear()
    raw = json.dumps(body).encode("utf-16" if kind == "wide text" else "utf-8")
    assert client.call("POST", path, content=raw).status_code == 200
    assert readings
    assert threading.get_ident() not in {thread for thread, _ in readings}
    assert max(size for _, size in readings) <= large_body._HEAD_BYTES + large_body._TAIL_BYTES + 2
    if kind != "nulls of ours":
        assert reached == [raw]


def test_what_a_small_body_costs_the_loop_is_bounded_by_its_size(readings):
    client = Client(WordPredictor())
    readings.clear()
    client.xargs({"prompt": "one two"})
    assert readings
    assert all(size <= MOST_INLINE_BYTES for _, size in readings)
    assert {thread for thread, _ in readings} == {threading.get_ident()}


class Noted(WordPredictor):
    """Notes the thread of each call."""

    def __init__(self):
        super().__init__()
        self.threads = []

    def predict(self, prompts, slo_class=None, rows=None):
        self.threads.append(threading.get_ident())
        return super().predict(prompts, slo_class, rows)


@pytest.mark.parametrize("inline", [False, True])
def test_a_predictor_is_never_called_on_the_loop(inline):
    predictor = Noted()
    assert "pred_quantiles" in Client(predictor, inline).xargs({"prompt": "a b"})
    assert predictor.threads
    assert threading.get_ident() not in predictor.threads


def test_the_first_slow_call_does_not_keep_the_loop():
    """It stands still for a few milliseconds of the half second, and for none of the next call."""
    predictor = WordPredictor()
    predictor.stall_s = 0.5
    client = Client(predictor, inline=True, predict_timeout_ms=5000)

    async def scenario():
        turns, waiting = 0, asyncio.create_task(
            client._call("POST", COMPLETIONS, json={"prompt": "hi"})
        )  # fmt: skip
        while not waiting.done():
            await asyncio.sleep(0.001)
            turns += 1
        assert "pred_quantiles" in waiting.result().json()["vllm_xargs"]
        return turns

    assert asyncio.run(scenario()) > 20
    assert not client.service.champion.inline


def test_after_enough_quick_calls_the_loop_waits_again():
    predictor = WordPredictor()
    client = Client(predictor, inline=True, predict_timeout_ms=5000)
    predictor.stall_s = 0.1
    client.xargs({"prompt": "hi"})
    assert not client.service.champion.inline
    predictor.stall_s = 0.0
    for _ in range(100):
        client.xargs({"prompt": "hi"})
        if client.service.champion.inline:
            return
    raise AssertionError("it never does")


def test_a_slow_predictor_is_never_waited_for():
    client = Client(WordPredictor(), inline=False)
    for _ in range(40):
        client.xargs({"prompt": "hi"})
    assert not client.service.champion.inline


def test_many_prompts_leave_others_their_turn():
    """Thousands of hints are made a few at a time."""
    client = Client(WordPredictor(), inline=True)
    asked = {"prompt": [f"Say {i}." for i in range(4096)]}
    turns = 0

    async def scenario():
        nonlocal turns
        waiting = asyncio.create_task(client._call("POST", COMPLETIONS, json=asked))
        while not waiting.done():
            await asyncio.sleep(0)
            turns += 1
        return waiting.result().json()["told"]

    told = asyncio.run(scenario())
    assert len(told) == 4096
    assert all("pred_quantiles" in one for one in told)
    assert turns > 4096 / 8


def test_a_server_that_is_ready_compiles_nothing_more():
    """In a process of its own: one version of each pass, for bytes and bytearrays."""
    code = """
from lengthwise.scheduler.serving.api.body import large_body
large_body.compile_passes()
passes = [large_body.extent, large_body.find_parts, large_body.ends_of_text]
print(*(len(one.signatures) for one in passes))
raw = b'{"messages": [{"role": "user", "content": "' + b"x" * 900_000 + b'"}], "tools": [{}]}'
large_body.read_large(raw)
large_body.read_large(bytearray(raw))
print(*(len(one.signatures) for one in passes))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["1"] * 6


def test_who_polls_whether_the_client_left_is_told_at_once():
    """As Starlette does: in a scope that is cancelled before it asks."""

    async def gone():
        return {"type": "http.disconnect"}

    async def poll():
        receive = given_again(b"whole", gone)
        assert (await receive())["body"] == b"whole"
        request = Request({"type": "http"}, receive)
        return [await request.is_disconnected() for _ in range(2)]

    assert asyncio.run(poll()) == [True, True]
