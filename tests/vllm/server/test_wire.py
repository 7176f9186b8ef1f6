"""What the processes say to each other reads back as it was said."""

from __future__ import annotations

import json
import multiprocessing

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lengthwise.data.slo import Slo, SloTable
from lengthwise.scheduler.serving.wire.admission_question import Answer, Question
from lengthwise.scheduler.serving.wire.answer_length import fixed_tokens, rounded
from lengthwise.scheduler.serving.wire.hints import Hints, Whole
from lengthwise.scheduler.serving.wire.seal import PRIVATE_PREFIXES, SECRET_VARIABLE, sealed
from lengthwise.scheduler.serving.wire.tenant_name import parse_tenant
from lengthwise.scheduler.serving.wire.utility_calls import plain

LEVELS = 5
NOTHING_KNOWN = SloTable({})

names = st.from_regex(r"[A-Za-z0-9][A-Za-z0-9_.:-]{0,20}", fullmatch=True)
texts = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=20)
objectives = st.none() | st.integers(1, 86_400_000).map(lambda ms: float(ms) / 1e3)
rows = st.lists(st.floats(1, 1e6), min_size=LEVELS, max_size=LEVELS).map(
    lambda values: rounded(sorted(values))
)


json_values = st.recursive(
    st.none() | st.booleans() | st.floats() | st.integers() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=4), inner),
    max_leaves=6,
)


@st.composite
def hints(draw):
    quantiles = draw(st.none() | rows)
    features = draw(st.none() | st.lists(st.floats(allow_nan=False), max_size=4).map(tuple))
    shadow = draw(st.none() | rows)
    return Hints(
        slo=draw(st.builds(Slo, objectives, objectives, objectives, names)),
        tenant=draw(st.none() | names),
        quantiles=quantiles,
        version=None if quantiles is None else draw(st.none() | texts),
        features=features,
        contract=None if features is None else draw(st.none() | texts),
        shadow=shadow,
        shadow_version=None if shadow is None else draw(st.none() | texts),
        text_id=draw(st.none() | texts),
        whole=draw(st.none() | st.builds(Whole, texts, st.integers(0, 5000))),
        downgraded=draw(st.booleans()),
    )


def read(xargs, tables=(NOTHING_KNOWN,)):
    faults = []
    return Hints.from_xargs(xargs, tables, LEVELS, lambda *fault: faults.append(fault)), faults


@given(hints())
def test_hints_read_back_as_they_were_said(said):
    """Over msgpack, as vLLM's processes send them, and as JSON."""
    xargs = said.to_xargs()
    for sent in (
        msgspec.msgpack.decode(msgspec.msgpack.encode(xargs)),
        json.loads(json.dumps(xargs)),
    ):
        heard, faults = read(sent | {"mine": 1})
        assert faults == []
        assert heard == said
    assert heard.promised.is_best_effort or not said.downgraded


def test_features_are_neither_printed_nor_copied_with_the_parameters_they_ride_in():
    from vllm.sampling_params import SamplingParams
    from vllm.v1.serial_utils import MsgpackDecoder, MsgpackEncoder

    features = tuple(i / 7 for i in range(350))
    xargs = Hints(features=features, contract="c").to_xargs()
    params = SamplingParams(extra_args=xargs)
    assert len(repr(params)) < 1_000
    copied = params.clone()
    assert copied.extra_args is not xargs
    assert copied.extra_args["lw_features"] is xargs["lw_features"]
    sent = MsgpackDecoder(SamplingParams).decode(MsgpackEncoder().encode(copied))
    heard, faults = read(sent.extra_args)
    assert (heard.features, faults) == (features, [])


@given(hints(), st.integers(1, 10_000), st.none() | st.integers(1, 10_000), st.floats(0, 2e9))
def test_a_question_reads_back_and_carries_no_text(said, prompt_tokens, max_tokens, deadline):
    question = Question(said.for_planning(), prompt_tokens, max_tokens, deadline)
    body = json.loads(json.dumps(question.to_wire()))
    assert Question.from_wire(body, lambda xargs: read(xargs)[0]) == question
    assert not {"lw_text_id", "lw_shadow"} & set(body["xargs"])


@pytest.mark.parametrize(
    "answer", [Answer(), Answer("shed", 3.5, "j"), Answer("downgrade"), Answer("shed")]
)
def test_an_answer_reads_back(answer):
    assert Answer.from_wire(json.loads(json.dumps(answer.to_wire()))) == answer


@given(json_values | st.sampled_from([np.float64(1.5), np.arange(3), np.bool_(True), {1: {2}}]))
def test_plain_values_are_pythons_own_all_the_way_down(value):
    def kinds(found):
        yield type(found)
        parts = [*found, *found.values()] if isinstance(found, dict) else found
        if isinstance(found, dict | list):
            for part in parts:
                yield from kinds(part)

    wrapped = plain({"deep": [value, {"np": np.int64(3)}, (np.float32(0.5),)]})
    assert set(kinds(wrapped)) <= {dict, list, str, int, float, bool, type(None)}
    assert wrapped["deep"][1:] == [{"np": 3}, [0.5]]


def test_an_answer_of_another_kind_is_refused():
    with pytest.raises(ValueError, match="maybe"):
        Answer.from_wire({"action": "maybe"})
    with pytest.raises(KeyError):
        Answer.from_wire({})


KEYS = ["slo_class", "slo_ttft_ms", "slo_e2e_ms", "tenant", "pred_quantiles", "pred_version",
        "lw_features", "lw_contract", "lw_shadow", "lw_shadow_version", "lw_text_id",
        "lw_whole", "lw_parts", "lw_admission", "lw_seal"]  # fmt: skip


