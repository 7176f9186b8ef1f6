"""The front with instances that are none: what it sends them, and what becomes of a lost one."""

from __future__ import annotations

import asyncio
import json

import pytest

pytest.importorskip("ray.serve", reason="needs lengthwise[fleet]", exc_type=ImportError)

from ray.exceptions import ActorDiedError

from lengthwise.scheduler.ray_adapter.fleet_front import Front
from lengthwise.scheduler.ray_adapter.forwarded import Forwarded, Started
from lengthwise.scheduler.serving.settings import ServerSettings

OK = [Started(200, [(b"content-type", b"application/json")]), b'{"ok":', b" true}"]
CHAT = {"model": "tiny", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 30}


class Parts:
    """What Serve gives for a streaming call."""

    def __init__(self, parts):
        self._parts = iter(parts)
        self.cancelled = False

    def __aiter__(self):
        return self

    async def __anext__(self):
        part = next(self._parts, None)
        if part is None:
            raise StopAsyncIteration
        if part == "wait":
            await asyncio.sleep(60)
        if isinstance(part, BaseException):
            raise part
        return part

    def cancel(self):
        self.cancelled = True


class Broadcast:
    def __init__(self, said):
        self._said = said

    async def results_async(self, *, timeout_s, return_exceptions):
        return self._said


class Handle:
    """Serve's handle; each call answers with the next of ``answers``."""

    def __init__(self, *answers, engines=None):
        self.answers = list(answers)
        self.engines = engines or {"a": {"policy": "sa"}, "b": {"policy": "sa"}}
        self.sent, self.given, self.asked = [], [], []

    def options(self, **options):
        assert options == {"stream": True, "method_name": "forward"}
        return self

    def remote(self, request):
        self.sent.append(request)
        self.given.append(Parts(self.answers.pop(0)))
        return self.given[-1]

    def broadcast(self, method, *args):
        self.asked.append((method, *args))
        if method == "ask_engine":
            return Broadcast(list(self.engines.items()))
        return Broadcast([(name, OK[0], b"body of " + name.encode()) for name in self.engines])


def http(front, path, body=None, headers=(), method="POST", leaves_after_s=None):
    """(status, body) of one call, as far as it got; the status None where there was none."""
    raw = b"" if body is None else json.dumps(body).encode()
    got = {"status": None, "body": b"", "complete": False}

    async def play():
        given = False

        async def receive():
            nonlocal given
            if not given:
                given = True
                return {"type": "http.request", "body": raw, "more_body": False}
            await asyncio.sleep(3600 if leaves_after_s is None else leaves_after_s)
            return {"type": "http.disconnect"}

        async def send(message):
            if message["type"] == "http.response.start":
                got["status"] = message["status"]
            else:
                got["body"] += message.get("body", b"")
                got["complete"] = not message.get("more_body", False)

        scope = {"type": "http", "method": method, "path": path, "query_string": b"",
                 "headers": list(headers), "client": ("127.0.0.1", 9)}  # fmt: skip
        await front(scope, receive, send)

    asyncio.run(play())
    return got


def front_of(handle, **settings):
    values = {"lengths": "none", "allow_configure": True, **settings}
    return Front(ServerSettings(**values), handle)


def test_objectives_come_by_header_as_by_body_and_the_answer_streams_through():
    handle = Handle(OK, OK)
    front = front_of(handle)
    by_header = [(b"x-slo-e2e-ms", b"4000"), (b"X-Data-Parallel-Rank", b"1")]
    got = http(front, "/v1/chat/completions", CHAT, by_header)
    assert (got["status"], got["body"], got["complete"]) == (200, b'{"ok": true}', True)
    http(front, "/v1/chat/completions", {**CHAT, "vllm_xargs": {"slo_e2e_ms": 4000}})
    for sent in handle.sent:
        assert isinstance(sent, Forwarded)
        (hints,) = sent.call.hints
        assert hints.slo.e2e_s == sent.fleet.e2e_s == 4.0
        assert hints.fleet_key == sent.fleet.key
        assert sent.fleet.quantiles.max() <= 30
        assert not [name for name, _ in sent.headers if name.lower() == b"x-data-parallel-rank"]


def test_what_is_no_generation_is_not_told_to_the_router():
    handle = Handle(OK)
    assert http(front_of(handle), "/v1/models", method="GET")["status"] == 200
    assert handle.sent[0].call is None
    assert handle.sent[0].fleet is None


def test_a_bad_objective_never_reaches_an_instance():
    handle = Handle()
    got = http(front_of(handle), "/v1/chat/completions", CHAT, [(b"x-slo-e2e-ms", b"soon")])
    assert got["status"] == 400
    assert handle.sent == []


