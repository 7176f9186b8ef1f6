"""The reader beside the server: nobody waits for it, its estimates follow, all is counted."""

from __future__ import annotations

import asyncio
import threading
import time
from types import SimpleNamespace

import numpy as np
import pytest
from echo_client import CHAT, COMPLETIONS, Client, WordPredictor
from prometheus_client import REGISTRY

from lengthwise.scheduler.serving.api.predicting.batching import ServedPredictor
from lengthwise.scheduler.serving.wire.utility_calls import REESTIMATE_METHOD


class Reads:
    """What the desk asks of a causal reader: it reads chats, and cannot read "foreign" texts."""

    model, digest_, read_classes_ = "stub", "0" * 16, ["chat"]

    def __init__(self):
        self.fault_ = None
        self.remembered = {}

    def reads(self, slo_class):
        return slo_class == "chat"

    def states(self):
        return None if self.fault_ else self

    def limit_threads(self, threads):
        assert threads == 1


class Full(WordPredictor):
    """Says ten times what the quick one says, once it may."""

    def __init__(self):
        super().__init__()
        self.causal = SimpleNamespace(reader=Reads())
        self.may = threading.Event()
        self.may.set()
        self.threads = set()

    def read(self, prompts, slo_class=None):
        was_read = np.array(["foreign" not in p for p in prompts])
        return self.predict(prompts, slo_class), was_read

    def predict(self, prompts, slo_class=None, rows=None):
        self.threads.add(threading.current_thread().name)
        assert self.may.wait(10)
        found = super().predict(prompts, slo_class, rows)
        return SimpleNamespace(quantiles=10.0 * found.quantiles)


def served(**settings):
    quick = WordPredictor()
    quick.full = full = Full()
    client = Client(quick, predictor_version="v1", **{"reader_budget_ms": 5000.0} | settings)
    desk = client.asgi.front.reader
    until = time.monotonic() + 10
    while desk._load is not None and not desk._load.is_done:
        assert time.monotonic() < until
        time.sleep(0.005)
    full.calls.clear()
    return client, full, desk


def chat(text, **more):
    return {
        "messages": [{"role": "user", "content": text}],
        "vllm_xargs": {"slo_class": "chat"},
    } | more


async def estimates(client, count=1):
    """Those that reached the engine, once there are so many."""
    until = time.monotonic() + 10
    while True:
        found = [
            one for method, *args in client.core.asked if method == REESTIMATE_METHOD
            for one in args[0]
        ]  # fmt: skip
        if len(found) >= count:
            return found
        assert time.monotonic() < until, client.core.asked
        await asyncio.sleep(0.005)


def counted(outcome):
    return REGISTRY.get_sample_value("lengthwise_reader_prompts_total", {"outcome": outcome}) or 0.0


def test_the_estimate_follows_its_request_under_the_key_that_the_engine_was_told():
    client, full, desk = served()

    async def scenario():
        answer = await client._call("POST", CHAT, json=chat("one two three"))
        return answer.json()["vllm_xargs"], await estimates(client)

    before = counted("ok")
    xargs, ((key, quantiles, version),) = asyncio.run(scenario())
    assert (key, version) == (xargs["lw_reestimate"], "v1")
    assert quantiles == pytest.approx([10 * q for q in xargs["pred_quantiles"]])
    assert full.threads == {"length-reader"}
    assert counted("ok") == before + 1
    status = desk.status()
    assert (status["state"], status["prompts"]) == ("ready", {"ok": 1})
    assert status["each_ms"] > 0


def test_nobody_waits_for_the_reader_and_what_waits_is_read_together():
    client, full, _ = served()

    async def scenario():
        full.may.clear()
        began_s = time.perf_counter()
        for i in range(6):
            await client._call("POST", CHAT, json=chat(f"prompt number {i}"))
        took_s = time.perf_counter() - began_s
        full.may.set()
        await estimates(client, 6)
        return took_s

    assert asyncio.run(scenario()) < 4.0
    assert [len(call) for call in full.calls] == [1, 5]


@pytest.mark.parametrize(
    ("path", "body"),
    [
        (CHAT, chat("a b", vllm_xargs={"slo_class": "code"})),  # where it does not pay
        (CHAT, chat("a b", vllm_xargs={"slo_class": "chat", "osl": 70})),
        (CHAT, chat("a b", max_tokens=1)),  # a length that is known
        (COMPLETIONS, {"prompt": [1, 2, 3], "vllm_xargs": {"slo_class": "chat"}}),
    ],
)
def test_requests_that_it_would_tell_nothing_are_not_read(path, body):
    client, full, desk = served()
    xargs = client.post(path, body).json()["vllm_xargs"]
    assert "lw_reestimate" not in xargs
    assert (full.calls, desk.counts) == ([], {})


