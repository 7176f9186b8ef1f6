"""Anything a client can send: refused with a reason or passed on, never another exception."""

from __future__ import annotations

import asyncio
import gzip
import json
import logging
import time
from typing import Any

import numpy as np
import pytest
from echo_client import CHAT, COMPLETIONS, TABLE, Client, WordPredictor
from engineless import FakeEngine, make_request
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lengthwise.data.errors import InputError
from lengthwise.data.slo import SloTable, parse_slo
from lengthwise.predictor.features.columns import PromptFeatures
from lengthwise.predictor.features.scan import HEAD_CHARS, TAIL_CHARS, encode
from lengthwise.scheduler.serving.api.body.request_body import (
    MOST_PROMPTS,
    hints_of,
    parse_body,
)
from lengthwise.scheduler.serving.api.predicting.prediction import Prediction
from lengthwise.scheduler.serving.engine.requests.intake import Arrival, Intake
from lengthwise.scheduler.serving.priors import generic_priors
from lengthwise.scheduler.serving.settings import LOGGER_NAME
from lengthwise.scheduler.serving.wire.seal import is_private, sealed
from lengthwise.scheduler.vllm_adapter.api.routes import READERS

SLOS = SloTable.from_dict(TABLE)
PREDICTION = Prediction([float(10 * i) for i in range(1, 13)], "v1")
quick = settings(
    max_examples=40, deadline=None, database=None, suppress_health_check=[HealthCheck.too_slow]
)

# Text with lone surrogates, as JSON escapes can say; numbers with NaN, infinities, huge integers.
texts = st.text(st.characters(codec=None), max_size=12)
scalars = st.one_of(
    st.none(), st.booleans(), st.integers(), st.just(10**400), st.floats(), texts
)  # fmt: skip
values = st.recursive(
    scalars,
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(texts, inner, max_size=3)),
    max_leaves=6,
)
keys = st.one_of(
    st.sampled_from(
        ["slo_ttft_ms", "slo_tpot_ms", "slo_e2e_ms", "slo_class", "osl", "tenant", "pred_quantiles",
         "pred_version", "lw_text_id", "lw_features", "lw_contract", "lw_whole", "replay_id"]
    ), texts,
)  # fmt: skip
xargs = st.one_of(values, st.dictionaries(keys, values, max_size=4))
messages = st.lists(
    st.one_of(
        values,
        st.fixed_dictionaries(
            {"role": values, "content": values}, optional={"tool_calls": values}
        ),
    ),
    max_size=3,
)  # fmt: skip
bodies = st.fixed_dictionaries(
    {},
    optional={
        "prompt": st.one_of(values, texts, st.lists(texts, max_size=3)),
        "messages": st.one_of(values, messages),
        "tools": values,
        "max_tokens": values,
        "vllm_xargs": xargs,
    },
)
names = st.sampled_from(["x-slo-ttft-ms", "X-SLO-E2E-MS", "x-llm-d-slo-tpot-ms", "x-slo-class"])
headers = st.dictionaries(names, st.text(max_size=8), max_size=2)


def parsed(raw: bytes, given_headers: dict[str, str] | None = None, path: str = CHAT) -> Any:
    """The parsed body, or the refusal, which must be one line."""
    refusal = None
    try:
        return parse_body(raw, given_headers or {}, SLOS, READERS[path])
    except InputError as error:
        refusal = error
    assert str(refusal)
    assert "\n" not in str(refusal)
    return refusal


@quick
@given(bodies, headers, st.sampled_from(sorted(READERS)))
def test_any_object_is_refused_or_goes_on_and_is_read_the_same_again(body, given_headers, path):
    raw = json.dumps(body).encode()
    first = parsed(raw, given_headers, path)
    if isinstance(first, InputError):
        return
    sent = json.loads(first.raw)
    assert {key: shown(sent[key]) for key in body if key != "vllm_xargs"} == {
        key: shown(value) for key, value in body.items() if key != "vllm_xargs"
    }
    xargs = sent.get("vllm_xargs")
    if isinstance(xargs, dict):
        assert not any(is_private(key) for key in xargs)
    hints = hints_of(first, PREDICTION)
    assert len(hints.quantiles) == 12
    again = parsed(first.raw, given_headers, path)
    assert again == first