def test_a_request_whose_instance_dies_before_it_answers_is_sent_again_under_another_name():
    handle = Handle([ActorDiedError()], OK)
    got = http(front_of(handle), "/v1/chat/completions", CHAT)
    assert (got["status"], got["complete"]) == (200, True)
    first, second = handle.sent
    assert first.fleet.key != second.fleet.key == second.call.hints[0].fleet_key


def test_nothing_is_answered_twice_once_an_instance_had_begun():
    handle = Handle([*OK[:2], ActorDiedError()], OK)
    with pytest.raises(ActorDiedError):
        http(front_of(handle), "/v1/chat/completions", CHAT)
    assert len(handle.sent) == 1


def test_a_stream_that_was_only_accepted_is_sent_again():
    """vLLM answers a stream's status at once, its first token much later."""
    handle = Handle([OK[0], ActorDiedError()], OK)
    got = http(front_of(handle), "/v1/chat/completions", {**CHAT, "stream": True})
    assert (got["status"], got["body"], got["complete"]) == (200, b'{"ok": true}', True)
    assert len(handle.sent) == 2


def test_an_answer_without_a_body_is_whole():
    got = http(front_of(Handle([Started(204, [])])), "/health", method="GET")
    assert (got["status"], got["body"], got["complete"]) == (204, b"", True)


def test_an_instance_that_joins_is_configured_as_the_others_were():
    handle = Handle()
    front = front_of(handle)
    assert http(front, "/lengthwise/configure", {"policy": "edf", "reset_stats": True})
    told = len(handle.asked)
    asyncio.run(front._instances.tell_newcomers({"a", "b"}))
    assert len(handle.asked) == told
    handle.engines["c"] = {"policy": "sa"}
    asyncio.run(front._instances.tell_newcomers({"a", "b", "c"}))
    assert handle.asked[-1] == ("ask_engine", "lengthwise_configure", {"policy": "edf"})
    told = len(handle.asked)
    asyncio.run(front._instances.tell_newcomers({"a", "b", "c"}))
    assert len(handle.asked) == told


def test_an_instance_that_joins_is_not_told_another_policys_parameters():
    handle = Handle()
    front = front_of(handle)
    for body in ({"policy": "sa", "policy_params": {"horizon": 2.0}}, {"policy": "edf"}):
        assert http(front, "/lengthwise/configure", body)
    handle.engines["c"] = {"policy": "sa"}
    asyncio.run(front._instances.tell_newcomers({"c"}))
    assert handle.asked[-1] == ("ask_engine", "lengthwise_configure", {"policy": "edf"})


def test_it_gives_up_where_one_instance_after_another_is_lost():
    handle = Handle(*[[ActorDiedError()]] * 4)
    with pytest.raises(ActorDiedError):
        http(front_of(handle), "/v1/chat/completions", CHAT)
    assert len(handle.sent) == 3


def test_a_client_that_leaves_ends_the_call_at_its_instance():
    handle = Handle([*OK[:2], "wait"])
    got = http(front_of(handle), "/v1/chat/completions", CHAT, leaves_after_s=0.05)
    assert got["status"] == 200
    assert not got["complete"]
    assert handle.given[0].cancelled


def test_status_and_configure_speak_for_all_instances():
    handle = Handle(engines={"a": {"policy": "sa"}, "b": {"policy": "edf"}})
    front = front_of(handle)
    found = json.loads(http(front, "/lengthwise/status", method="GET")["body"])
    assert [(one["name"], one["policy"]) for one in found["instances"]] == [
        ("a", "sa"), ("b", "edf"),
    ]  # fmt: skip
    assert http(front, "/lengthwise/configure", {"policy": "edf"})["status"] == 200
    assert handle.asked[-1][:2] == ("ask_engine", "lengthwise_configure")
    handle.engines["b"] = {"error": "no such policy"}
    assert http(front, "/lengthwise/configure", {"policy": "edf"})["status"] == 400


def test_what_switches_something_goes_to_every_instance():
    handle = Handle()
    assert http(front_of(handle), "/reset_prefix_cache")["body"] in (b"body of a", b"body of b")
    assert handle.asked[-1][0] == "answer"


def test_metrics_are_those_of_every_instance():
    handle = Handle()
    got = http(front_of(handle), "/metrics", method="GET")
    assert got["status"] == 200
    assert b"lengthwise_fleet_retries_total" in got["body"]


def test_nothing_is_read_for_a_stranger():
    handle = Handle(OK)
    front = Front(ServerSettings(lengths="none"), handle, api_keys=["secret"])
    assert http(front, "/lengthwise/status", method="GET")["status"] == 401
    http(front, "/v1/chat/completions", CHAT)
    assert handle.sent[0].call is None  # vLLM, which has the key too, turns it away
