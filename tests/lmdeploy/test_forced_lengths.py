"""Lengths forced behind the planner's back, and the calls that carry them."""

import asyncio
import json
from types import SimpleNamespace

import pytest

from lengthwise.data.errors import InputError
from lengthwise.data.slo import Slo
from lengthwise.data.workload import WorkloadRequest
from lengthwise.scheduler.lmdeploy_adapter.forced_lengths import (
    ForcedLengths,
    force,
    is_forced_end,
)
from lengthwise.training.bench.engines.lmdeploy_servers import calls_of


def served(path, body, chunk=7):
    """What an application behind the layer sees of a body, and what is forced in its task."""
    seen = {}

    async def app(scope, receive, send):
        raw = (await receive())["body"]
        seen["body"] = bytes(raw)
        seen["length"] = int(dict(scope["headers"])[b"content-length"])
        seen["parameters"] = SimpleNamespace(max_new_tokens=4096, ignore_eos=False)
        force(seen["parameters"])
        seen["ends"] = [is_forced_end("length", 4096), is_forced_end("stop", 4096),
                        is_forced_end("length", 77)]  # fmt: skip

    parts = [body[i : i + chunk] for i in range(0, len(body), chunk)] or [b""]

    async def receive():
        body = parts.pop(0) if parts else b""
        return {"type": "http.request", "body": body, "more_body": bool(parts)}

    headers = [(b"content-length", str(len(body)).encode())]
    scope = {"type": "http", "method": "POST", "path": path, "headers": headers}
    asyncio.run(ForcedLengths(app)(scope, receive, None))
    return seen


def test_the_forced_length_is_taken_out_and_put_in_later():
    body = {"prompt": "a", "max_tokens": 4096, "lengthwise": {"replay_tokens": 77}}
    seen = served("/v1/completions", json.dumps(body).encode())
    assert json.loads(seen["body"]) == {"prompt": "a", "max_tokens": 4096}
    assert seen["length"] == len(seen["body"])
    assert seen["parameters"] == SimpleNamespace(max_new_tokens=77, ignore_eos=True)
    assert seen["ends"] == [True, False, False]  # at the client's own limit it is a cut


@pytest.mark.parametrize(
    "body",
    [
        b'{"prompt": "a"}',
        b'{"lengthwise": 3}',
        b'{"lengthwise": {}}',
        b'{"lengthwise": {"replay_tokens": 0}}',
        b'{"lengthwise": {"replay_tokens": Infinity}}',
        b"[1]",
        b"{half",
        b"[" * 100_000,
    ],
)
def test_what_forces_nothing_goes_on_as_it_came(body):
    seen = served("/v1/chat/completions", body)
    assert seen["body"] == body
    assert seen["parameters"].max_new_tokens == 4096
    assert seen["ends"] == [False, False, False]


def test_bodies_are_the_same_for_every_server_and_need_text():
    slo = Slo(ttft_s=2.0, slo_class="chat")
    request = WorkloadRequest(0.5, 3, 40, slo, prompt="say it")
    (call,) = calls_of([request], 4096)
    (told,) = calls_of([request], 4096, tell_length=True)
    body = json.loads(call.body)
    assert body["lengthwise"] == {"replay_tokens": 40}
    assert body["vllm_xargs"] == slo.to_xargs()
    assert json.loads(told.body)["vllm_xargs"] == slo.to_xargs() | {"osl": 40}
    assert body["max_tokens"] == 4096
    with pytest.raises(InputError, match="request 0 has no text"):
        calls_of([WorkloadRequest(0.5, 3, 40, slo)], 4096)
