"""Columns of prompts that offer tools, against a twin that parses the JSON."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lengthwise.data.chat import rendered
from lengthwise.predictor.features.scan import encode, scan
from lengthwise.predictor.features.tools import TOOL_NAMES, read_tools

WEATHER = {
    "name": "weather.get_forecast",
    "description": "Gives the forecast of the weather in a city.",
    "parameters": {
        "type": "object",
        "properties": {
            "city": {"type": "string", "description": "Name of the city."},
            "days": {"type": "integer", "description": "How many days."},
            "units": {"type": "string", "enum": ["metric", "imperial"]},
        },
        "required": ["city", "days"],
    },
}
BOOKING = {
    "name": "book_table",
    "description": 'Reserves a table; "quotes" and {braces} are text.',
    "parameters": {
        "type": "dict",
        "properties": {
            "guests": {"type": "array", "items": {"type": "string"}},
            "when": {
                "type": "dict",
                "properties": {"day": {"type": "string"}, "hour": {"type": "integer"}},
                "required": ["day"],
            },
        },
        "required": ["guests"],
    },
}


def read(prompt: str) -> dict[str, float]:
    text = encode(prompt)
    kinds, hashes, _, starts, stops = scan(text)
    out = np.full(len(TOOL_NAMES), np.nan)
    read_tools(text, kinds, hashes, starts, stops, out)
    assert np.isfinite(out).all()
    return {
        name.removeprefix("tools_"): float(x if name.endswith("share") else np.expm1(x))
        for name, x in zip(TOOL_NAMES, out, strict=True)
    }


def asked(question: str, *tools: object) -> dict[str, float]:
    return read(rendered([("user", question)], list(tools)))


def test_what_a_call_must_spell_out() -> None:
    found = asked("What is the weather in Oslo for the next 3 days?", WEATHER, BOOKING)
    wanted = {
        "count": 2,
        "required": 1.5,
        "required_most": 2,
        "required_bytes": (len("city") + len("days") + 8 + len("guests") + 4) / 2,
        "optional": 1,
        "name_bytes": (len("weather.get_forecast") + len("book_table")) / 2,
        "enum_values": 1,
        "named": 1,
        "likely_name_bytes": len("weather.get_forecast"),
        "likely_required": 2,
        "likely_optional": 1,
        "likely_enum_values": 2,
        "asked_words": 11,  # "Functions" in front of them is one
        "asked_numbers": 1,
        "asked_capitals": 1,
        "asked_sentences": 1,
        "value_bytes": len("Oslo") + len("3"),
        "string_share": 2 / 5,
        "compound_share": 2 / 5,
        "likely_string_share": 2 / 3,
    }
    for name, value in wanted.items():
        assert found[name] == pytest.approx(value), name


def test_the_tool_that_shares_words_is_the_likely_one() -> None:
    booking = asked("Please reserve a table for Ann and Bob", WEATHER, BOOKING)
    assert booking["likely_required"] == 1
    assert booking["asked_joins"] == 1
    assert booking["likely_lead"] > 0


def test_openai_s_wrapping_and_one_object_a_line_read_alike() -> None:
    question = "Weather in Rome?\n"
    wrapped = [{"type": "function", "function": tool} for tool in (WEATHER, BOOKING)]
    plain = "\n".join(json.dumps(tool) for tool in (WEATHER, BOOKING))
    first, second = read(question + json.dumps(wrapped)), read(question + plain)
    for name in ("count", "required", "required_bytes", "optional", "likely_name_bytes"):
        assert first[name] == pytest.approx(second[name]), name
    after = read(json.dumps(wrapped) + "\n" + question)
    assert after["likely_name_bytes"] == pytest.approx(first["likely_name_bytes"])


def test_quoted_values_are_measured() -> None:
    found = asked("Call it 'Blue Note' and don't wait, the code is \"x-17\".", WEATHER)
    assert found["asked_quoted"] == pytest.approx(2)
    assert found["value_bytes"] == pytest.approx(len("Blue Note") + len("x-17"))


@pytest.mark.parametrize(
    "prompt",
    [
        "",
        "no tools at all",
        '{"name": "Ann", "age": 7}',
        '{"parameters"',
        '{"parameters": ',
        '{"name": "f", "parameters": {"properties": {"required": [',
        '{"name": "f", "parameters": {"required": "all", "properties": {"a": {"enum": 3}}}}',
        '{"name": "',
        '{"name": "f\\"',
    ],
)
def test_what_is_no_tool_or_cut_off_is_read_without_harm(prompt: str) -> None:
    found = read(prompt)
    if '"name": "f", "parameters": {' not in prompt:
        assert set(found.values()) == {0.0}


names = st.from_regex(r"[a-z]{1,8}(_[a-z]{1,8}){0,2}", fullmatch=True)
words = st.text("abc XYZ.,\"\\{}[]:'é\n", max_size=30)
kinds = st.sampled_from(["string", "integer", "array", "dict"])


@st.composite
def tools(draw: st.DrawFn) -> dict[str, object]:
    parameters = draw(st.dictionaries(names, kinds, max_size=5))
    needed = draw(st.lists(st.sampled_from(sorted(parameters)), unique=True)) if parameters else []
    return {
        "name": draw(names),
        "description": draw(words),
        "parameters": {
            "type": "object",
            "properties": {
                name: {"type": kind, "description": draw(words)}
                for name, kind in parameters.items()
            },
            "required": needed,
        },
    }


@settings(deadline=None, max_examples=150)
@given(st.lists(tools(), min_size=1, max_size=4), st.text("ab cD 7.,?'", max_size=40))
def test_counts_are_those_of_the_parsed_json(drawn: list[dict], question: str) -> None:
    found = asked(question, *drawn)
    schemas = [tool["parameters"] for tool in drawn]
    needed = [schema["required"] for schema in schemas]
    kinds = [p["type"] for schema in schemas for p in schema["properties"].values()]
    assert found["count"] == pytest.approx(len(drawn))
    assert found["name_bytes"] == pytest.approx(np.mean([len(tool["name"]) for tool in drawn]))
    assert found["required"] == pytest.approx(np.mean([len(n) for n in needed]))
    assert found["required_bytes"] == pytest.approx(
        np.mean([sum(len(name) + 4 for name in n) for n in needed])
    )
    assert found["optional"] == pytest.approx(
        np.mean([len(s["properties"]) - len(n) for s, n in zip(schemas, needed, strict=True)])
    )
    if kinds:
        assert found["string_share"] == pytest.approx(kinds.count("string") / len(kinds))


@settings(deadline=None, max_examples=150)
@given(st.text('{}[]":,\\ nametyprqud\n', max_size=200))
def test_any_text_gives_finite_columns(prompt: str) -> None:
    read(prompt)
    read('{"name": "f", "parameters": {' + prompt)
