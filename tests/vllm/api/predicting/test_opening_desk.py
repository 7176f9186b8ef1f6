"""The desk that reads answers' openings: nobody waits for it, all that happens is counted."""

from __future__ import annotations

import asyncio
import threading
from collections import defaultdict
from types import SimpleNamespace

import numpy as np
import pytest
from echo_client import CHAT, COMPLETIONS, Client, WordPredictor
from prometheus_client import REGISTRY

from lengthwise.scheduler.serving.api.predicting import opening_desk
from lengthwise.scheduler.serving.api.predicting.batching import ServedPredictor
from lengthwise.scheduler.serving.wire.utility_calls import REESTIMATE_METHOD


class Opener(WordPredictor):
    """Says a hundred tokens for every letter of the opening."""

    opening_tokens = (16, 48)

    def __init__(self):
        super().__init__()
        self.opened = []
        self.may = threading.Event()
        self.may.set()
        self.threads = set()
        self.factor = 100.0

    def reestimate(self, openings, tokens, prompts, slo_class=None):
        self.threads.add(threading.current_thread().name)
        assert self.may.wait(10)
        self.opened += zip(openings, [tokens] * len(openings), prompts, slo_class, strict=True)
        if self.error:
            raise self.error
        lengths = np.array([[self.factor * len(opening)] for opening in openings])
        return SimpleNamespace(quantiles=lengths * (1 + np.array(self.levels)))


class Detokenizer:
    """A letter a token."""

    def __init__(self):
        self.output_text = ""

    def num_output_tokens(self):
        return len(self.output_text)


class Outputs:
    """What of vLLM's output processor is looked at."""

    def __init__(self):
        self.request_states = {}
        self.external_req_ids = defaultdict(list)

    def begin(self, request_id, *names):
        for name in names:
            self.external_req_ids[request_id].append(name)
            self.request_states[name] = SimpleNamespace(detokenizer=Detokenizer())

    def write(self, name, tokens):
        self.request_states[name].detokenizer.output_text += "x" * tokens

    def end(self, request_id):
        for name in self.external_req_ids.pop(request_id):
            del self.request_states[name]


def served(predictor=None, **settings):
    predictor = predictor or Opener()
    client = Client(predictor, predictor_version="v1", **settings)
    outputs = client.app.state.engine_client.output_processor = Outputs()
    return client, outputs, client.asgi.front.openings, predictor


def chat(text, **more):
    return {"messages": [{"role": "user", "content": text}],
            "vllm_xargs": {"slo_class": "chat"}} | more  # fmt: skip


def sent(client):
    return [
        one for method, *args in client.core.asked if method == REESTIMATE_METHOD for one in args[0]
    ]


async def settled(desk, count):
    """Until so many openings are accounted for, and their words are out."""
    async with asyncio.timeout(10):
        while sum(desk.counts.values()) < count:
            await asyncio.sleep(0.005)
        await asyncio.sleep(0.02)


async def post(client, body, path=CHAT):
    return await client._call("POST", path, json=body)


@pytest.fixture(autouse=True)
def by_hand(monkeypatch):
    """No look but the test's own."""
    monkeypatch.setattr(opening_desk, "_LOOK_S", 3600.0)


def counted(outcome):
    return REGISTRY.get_sample_value("lengthwise_openings_total", {"outcome": outcome}) or 0.0


def test_an_answer_is_estimated_anew_at_each_opening_and_once():
    client, outputs, desk, predictor = served()

    async def scenario():
        await post(client, chat("a b"))
        outputs.begin("r-0", "r-0-abc")
        desk.look()
        outputs.write("r-0-abc", 15)
        desk.look()
        assert predictor.opened == []
        outputs.write("r-0-abc", 3)
        desk.look()
        desk.look()
        await settled(desk, 1)
        outputs.write("r-0-abc", 40)
        desk.look()
        await settled(desk, 2)
        desk.look()
        assert desk.status()["watched"] == 0  # nothing more to come of it

    before = counted("ok")
    asyncio.run(scenario())
    said = [(text, tokens, prompt.split()[-2:]) for text, tokens, prompt, _ in predictor.opened]
    assert said == [("x" * 16, 16, ["a", "b"]), ("x" * 48, 48, ["a", "b"])]
    names = [(name, version, tokens) for name, _, version, tokens in sent(client)]
    assert names == [("r-0-abc", "v1", 16), ("r-0-abc", "v1", 48)]
    assert sent(client)[0][1] == pytest.approx([1600.0 * (1 + q) for q in predictor.levels])
    assert counted("ok") == before + 2
    assert predictor.threads == {"answer-openings"}