def shown(value: Any) -> str:
    """Equal for equal JSON, NaN too."""
    return json.dumps(value)


@quick
@given(st.binary(max_size=60))
def test_any_bytes_are_left_to_vllm(raw):
    for path in READERS:
        assert parsed(raw, {}, path).raw == raw


@quick
@given(values, st.one_of(st.none(), headers))
def test_any_arguments_give_an_slo_or_an_input_error(arguments, given_headers):
    for table in (SLOS, SloTable({})):
        try:
            slo = parse_slo(arguments, given_headers, table)
        except InputError:
            continue
        assert parse_slo(slo.to_xargs(), {}, SloTable({})).slo_class == slo.slo_class


@quick
@given(st.one_of(values, st.dictionaries(keys, values, max_size=4)))
def test_any_arguments_can_arrive_in_the_engine(extra):
    extra = sealed(extra) if isinstance(extra, dict) else extra
    causes = []
    intake = Intake(SLOS, generic_priors(), "learned", lambda cause, detail: causes.append(cause))
    arrival = Arrival("r", unix_s=0.0, prompt_tokens=3, max_tokens=50)
    tracked = intake.track(arrival, intake.hints(extra), 1.0, 1.0)
    assert (tracked.quantiles >= 1).all()
    assert (tracked.quantiles <= 50).all()
    assert tracked.length_source == "learned" or causes


NESTED = [
    b'{"prompt":"x","y":%s}',
    b'{"prompt":"x","vllm_xargs":{"slo_ttft_ms":%s}}',
    b'{"messages":[{"role":%s,"content":"x"},{"role":"user","content":"x"}]}',
    b'{"messages":[{"role":"user","tool_calls":%s}]}',
    b'{"messages":[{"role":"user","content":"x"}],"tools":[%s]}',
]


@pytest.mark.parametrize("form", NESTED)
@pytest.mark.parametrize(("opening", "closing"), [(b"[", b"]"), (b'{"a":', b"}")])
@pytest.mark.parametrize("path", [CHAT, "/v1/messages", "/v1/responses"])
def test_no_depth_of_nesting_raises_anything_but_a_refusal(form, opening, closing, path):
    """Around Python's limit reading may succeed and showing or writing, some frames on, fail."""
    for depth in [*range(440, 1_010, 3), 100_000]:
        raw = form % (opening * depth + b"1" + closing * depth)
        found = parsed(raw, {}, path)
        if isinstance(found, InputError):
            assert "nested too deeply" in str(found) or "slo_ttft_ms" in str(found)
        else:
            assert found.raw == raw


def test_of_two_equal_keys_vllm_gets_the_one_that_was_checked():
    raw = b'{"prompt": "a", "vllm_xargs": {"slo_e2e_ms": 5, "slo_e2e_ms": 7}, "prompt": "b"}'
    found = parsed(raw, {}, COMPLETIONS)
    assert (found.prompts, found.slo.e2e_s) == (("b",), 0.007)
    assert json.loads(found.raw)["prompt"] == "b"


def test_what_is_predicted_and_logged_of_a_huge_prompt_is_bounded():
    middle = "middle " * 1_000_000
    raw = json.dumps({"prompt": "head " * 4_800 + middle + "tail\ud800 "}).encode()
    found = parsed(raw, {}, COMPLETIONS)
    (text,) = found.prompts
    assert len(text) == HEAD_CHARS + 1 + TAIL_CHARS
    assert text.endswith("tail? ")
    assert (encode(text) == encode(json.loads(raw)["prompt"])).all()
    many = parsed(json.dumps({"prompt": ["word"] * 1_000_000}).encode(), {}, COMPLETIONS)
    assert len(many.prompts) == MOST_PROMPTS
    assert found.raw == raw


