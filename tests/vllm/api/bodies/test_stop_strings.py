"""The engine hears of every answer that vLLM cuts at a stop string, and of no other as whole."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace

import pytest
from echo_client import FakeEngineCore, Params

from lengthwise.scheduler.serving.api.call import Call, calling
from lengthwise.scheduler.serving.wire.hints import Hints
from lengthwise.scheduler.serving.wire.utility_calls import LEFT_EARLY_METHOD
from lengthwise.scheduler.vllm_adapter.api import stop_strings
from lengthwise.scheduler.vllm_adapter.api.sequences import attach


class Core(FakeEngineCore):
    def __init__(self):
        super().__init__()
        self.aborted = []

    async def abort_requests_async(self, request_ids):
        self.aborted += request_ids


def client_of(tokenizer=None):
    processing = pytest.importorskip("vllm.v1.engine.output_processor")
    core, params = Core(), []
    client = SimpleNamespace(
        engine_core=core,
        output_processor=processing.OutputProcessor(tokenizer, log_stats=False),
        generate=lambda prompt, given, request_id: params.append(given.extra_args),
    )
    assert attach(client, lambda route: None)
    return client, core, params


@pytest.fixture
def tokenizer(tiny_dir):
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(tiny_dir)


def begin(client, name, stop, n=1):
    from vllm.sampling_params import SamplingParams
    from vllm.v1.engine import EngineCoreRequest

    params = SamplingParams(stop=stop, max_tokens=500)
    request = EngineCoreRequest(
        name, [1, 2], None, params, None, 0.0, None, None, None, external_req_id=name
    )
    client.generate("p", Params(stop=stop), name)
    client.output_processor.add_request(request, "a b")


async def given(client, name, tokens):
    """As the server's own loop has it."""
    from vllm.v1.engine import EngineCoreOutput

    for token in tokens:
        made = client.output_processor.process_outputs([EngineCoreOutput(name, [token])])
        if made.reqs_to_abort:
            await client.engine_core.abort_requests_async(made.reqs_to_abort)


async def gone(client, name):
    """As the server does where a client hangs up."""
    names = client.output_processor.abort_requests([name], internal=True)
    await client.engine_core.abort_requests_async(names)


def said(core):
    return [one for method, told in core.asked if method == LEFT_EARLY_METHOD for one in told]


@pytest.mark.parametrize("stop", ["rivers", ["nothing", "ri"], ["rivers", "here are"]])
def test_the_tokens_up_to_a_stop_string_are_told(tokenizer, stop):
    client, core, _ = client_of(tokenizer)
    ids = tokenizer.encode("Certainly, here are the rivers: Po", add_special_tokens=False)
    stops = [stop] if isinstance(stop, str) else stop
    until = next(
        count
        for count in range(len(ids))
        if any(word in tokenizer.decode(ids[:count]) for word in stops)
    )

    async def scenario():
        begin(client, "r", stop)
        await given(client, "r", ids)
        await asyncio.sleep(0)

    asyncio.run(scenario())
    assert core.aborted == ["r"]
    assert said(core) == [["r", until]]


def test_who_hangs_up_is_told_as_gone_and_who_ends_is_not_told(tokenizer):
    client, core, _ = client_of(tokenizer)

    async def scenario():
        for name in ("gone", "goes on"):
            begin(client, name, ["never"])
            await given(client, name, [40, 41])
        await gone(client, "gone")
        await gone(client, "gone")
        await asyncio.sleep(0)

    asyncio.run(scenario())
    assert said(core) == [["gone", None]]


def test_nobody_looks_where_no_request_has_stop_strings(tokenizer, monkeypatch):
    monkeypatch.setattr(stop_strings, "_QUIET_STEPS", 5)
    looks = []
    plain = stop_strings._stopping
    monkeypatch.setattr(
        stop_strings, "_stopping", lambda names, states: looks.append(1) or plain(names, states)
    )
    client, core, _ = client_of(tokenizer)
    ids = tokenizer.encode("here", add_special_tokens=False)

    async def scenario():
        begin(client, "other", None)
        await given(client, "other", [40] * 20)
        assert looks == []
        begin(client, "waits", ["here"])
        await given(client, "other", [40] * 20)
        assert len(looks) > 20  # one is left that has no token yet
        await given(client, "waits", ids)
        looks.clear()
        await given(client, "other", [40] * 50)
        assert len(looks) == 6
        await asyncio.sleep(0)

    asyncio.run(scenario())
    assert said(core) == [["waits", len(ids)]]


def test_an_engine_that_does_not_answer_costs_nobody_anything(tokenizer):
    client, core, _ = client_of(tokenizer)
    core.answer = RuntimeError("dead")

    async def scenario():
        begin(client, "r", ["x"])
        await given(client, "r", tokenizer.encode("x", add_special_tokens=False))
        await asyncio.sleep(0)

    asyncio.run(scenario())
    assert core.aborted == ["r"]


@pytest.mark.parametrize(
    ("stop", "call", "told"),
    [
        (["x"], Call([Hints()]), True),
        ("x", Call([Hints()]), True),
        ([], Call([Hints()]), False),
        (None, Call([Hints()]), False),
        (["x"], Call(scope={"path": "/v1/new"}), True),
        (None, Call(scope={"path": "/v1/new"}), False),
    ],
)
def test_the_engine_waits_for_a_word_where_one_will_come(stop, call, told):
    client, _, params = client_of()
    with calling(call):
        client.generate("p", Params({"mine": 1, "lw_may_stop": True}, stop=stop), "r")
    assert (params[0].get("lw_may_stop", False), params[0]["mine"]) == (told, 1)


@pytest.mark.parametrize("without", ["engine_core", "output_processor", "request_states"])
def test_where_vllm_has_no_such_place_nothing_is_promised(without):
    client, params = SimpleNamespace(), []
    client.engine_core = Core()
    client.output_processor = SimpleNamespace(process_outputs=lambda outputs: None)
    if without != "request_states":
        client.output_processor.request_states = {}
        delattr(client, without)
    client.generate = lambda prompt, given, request_id: params.append(given.extra_args)
    assert attach(client, lambda route: None)
    with calling(Call([Hints()])):
        client.generate("p", Params(stop=["x"]), "r")
    assert "lw_may_stop" not in params[0]