@pytest.mark.parametrize("settings", [{"reader_budget_ms": 0}, {"lengths": "class"}])
def test_it_can_be_left_alone(settings):
    client, full, desk = served(**settings)
    assert "lw_reestimate" not in client.post(CHAT, chat("a b")).json()["vllm_xargs"]
    assert full.calls == []
    assert desk.status() is None


def test_prompts_beyond_the_budget_are_served_without_it_and_counted():
    client, full, desk = served(reader_budget_ms=1000)
    desk._each_s = 0.4

    async def scenario():
        full.may.clear()
        told = [
            (await client._call("POST", CHAT, json=chat(f"p {i}"))).json()["vllm_xargs"]
            for i in range(5)
        ]
        full.may.set()
        await estimates(client, 2)
        return told

    told = asyncio.run(scenario())
    assert ["lw_reestimate" in xargs for xargs in told] == [True, True, False, False, False]
    assert all("pred_quantiles" in xargs for xargs in told)
    assert desk.counts == {"busy": 3, "ok": 2}


def test_what_grew_old_while_a_batch_was_read_is_not_read():
    client, full, desk = served(reader_budget_ms=1000)
    now_s = [0.0]
    desk._clock = lambda: now_s[0]
    desk._each_s = 0.001

    async def scenario():
        full.may.clear()
        await client._call("POST", CHAT, json=chat("first"))
        await client._call("POST", CHAT, json=chat("second"))
        now_s[0] = 1.5
        full.may.set()
        await estimates(client, 1)
        await asyncio.sleep(0.05)

    asyncio.run(scenario())
    assert desk.counts == {"ok": 1, "late": 1}


def test_a_reader_found_too_slow_is_tried_again_later():
    client, full, desk = served(reader_budget_ms=1000)
    now_s = [100.0]
    desk._clock = lambda: now_s[0]
    desk._each_s, desk._tried_s = 3.0, 99.0

    async def ask(text, count):
        xargs = (await client._call("POST", CHAT, json=chat(text))).json()["vllm_xargs"]
        if count:
            await estimates(client, count)
        return "lw_reestimate" in xargs

    async def scenario():
        first = await ask("a", 0)
        now_s[0] = 120.0
        return first, await ask("b", 1)

    assert asyncio.run(scenario()) == (False, True)
    assert full.calls == [["b"]]


@pytest.mark.parametrize("harm", ["raises", "nan", "foreign"])
def test_what_cannot_be_read_or_said_is_counted_and_never_sent(harm):
    client, full, desk = served()
    text = "a foreign script" if harm == "foreign" else "a b"
    if harm == "raises":
        full.error = RuntimeError("no reader")
    elif harm == "nan":
        full.predict = lambda *args, **kwargs: SimpleNamespace(quantiles=np.full((1, 12), np.nan))

    async def scenario():
        await client._call("POST", CHAT, json=chat(text))
        while not desk.counts:
            await asyncio.sleep(0.005)
        await asyncio.sleep(0.02)

    asyncio.run(scenario())
    assert desk.counts == {"failed" if harm == "raises" else "unreadable": 1}
    assert not [one for one in client.core.asked if one[0] == REESTIMATE_METHOD]


def test_an_absent_reader_is_told_in_the_status_and_counted():
    client, full, desk = served()
    full.causal.reader.fault_ = "reader 'stub' needs the package"
    assert "lw_reestimate" not in client.post(CHAT, chat("a b")).json()["vllm_xargs"]
    assert desk.counts == {"absent": 1}
    status = client.call("GET", "/lengthwise/status").json()["api"]["reader"]
    assert (status["state"], status["fault"]) == ("absent", "reader 'stub' needs the package")


def test_a_blank_prompt_is_not_read():
    client, full, _ = served()
    client.post(CHAT, chat(" \n"))
    assert full.calls == []


def test_the_reader_of_a_predictor_that_is_swapped_in_is_the_one_asked():
    client, full, desk = served()
    other = WordPredictor()
    other.full = Full()
    client.service.replace(ServedPredictor(other, "v2", quick=False))

    async def scenario():
        while desk._reader() is not None and not desk._load.is_done:
            await asyncio.sleep(0.005)
        await client._call("POST", CHAT, json=chat("a b"))
        return await estimates(client)

    ((_, _, version),) = asyncio.run(scenario())
    assert version == "v2"
    assert full.calls == []
    client.service.replace(ServedPredictor(WordPredictor(), "v3", quick=False))
    assert desk.status() is None


def test_an_engine_that_does_not_answer_harms_nobody():
    client, _, desk = served()
    client.core.answer = RuntimeError("gone")

    async def scenario():
        await client._call("POST", CHAT, json=chat("a b"))
        await estimates(client)
        await asyncio.sleep(0.02)

    asyncio.run(scenario())
    assert desk.counts == {"ok": 1}