def test_of_two_openings_passed_at_once_the_longer_is_read():
    client, outputs, desk, predictor = served()

    async def scenario():
        await post(client, chat("a b"))
        outputs.begin("r-0", "r")
        outputs.write("r", 200)
        desk.look()
        await settled(desk, 1)

    asyncio.run(scenario())
    assert [tokens for _, tokens, _, _ in predictor.opened] == [48]
    assert predictor.opened[0][0] == "x" * 48


def test_each_sample_and_each_prompt_of_a_request_is_its_own():
    client, outputs, desk, predictor = served()

    async def scenario():
        await post(client, {"prompt": ["one", "two"], "n": 2}, COMPLETIONS)
        outputs.begin("r-0", "0_r", "1_r")
        outputs.begin("r-1", "2_r", "3_r")
        for i in range(4):
            outputs.write(f"{i}_r", 16 + i)
        desk.look()
        await settled(desk, 4)

    asyncio.run(scenario())
    assert sorted(name for name, *_ in sent(client)) == ["0_r", "1_r", "2_r", "3_r"]
    assert sorted(prompt for _, _, prompt, _ in predictor.opened) == ["one", "one", "two", "two"]


def test_nobody_waits_for_a_thread_that_is_stuck_and_old_openings_are_let_go(monkeypatch):
    monkeypatch.setattr(opening_desk, "_MOST_WAITING", 3)
    client, outputs, desk, predictor = served()
    now_s = [0.0]
    desk._clock = lambda: now_s[0]

    async def scenario():
        predictor.may.clear()
        for i in range(8):
            outputs.external_req_ids.clear()
            await post(client, chat(f"p {i}"))
            outputs.begin("r-0", f"r{i}")
            outputs.write(f"r{i}", 20)
            desk.look()
            desk._unbegun.clear()
            desk._begun.clear()
        now_s[0] = 60.0
        predictor.may.set()
        await settled(desk, 8)

    asyncio.run(scenario())
    assert desk.counts == {"ok": 1, "busy": 4, "late": 3}


@pytest.mark.parametrize("harm", ["raises", "nan", "foreign"])
def test_what_cannot_be_said_is_counted_and_never_sent(harm):
    client, outputs, desk, predictor = served()
    if harm == "raises":
        predictor.error = RuntimeError("no words")
    elif harm == "nan":
        predictor.factor = float("nan")

    async def scenario():
        predictor.error, error = None, predictor.error
        await post(client, chat("a b"))
        predictor.error = error
        outputs.begin("r-0", "r")
        outputs.write("r", 20)
        if harm == "foreign":
            predictor.opening_tokens = (16, 48)
            desk._asked.append(
                opening_desk._Opening(client.core, "r", 7, "x", "a", "chat", desk._clock())
            )
            outputs.end("r-0")
        desk.look()
        await settled(desk, 1)

    asyncio.run(scenario())
    assert desk.counts == {"failed": 1}
    assert sent(client) == []


@pytest.mark.parametrize(
    ("path", "body"),
    [
        (CHAT, chat("a b", vllm_xargs={"slo_class": "chat", "osl": 70})),
        (CHAT, chat("a b", max_tokens=1)),  # a length that is known
        (COMPLETIONS, {"prompt": [1, 2, 3]}),
    ],
)
def test_answers_whose_length_no_opening_tells_are_not_watched(path, body):
    client, _, desk, _ = served()
    client.post(path, body)
    assert (len(desk._unbegun), desk.counts) == (0, {})


@pytest.mark.parametrize("lacks", ["openings", "lengths", "outputs"])
def test_without_openings_there_is_no_desk(lacks):
    settings = {"lengths": "class"} if lacks == "lengths" else {}
    client, _, desk, predictor = served(**settings)
    if lacks == "openings":
        predictor.opening_tokens = ()
    elif lacks == "outputs":
        client.app.state.engine_client.output_processor = SimpleNamespace(request_states={})
    client.post(CHAT, chat("a b"))
    assert len(desk._unbegun) == 0
    assert desk._looking is None
    status = client.call("GET", "/lengthwise/status").json()["api"]["openings"]
    assert (status is None) == (lacks != "outputs")


def test_who_ends_or_never_comes_is_forgotten():
    client, outputs, desk, _ = served()
    now_s = [0.0]
    desk._clock = lambda: now_s[0]

    async def scenario():
        await post(client, {"prompt": ["one", "two", "three"]}, COMPLETIONS)
        outputs.begin("r-0", "r0")
        outputs.begin("r-1", "r1")
        outputs.write("r0", 3)
        desk.look()
        assert desk.status()["watched"] == 3
        outputs.end("r-0")
        outputs.end("r-1")
        desk.look()
        assert desk.status()["watched"] == 1  # vLLM may yet hear of the third
        now_s[0] = 31.0
        desk.look()
        assert desk.status()["watched"] == 0

    asyncio.run(scenario())


