"""A request is not one sequence: an estimate each, one outcome for the whole."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace

import pytest
from echo_client import CHAT, COMPLETIONS, Client, Params, WordPredictor
from engineless import FakeEngine, make_request
from hypothesis import given, settings
from hypothesis import strategies as st

from lengthwise.data.request_log import read_request_log
from lengthwise.data.slo import Slo
from lengthwise.scheduler.serving.api.call import Call, calling
from lengthwise.scheduler.serving.wire.hints import Hints
from lengthwise.scheduler.vllm_adapter.api.sequences import attach

LISTED = ["Say yes.", "Write a long story about a lighthouse keeper."]
WHOLE = {"lw_whole", "lw_parts"}


def test_each_prompt_of_a_list_has_its_own_estimate_features_and_text(tmp_path):
    client = Client(WordPredictor(), request_log=str(tmp_path), log_prompts=True)
    body = {"prompt": LISTED, "vllm_xargs": {"slo_class": "chat", "tenant": "t"}}
    first, second = client.told(body)
    client.close()
    assert (first["pred_quantiles"][0], second["pred_quantiles"][0]) == (21.0, 84.0)
    assert (first["lw_features"][0], second["lw_features"][0]) == (2.0, 8.0)
    assert first["slo_ttft_ms"] == second["slo_ttft_ms"] == 3000.0
    assert first["tenant"] == second["tenant"] == "t"
    assert first["lw_whole"] == second["lw_whole"]
    assert first["lw_parts"] == second["lw_parts"] == 2
    texts = "".join(path.read_text() for path in tmp_path.glob("texts-*.jsonl"))
    assert [texts.count(text) for text in LISTED] == [1, 1]
    assert first["lw_text_id"] != second["lw_text_id"]


def test_three_hundred_prompts_are_written_once_each(tmp_path):
    client = Client(WordPredictor(), request_log=str(tmp_path), log_prompts=True)
    told = client.told({"prompt": [f"{i} " + "word " * 1600 for i in range(300)]})
    client.close()
    assert len({one["lw_text_id"] for one in told}) == 300
    assert all("pred_quantiles" in one for one in told)
    written = sum(path.stat().st_size for path in tmp_path.iterdir())
    assert written < 300 * 8_200


@pytest.mark.parametrize(
    ("body", "parts"),
    [
        ({"prompt": "a"}, None),
        ({"prompt": "a", "n": 4}, 4),
        ({"prompt": ["a", "b c"], "n": 3}, 6),
        ({"prompt": [1, 2, 3]}, None),
        ({"prompt": [[1, 2], [3]]}, 2),
        ({"prompt": ["a"]}, None),
        ({"prompt": "a", "use_beam_search": True, "n": 2}, 0),
    ],
)
def test_the_parts_of_a_whole_are_counted(body, parts):
    for one in Client(WordPredictor()).told(body):
        assert one.get("lw_parts") == parts
        assert ("lw_whole" in one) == (parts is not None)


def test_what_is_no_text_has_no_estimate_and_the_others_keep_theirs():
    client = Client(WordPredictor())
    assert "pred_quantiles" not in client.xargs({"prompt": [1, 2, 3]})
    assert all("pred_quantiles" not in one for one in client.told({"prompt": [[1, 2], [3]]}))
    body = {"prompt_embeds": ["AAA=", "BBB="], "prompt": "one two"}
    parsed = client.asgi  # embeddings come first, as the server starts them
    assert parsed is not None
    from lengthwise.scheduler.vllm_adapter.api.routes import READERS

    assert list(READERS[COMPLETIONS](body).prompts) == [None, None, "one two"]


FIXED = [
    ({"min_tokens": 300, "max_tokens": 300}, 300.0),
    ({"ignore_eos": True, "max_tokens": 500}, 500.0),
    ({"max_tokens": 1}, 1.0),
    ({"ignore_eos": True, "max_tokens": 500, "stop": ["."]}, None),
    ({"min_tokens": 299, "max_tokens": 300}, None),
]


@pytest.mark.parametrize(("sampling", "length"), FIXED)
@pytest.mark.parametrize("path", [CHAT, COMPLETIONS, "/inference/v1/generate"])
def test_a_length_that_the_client_fixed_is_taken_before_the_predictor_is_asked(
    path, sampling, length
):
    predictor = WordPredictor()
    client = Client(predictor)
    body = {"prompt": "a b", "messages": [{"role": "user", "content": "a b"}]} | sampling
    if path.endswith("generate"):
        body = {"token_ids": [1], "sampling_params": sampling}
    xargs = client.xargs(body, path=path)
    if length is not None:
        assert xargs["pred_quantiles"] == [length] * 12
        assert xargs["pred_version"] == "fixed"
        assert predictor.calls == []
    else:
        assert xargs.get("pred_version") != "fixed"


def test_a_told_length_teaches_nobody_and_is_not_logged_as_a_prediction_of_ours(tiny_dir):
    engine = FakeEngine(tiny_dir, max_num_seqs=2)
    for i in range(40):
        told = {"pred_quantiles": [50.0] * 12, "pred_version": "fixed"}
        engine.add(make_request(f"r{i}", slo_class="chat", **told), 10)
    engine.run()
    assert engine.scheduler.core.intake.online.correction.learned() == {}


# -- at the waist -------------------------------------------------------------------------------


def engine_client():
    started = []

    def generate(prompt, sampling_params, request_id, **more):
        started.append(sampling_params)
        return iter(())

    return SimpleNamespace(generate=generate), started


def test_later_sequences_have_what_is_left_of_the_objectives():
    """Beams and turns of tools: one call after another, under the same promise."""
    client, started = engine_client()
    assert attach(client, lambda route: None)
    assert attach(client, lambda route: None)  # once
    slo = Slo(ttft_s=0.5, tpot_s=0.05, e2e_s=10.0, slo_class="chat")
    call = Call([Hints(slo)], others=Hints(slo), whole_id="w", is_open=True)
    with calling(call):
        client.generate("p", Params(max_tokens=1), "r-0")
        call.began_s -= 4.0
        client.generate("p", sampling_params=Params({"pred_x": 1, "a": 2}), request_id="r-1")
    first, second = (params.extra_args for params in started)
    assert (first["slo_ttft_ms"], first["slo_e2e_ms"]) == (500.0, 10_000.0)
    assert second["slo_ttft_ms"] == second["slo_tpot_ms"] == 50.0
    assert second["slo_e2e_ms"] == pytest.approx(6_000, abs=500)
    assert (second["a"], second["slo_class"]) == (2, "chat")
    assert first["lw_whole"] == second["lw_whole"] == "w"
    assert "pred_x" not in second


def test_hints_reach_sequences_that_other_tasks_start():
    client, started = engine_client()
    attach(client, lambda route: None)

    async def route():
        async def beam():
            client.generate("p", Params(), "r")

        await asyncio.gather(*(asyncio.create_task(beam()) for _ in range(3)))

    async def request(name):
        with calling(Call([Hints(tenant=name)] * 3, whole_id=name)):
            await asyncio.sleep(0.001)
            await route()

    async def both():
        await asyncio.gather(request("a"), request("b"))

    asyncio.run(both())
    assert sorted(one.extra_args["tenant"] for one in started) == ["a"] * 3 + ["b"] * 3


def test_what_works_on_in_the_background_is_over_when_its_task_is():
    client, started = engine_client()
    attach(client, lambda route: None)
    ended = []

    async def request():
        turn = asyncio.Event()

        async def work():
            for _ in range(3):
                client.generate("p", Params(), "r")
                await turn.wait()

        call = Call([Hints()], whole_id="w", is_open=True, over=ended.append)
        with calling(call):
            task = asyncio.create_task(work())
        await asyncio.sleep(0)
        assert (len(started), ended) == (1, [])  # the client has its answer long since
        turn.set()
        await task
        await asyncio.sleep(0)
        assert (len(started), ended) == (3, [call])

    asyncio.run(request())


# -- one outcome, in the engine -----------------------------------------------------------------


def run_whole(engine, ends, parts, slo_e2e_ms=60_000, whole="w"):
    for index, tokens in enumerate(ends):
        extra = {"lw_whole": whole, "lw_parts": parts, "slo_class": "chat"}
        request = make_request(f"{whole}-{index}", slo_e2e_ms=slo_e2e_ms, **extra)
        engine.add(request, tokens)


def outcomes(engine):
    return engine.scheduler.lengthwise_status()["outcomes"]


def test_a_list_of_prompts_is_one_outcome_and_a_row_each(tiny_dir, tmp_path):
    engine = FakeEngine(tiny_dir, {"request_log": str(tmp_path)}, max_num_seqs=2)
    run_whole(engine, [3, 40, 7], parts=3)
    engine.add(make_request("alone", slo_e2e_ms=60_000, slo_class="chat"))
    engine.run()
    assert outcomes(engine) == {"chat": {"finished": 2, "met": 2}}
    engine.scheduler.shutdown()
    rows = read_request_log(tmp_path)
    assert len(rows) == 4
    assert sorted(rows[rows["whole_id"] == "w"]["output_tokens"]) == [3, 7, 40]
    assert list(rows[rows["whole_id"] == "w"]["met"].dropna()) == [True]


def test_a_whole_attains_only_if_all_its_parts_do(tiny_dir):
    engine = FakeEngine(tiny_dir, max_num_seqs=1)
    run_whole(engine, [2, 2], parts=2, slo_e2e_ms=1)
    engine.run()
    assert outcomes(engine) == {"chat": {"finished": 1, "missed": 1}}


def test_an_open_whole_is_booked_when_it_is_said_to_have_ended(tiny_dir):
    engine = FakeEngine(tiny_dir, max_num_seqs=2)
    run_whole(engine, [1, 1, 1], parts=0)
    engine.run()
    assert outcomes(engine) == {}
    engine.scheduler.answers.answer("lengthwise_whole_ended", "w")
    engine.scheduler.answers.answer("lengthwise_whole_ended", "w")
    engine.scheduler.answers.answer("lengthwise_whole_ended", "never heard of")
    assert outcomes(engine) == {"chat": {"finished": 1, "met": 1}}


def test_a_whole_that_is_said_to_end_early_waits_for_what_still_runs(tiny_dir):
    engine = FakeEngine(tiny_dir, max_num_seqs=2)
    run_whole(engine, [30, 30], parts=3)  # the third was never started
    engine.step()
    engine.scheduler.answers.answer("lengthwise_whole_ended", "w")
    assert outcomes(engine) == {}
    engine.abort("w-0")
    engine.run()
    assert outcomes(engine) == {"chat": {"aborted": 1}}


@settings(max_examples=30, deadline=None, database=None)
@given(
    st.lists(st.tuples(st.integers(1, 4), st.booleans(), st.integers(0, 4)), max_size=12),
    st.randoms(use_true_random=False),
)
def test_every_whole_is_booked_once_whatever_comes(wholes, order):
    """Parts known or not, some never started, ends in any order, the word of the end too."""
    from lengthwise.scheduler.serving.engine.observed.sequence_outcome import Outcome
    from lengthwise.scheduler.serving.engine.observed.wholes import Wholes, together
    from lengthwise.scheduler.serving.wire.hints import Whole

    gathered, events, booked = Wholes(), [], []
    for index, (parts, is_open, missing) in enumerate(wholes):
        whole = Whole(str(index), 0 if is_open else parts + missing)
        members = [SimpleNamespace(arrival_s=float(part), whole=whole) for part in range(parts)]
        for one in members:
            assert gathered.began(one) == []
        events += [(one, whole) for one in members] + [(None, whole)]
    order.shuffle(events)
    for one, whole in events:
        if one is None:
            done = gathered.closed(whole.whole_id)
        else:
            done = gathered.ended(one, Outcome("finished", 5, 0.1, 0.01, 1.0, 0.0))
        if done:
            booked.append(together(done)[0].whole.whole_id)
    assert sorted(booked) == sorted(str(index) for index in range(len(wholes)))
    assert len(gathered) == 0


def test_wholes_that_nobody_ends_are_dropped_at_a_bound(tiny_dir):
    engine = FakeEngine(tiny_dir, max_num_seqs=4)
    recorder = engine.scheduler.core.outcomes
    recorder.wholes._most = 5
    for index in range(20):
        run_whole(engine, [1], parts=2, whole=f"w{index}")
        engine.run()
    assert len(recorder.wholes) == 5
    assert len(recorder._rows) <= 5
    assert outcomes(engine)["chat"]["finished"] == 15
