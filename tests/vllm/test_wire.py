"""What the processes say to each other reads back as it was said."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lengthwise.data.slo import Slo, SloTable
from lengthwise.scheduler.vllm_adapter.wire import Answer, Hints, Question, clipped, plain

LEVELS = 5
NOTHING_KNOWN = SloTable({})

names = st.from_regex(r"[A-Za-z0-9][A-Za-z0-9_.:-]{0,20}", fullmatch=True)
texts = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=20)
objectives = st.none() | st.integers(1, 86_400_000).map(lambda ms: float(ms) / 1e3)
rows = st.lists(st.floats(1, 1e6), min_size=LEVELS, max_size=LEVELS).map(
    lambda values: tuple(clipped(sorted(values), None))
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
        prompt=draw(st.none() | texts),
        downgraded=draw(st.booleans()),
    )


def read(xargs, tables=(NOTHING_KNOWN,)):
    faults = []
    return Hints.from_xargs(xargs, tables, LEVELS, lambda *fault: faults.append(fault)), faults


@given(hints())
def test_hints_read_back_as_they_were_said(said):
    heard, faults = read(json.loads(json.dumps(said.to_xargs())))
    assert faults == []
    assert heard == said
    assert heard.promised.is_best_effort or not said.downgraded


@given(hints(), st.integers(1, 10_000), st.none() | st.integers(1, 10_000), st.floats(0, 2e9))
def test_a_question_reads_back_and_carries_no_text(said, prompt_tokens, max_tokens, deadline):
    question = Question(said.for_planning(), prompt_tokens, max_tokens, deadline)
    body = json.loads(json.dumps(question.to_wire()))
    assert Question.from_wire(body, lambda xargs: read(xargs)[0]) == question
    assert not {"lw_prompt", "lw_features", "lw_shadow"} & set(body["xargs"])


@pytest.mark.parametrize(
    "answer", [Answer(), Answer("shed", 3.5), Answer("downgrade"), Answer("shed")]
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
        "lw_features", "lw_contract", "lw_shadow", "lw_shadow_version", "lw_prompt",
        "lw_admission"]  # fmt: skip


@given(st.dictionaries(st.sampled_from(KEYS), json_values) | json_values)
def test_whatever_comes_reading_never_raises(xargs):
    heard, _ = read(xargs)
    again, faults = read(heard.to_xargs())
    assert again.slo == heard.slo
    assert faults == []


def test_what_is_malformed_is_told_and_counts_as_not_said():
    heard, faults = read({"slo_class": "chat", "slo_e2e_ms": -1, "pred_quantiles": [3, 2, 1]})
    assert (heard.slo, heard.quantiles) == (Slo(), None)
    assert {kind for kind, _ in faults} == {"slo", "bad-prediction"}


def test_a_class_is_looked_up_in_the_table_before_too():
    new = SloTable.from_dict({"vip": {"ttft_ms": 100.0}})
    old = SloTable.from_dict({"chat": {"ttft_ms": 500.0}})
    assert read({"slo_class": "chat"}, (new, old))[0].slo.ttft_s == 0.5
    heard, faults = read({"slo_class": "nobody"}, (new, old))
    assert heard.slo.is_best_effort
    assert [kind for kind, _ in faults] == ["slo"]