@given(st.dictionaries(st.sampled_from(KEYS), json_values) | json_values, st.booleans())
def test_whatever_comes_reading_never_raises(xargs, ours):
    heard, _ = read(sealed(xargs) if ours and isinstance(xargs, dict) else xargs)
    again, faults = read(heard.to_xargs())
    assert again.slo == heard.slo
    assert faults == []


def test_what_is_malformed_is_told_and_counts_as_not_said():
    said = {"slo_class": "chat", "slo_e2e_ms": "soon", "pred_quantiles": [3, 2, 1]}
    heard, faults = read(sealed(said))
    assert (heard.slo, heard.quantiles) == (Slo(), None)
    assert {kind for kind, _ in faults} == {"slo", "bad-prediction"}


def test_a_class_is_looked_up_in_the_table_before_too():
    new = SloTable.from_dict({"vip": {"ttft_ms": 100.0}})
    old = SloTable.from_dict({"chat": {"ttft_ms": 500.0}})
    assert read({"slo_class": "chat"}, (new, old))[0].slo.ttft_s == 0.5
    heard, faults = read({"slo_class": "nobody"}, (new, old))
    assert heard.slo.is_best_effort
    assert [kind for kind, _ in faults] == ["slo"]


NOTHING = Hints()
private_keys = st.sampled_from(KEYS[4:-1]) | st.text(max_size=5).map(lambda end: "pred_" + end)


@given(st.dictionaries(private_keys, json_values, min_size=1), json_values)
def test_private_keys_without_this_servers_seal_count_as_not_said(forged, seal):
    for said in (forged, forged | {"lw_seal": seal}, forged | {"lw_seal": ""}):
        heard, faults = read(said | {"slo_e2e_ms": 500, "tenant": "t"})
        assert [kind for kind, _ in faults] == ["unsealed"]
        assert heard == Hints(slo=Slo(e2e_s=0.5), tenant="t")


@given(hints(), st.sampled_from(["pred_quantiles", "lw_admission", "lw_text_id", "pred_new"]))
def test_nothing_can_be_added_to_or_taken_from_a_seal(said, key):
    genuine = said.to_xargs()
    if not any(name.startswith(PRIVATE_PREFIXES) for name in genuine):
        return
    other = {name: value for name, value in genuine.items() if name != key}
    for changed in (genuine | {key: "x"}, other if key in genuine else genuine | {key: [1.0]}):
        heard, faults = read(changed)
        assert [kind for kind, _ in faults] == ["unsealed"]
        assert heard == Hints(slo=said.slo, tenant=said.tenant)


def test_a_seal_of_another_server_does_not_count(monkeypatch):
    theirs = sealed({"pred_quantiles": [1.0] * LEVELS})
    monkeypatch.setenv(SECRET_VARIABLE, "our hosts share this")
    assert read(theirs)[0] == NOTHING
    ours = sealed({"pred_quantiles": [1.0] * LEVELS})
    assert read(ours)[0].quantiles == (1.0,) * LEVELS
    monkeypatch.delenv(SECRET_VARIABLE)
    assert read(ours)[0] == NOTHING


def _sealed_elsewhere(queue):
    queue.put(sealed({"pred_version": "child", "pred_quantiles": [2.0] * LEVELS}))


@pytest.mark.parametrize("method", ["spawn", "fork"])
def test_processes_of_one_tree_share_the_secret(method):
    """As the API process and its engines do, with nothing to set up."""
    context = multiprocessing.get_context(method)
    queue = context.SimpleQueue()
    child = context.Process(target=_sealed_elsewhere, args=(queue,))
    child.start()
    heard, faults = read(queue.get())
    child.join()
    assert (heard.version, faults) == ("child", [])


@pytest.mark.parametrize(
    ("headers", "xargs", "tenant"),
    [
        ({"x-tenant": "a"}, {"tenant": "b"}, "a"),
        ({"x-gateway-inference-fairness-id": "g"}, {"tenant": "b"}, "g"),
        ({"x-llm-d-inference-fairness-id": "g"}, {}, "g"),
        ({"x-gateway-inference-fairness-id": "default-flow"}, {"tenant": "b"}, "b"),
        ({"x-gateway-inference-fairness-id": " "}, {"tenant": ""}, None),
        ({"x-tenant": "", "x-gateway-inference-fairness-id": "g"}, {}, "g"),
        ({}, {"tenant": None}, None),
    ],
)
def test_a_tenant_is_named_by_us_by_the_gateway_or_in_the_body(headers, xargs, tenant):
    assert parse_tenant(xargs, headers) == tenant


@given(st.text(min_size=1).filter(str.strip))
def test_a_gateways_id_is_never_refused_and_stays_apart(flow):
    name = parse_tenant({}, {"x-gateway-inference-fairness-id": flow})
    again = parse_tenant({}, {"x-gateway-inference-fairness-id": flow})
    other = parse_tenant({}, {"x-gateway-inference-fairness-id": flow + "'"})
    assert name == again
    assert name != other or flow == "default-flow"


@pytest.mark.parametrize(
    ("sampling", "length"),
    [
        ((300, 300, False, False), 300),
        ((500, 0, True, False), 500),
        ((500, 0, True, True), None),
        ((500, 499, False, False), None),
        ((1, 0, False, True), 1),
        ((300, 400, False, False), 300),
        ((None, 5, True, False), None),
        ((True, 5, True, False), None),
        ((0, 0, True, False), None),
        ((7, None, None, None), None),
        ((7, "7", "yes", None), None),
        (("7", 7, True, None), None),
    ],
)
def test_a_length_that_the_parameters_fix_is_known(sampling, length):
    assert fixed_tokens(*sampling) == length