def test_features_of_eight_megabytes_take_no_longer_than_of_the_bound():
    features = PromptFeatures(blocks=("structure", "request")).fit(["a b", "c d e"], [3.0, 5.0])
    huge = "7,123 {[(¿é 漢 " * 600_000
    features.transform([huge[:40_000]])
    began_s = time.process_time()
    assert np.isfinite(features.transform([huge])).any()
    assert time.process_time() - began_s < 0.25  # a fiftieth of that on a quiet machine


@pytest.mark.parametrize(
    "raw",
    [
        gzip.compress(b'{"prompt": "hi"}', mtime=0),
        '{"prompt": "hí"}'.encode("latin-1"),
        b'{"prompt": "hi"',
        b"1" * 5000,
    ],
)
def test_what_is_no_json_reaches_vllm_as_it_came(raw):
    answer = Client().call("POST", COMPLETIONS, content=raw, headers={"content-encoding": "gzip"})
    assert answer.status_code == 400
    assert answer.json() == {"raw": repr(raw)}


def test_an_endless_body_is_cut_off_at_the_limit():
    """Chunked, a byte at a time, no end: refused after so many bytes, whatever is still to come."""
    client, sent, asked = Client(max_body_bytes=5_000), [], 0

    async def receive():
        nonlocal asked
        asked += 1
        return {"type": "http.request", "body": b"[", "more_body": True}

    async def send(message):
        sent.append(message)

    scope = {"type": "http", "method": "POST", "path": CHAT,
             "headers": [(b"transfer-encoding", b"chunked")], "app": client.app}  # fmt: skip
    asyncio.run(client.asgi(scope, receive, send))
    assert sent[0]["status"] == 413
    assert asked == 5_001


def test_long_headers_are_refused_in_short():
    for value in ("9" * 60_000, "x" * 60_000, "\x00"):
        answer = Client().post(COMPLETIONS, {"prompt": "hi"}, {"x-slo-class": value})
        assert answer.status_code == 400
        assert len(answer.json()["error"]["message"]) < 250
    answer = Client().post(COMPLETIONS, {"prompt": "hi"}, {"x-slo-e2e-ms": "9" * 60_000})
    assert answer.json()["vllm_xargs"]["slo_e2e_ms"] == 86_400_000  # the limit


MARKER = "zanzibar-marmalade-7731"


@pytest.mark.parametrize("asked", [False, True])
def test_prompts_reach_the_request_log_only_when_asked_for(tiny_dir, tmp_path, caplog, asked):
    """From the client's body to the log's files, through the real scheduler; faults on the way."""
    predictor = WordPredictor()
    caplog.set_level(logging.DEBUG)
    ours = logging.getLogger(LOGGER_NAME)
    ours.addHandler(caplog.handler)
    try:
        client = Client(predictor, request_log=str(tmp_path), log_prompts=asked, slo_table={})
        engine = FakeEngine(tiny_dir, {"request_log": str(tmp_path)}, max_num_seqs=2)
        for i in range(3):
            predictor.error = RuntimeError("broken") if i == 1 else None
            body = {"prompt": f"{MARKER} {i}", "vllm_xargs": {"slo_e2e_ms": 5000}}
            told = client.xargs(body)
            assert MARKER not in json.dumps(told)  # vLLM prints what rides in a request
            engine.add(make_request(f"r{i}", **told))
        refused = client.post(COMPLETIONS, {"prompt": MARKER, "vllm_xargs": {"slo_e2e_ms": "x"}})
        engine.run()
        status = engine.scheduler.lengthwise_status()
        engine.scheduler.shutdown()
        client.close()
    finally:
        ours.removeHandler(caplog.handler)
    logs = b"".join(path.read_bytes() for path in tmp_path.iterdir())
    assert logs.count(b'"request_id"') == 3
    assert logs.count(MARKER.encode()) == (3 if asked else 0)
    assert refused.status_code == 400
    assert MARKER not in refused.text + caplog.text + json.dumps(status) + exposition()


def exposition() -> str:
    """What this process would show at /metrics."""
    from prometheus_client import generate_latest

    return generate_latest().decode()