def test_a_long_queue_is_looked_at_in_turn_and_who_runs_every_time(monkeypatch):
    monkeypatch.setattr(opening_desk, "_MOST_UNBEGUN", 10)
    client, outputs, desk, _ = served()

    async def scenario():
        await post(client, {"prompt": [f"p {i}" for i in range(40)]}, COMPLETIONS)
        for i in range(40):
            outputs.begin(f"r-{i}", f"n{i}")
        outputs.write("n0", 1)
        desk.look()  # the first ten: one runs
        outputs.write("n0", 15)
        outputs.write("n35", 16)
        desk.look()
        await settled(desk, 1)
        assert [name for name, *_ in sent(client)] == ["n0"]
        for _ in range(3):
            desk.look()
        await settled(desk, 2)

    asyncio.run(scenario())
    assert [name for name, *_ in sent(client)] == ["n0", "n35"]


def test_it_looks_by_itself_while_there_is_anybody(monkeypatch):
    monkeypatch.setattr(opening_desk, "_LOOK_S", 0.005)
    client, outputs, desk, _ = served()

    async def scenario():
        await post(client, chat("a b"))
        outputs.begin("r-0", "r")
        outputs.write("r", 50)
        await settled(desk, 1)
        async with asyncio.timeout(10):
            await desk._looking

    asyncio.run(scenario())
    assert desk.counts == {"ok": 1}


def test_a_vllm_whose_outputs_are_other_than_thought_harms_nobody(monkeypatch):
    monkeypatch.setattr(opening_desk, "_LOOK_S", 0.005)
    client, outputs, desk, _ = served()

    async def scenario():
        await post(client, chat("a b"))
        outputs.external_req_ids["r-0"].append("r")
        outputs.request_states["r"] = object()
        async with asyncio.timeout(10):
            await desk._looking
        assert (await post(client, chat("c d"))).status_code == 200

    asyncio.run(scenario())
    assert desk._faults == 1


def test_a_predictor_that_was_replaced_is_not_asked():
    client, outputs, desk, predictor = served()
    other = Opener()

    async def scenario():
        await post(client, chat("a b"))
        client.service.replace(ServedPredictor(other, "v2", quick=False))
        outputs.begin("r-0", "r")
        outputs.write("r", 20)
        desk.look()
        await settled(desk, 1)

    asyncio.run(scenario())
    assert predictor.opened == []
    assert [version for _, _, version, _ in sent(client)] == ["v2"]  # which the engine refuses


@pytest.mark.parametrize("detokenize", [True, False])
def test_vllms_own_outputs_are_read_where_it_makes_text(tiny_dir, detokenize):
    processing = pytest.importorskip("vllm.v1.engine.output_processor")
    from transformers import AutoTokenizer
    from vllm.sampling_params import RequestOutputKind, SamplingParams
    from vllm.v1.engine import EngineCoreOutput, EngineCoreRequest

    tokenizer = AutoTokenizer.from_pretrained(tiny_dir)
    client, _, desk, predictor = served()
    outputs = processing.OutputProcessor(tokenizer if detokenize else None, log_stats=False)
    client.app.state.engine_client.output_processor = outputs
    ids = tokenizer.encode(" Certainly, here are the rivers:" * 9, add_special_tokens=False)
    params = SamplingParams(output_kind=RequestOutputKind.FINAL_ONLY)  # nothing is streamed
    request = EngineCoreRequest(
        "r-0-abc", [1, 2], None, params, None, 0.0, None, None, None, external_req_id="r-0"
    )

    async def scenario():
        await post(client, chat("a b"))
        outputs.add_request(request, "a b")
        desk.look()
        for token in ids[:18]:
            outputs.process_outputs([EngineCoreOutput("r-0-abc", [token])])
        desk.look()
        await settled(desk, 1)
        outputs.abort_requests(["r-0-abc"], internal=True)
        desk.look()
        assert desk.status()["watched"] == 0

    asyncio.run(scenario())
    assert desk.counts == {"ok" if detokenize else "textless": 1}
    if detokenize:
        ((opening, _, _, _),) = predictor.opened
        whole = tokenizer.decode(ids[:18])
        assert whole.startswith(opening)
        assert 0.8 < len(opening) / len(whole) < 0.95
        assert [(name, tokens) for name, _, _, tokens in sent(client)] == [("r-0-abc", 16)]
