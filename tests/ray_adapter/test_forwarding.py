"""An ASGI application's answer as a stream of parts; metrics of several instances as one page."""

from __future__ import annotations

import asyncio

import pytest

from lengthwise.scheduler.ray_adapter.asgi_call import answered
from lengthwise.scheduler.ray_adapter.forwarded import Forwarded, Started
from lengthwise.scheduler.ray_adapter.instance_metrics import one_page


def asked(body=b"hello", path="/v1/completions"):
    return Forwarded("POST", path, b"a=1", [(b"content-type", b"text/plain")], body)


async def start(send, status=200):
    await send({"type": "http.response.start", "status": status, "headers": [(b"x", b"y")]})


def run(app, request=None):
    async def collect():
        return [part async for part in answered(app, request or asked())]

    return asyncio.run(collect())


def test_status_headers_and_pieces_come_as_the_application_sends_them():
    async def app(scope, receive, send):
        body = (await receive())["body"]
        await start(send, 201)
        for piece in (scope["query_string"], body, b""):
            await send({"type": "http.response.body", "body": piece, "more_body": True})
        await send({"type": "http.response.body", "body": b"!"})

    assert run(app) == [Started(201, [(b"x", b"y")]), b"a=1", b"hello", b"!"]


def test_what_the_application_does_behind_its_answer_is_not_waited_for_and_ends():
    done = []

    async def app(scope, receive, send):
        await start(send)
        await send({"type": "http.response.body", "body": b"1"})
        await asyncio.sleep(0.01)
        done.append(True)

    async def play():
        assert [part async for part in answered(app, asked())][1:] == [b"1"]
        assert not done
        await asyncio.sleep(0.05)
        assert done

    asyncio.run(play())


def test_an_error_before_the_answer_is_raised():
    async def app(scope, receive, send):
        raise RuntimeError("broken")

    with pytest.raises(RuntimeError, match="broken"):
        run(app)


def test_a_reader_that_stops_is_a_client_that_leaves():
    left = []

    async def app(scope, receive, send):
        await receive()
        await start(send)
        await send({"type": "http.response.body", "body": b"1", "more_body": True})
        left.append((await receive())["type"])

    async def play():
        parts = answered(app, asked())
        assert isinstance(await anext(parts), Started)
        assert await anext(parts) == b"1"
        await parts.aclose()
        await asyncio.sleep(0.01)

    asyncio.run(play())
    assert left == ["http.disconnect"]


PAGE = """# HELP vllm:requests_total Requests.
# TYPE vllm:requests_total counter
vllm:requests_total{engine="0",model="a,b{}"} 3.0
plain_total 4.0
tricky{my_engine="0",text="engine=",engine="3"} 1.0
"""


def test_metrics_carry_their_instance_and_are_described_once():
    lines = one_page("lengthwise_x 1.0\n", {"r1": PAGE, "r2": PAGE}).splitlines()
    assert lines.count("# HELP vllm:requests_total Requests.") == 1
    assert 'vllm:requests_total{engine="r1",model="a,b{}"} 3.0' in lines
    assert 'plain_total{engine="r2"} 4.0' in lines
    assert 'tricky{my_engine="0",text="engine=",engine="r2"} 1.0' in lines
    assert "lengthwise_x 1.0" in lines
    begun = lines.index("# TYPE vllm:requests_total counter")
    assert {line.split("{")[0] for line in lines[begun + 1 : begun + 3]} == {"vllm:requests_total"}
