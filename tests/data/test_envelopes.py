"""Rows as other tools export them: their requests and responses, whatever is around them."""

from __future__ import annotations

import csv
import io
import json

import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lengthwise.data.errors import InputError
from lengthwise.data.sources.formats import examples_of
from lengthwise.data.sources.forms.envelopes import answers_in
from lengthwise.data.sources.normal import normal_row
from lengthwise.data.sources.prompt_files import read_file

Q, A = {"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello."}
ONE = [("Hi", "Hello.")]
CHOICES = {"choices": [{"index": 0, "message": A, "finish_reason": "stop"}]}
KIND = "<|system|>\nBe kind.\n<|user|>\nHi"
OUTPUT = {"type": "message", "content": [{"type": "output_text", "text": "Hello."}]}
USAGE = {"prompt_tokens": 9, "completion_tokens": 44, "total_tokens": 53}
TALK = [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello."}]

# form: (row, [(prompt, answer)])
FORMS = {
    "OpenAI batch": (
        {
            "custom_id": "1",
            "body": {"messages": [Q]},
            "response": {"status_code": 200, "body": CHOICES},
        },
        ONE,
    ),
    "OpenAI responses": (
        {"request": {"instructions": "Be kind.", "input": "Hi"}, "response": {"output": [OUTPUT]}},
        [(KIND, "Hello.")],
    ),
    "OpenAI responses with items": (
        {
            "request": {
                "input": [{"role": "user", "content": [{"type": "input_text", "text": "Hi"}]}]
            },
            "response": {"output": [{"type": "reasoning", "summary": []}, OUTPUT]},
        },
        ONE,
    ),
    "OpenAI responses, a call": (
        {
            "request": {"input": "Hi"},
            "response": {"output": [{"type": "function_call", "name": "f", "arguments": "{}"}]},
        },
        [("Hi", '{"name": "f", "arguments": "{}"}')],
    ),
    "choices beside messages": ({"messages": [Q], **CHOICES}, ONE),
    "choices beside a prompt": ({"prompt": "Hi", "choices": [{"text": "Hello."}]}, ONE),
    "Anthropic": (
        {
            "request": {"system": "Be kind.", "messages": [Q]},
            "response": {"role": "assistant", "content": [{"type": "text", "text": "Hello."}]},
        },
        [(KIND, "Hello.")],
    ),
    "Anthropic, thoughts and calls": (
        {
            "messages": [
                Q,
                {
                    "role": "assistant",
                    "content": [
                        {"type": "thinking", "thinking": "Hm."},
                        {"type": "text", "text": "Hello."},
                        {"type": "tool_use", "id": "t", "name": "f", "input": {"a": 1}},
                    ],
                },
            ]
        },
        [("Hi", 'Hm.\nHello.\n{"name": "f", "input": {"a": 1}}')],
    ),
    "Gemini": (
        {
            "request": {"contents": [{"role": "user", "parts": [{"text": "Hi"}]}]},
            "response": {
                "candidates": [{"content": {"role": "model", "parts": [{"text": "Hello."}]}}]
            },
        },
        ONE,
    ),
    "Bedrock log": (
        {
            "input": {"inputBodyJson": {"messages": [Q]}},
            "output": {"outputBodyJson": {"content": [{"text": "Hello."}]}},
        },
        ONE,
    ),
    "Ollama": ({"prompt": "Hi", "response": "Hello.", "done": True, "eval_count": 7}, ONE),
    "Ollama chat": ({"messages": [Q], "message": A, "eval_count": 7}, ONE),
    "Helicone": ({"request_body": {"messages": [Q]}, "response_body": CHOICES}, ONE),
    "OpenPipe": ({"reqPayload": {"messages": [Q]}, "respPayload": CHOICES}, ONE),
    "LiteLLM": ({"request_id": "x", "messages": [Q], "response": CHOICES}, ONE),
    "LiteLLM as text": ({"messages": json.dumps([Q]), "response": json.dumps(CHOICES)}, ONE),
    "Langfuse": ({"type": "GENERATION", "input": [Q], "output": A}, ONE),
    "Langfuse, objects": ({"input": {"messages": [Q]}, "output": A}, ONE),
    "Langfuse as text": ({"input": json.dumps([Q]), "output": json.dumps(A)}, ONE),
    "LangSmith": ({"inputs": {"messages": [Q]}, "outputs": CHOICES}, ONE),
    "LangSmith, serialised": (
        {
            "inputs": {
                "messages": [
                    [{"lc": 1, "id": ["schema", "HumanMessage"], "kwargs": {"content": "Hi"}}]
                ]
            },
            "outputs": {"generations": [[{"text": "Hello."}]]},
        },
        ONE,
    ),
    "LangChain": (
        {"messages": [{"type": "human", "content": "Hi"}, {"type": "ai", "content": "Hello."}]},
        ONE,
    ),
    "LangChain, nested": (
        {
            "messages": [
                {"type": "human", "data": {"content": "Hi"}},
                {"type": "ai", "data": {"content": "Hello."}},
            ]
        },
        ONE,
    ),
    "chunks of a stream": (
        {
            "request": {"messages": [Q]},
            "response": [
                {"choices": [{"index": 0, "delta": {"role": "assistant", "content": "Hel"}}]},
                {"choices": [{"index": 0, "delta": {"content": "lo."}, "finish_reason": "stop"}]},
                {"choices": [], "usage": USAGE},
            ],
        },
        ONE,
    ),
    "several choices": (
        {"request": {"prompt": "Hi"}, "response": {"choices": [{"text": "a"}, {"text": "b"}]}},
        [("Hi", "a"), ("Hi", "b")],
    ),
    "claude.ai": (
        {
            "uuid": "u",
            "chat_messages": [
                {"sender": "human", "text": "Hi", "content": [{"type": "text", "text": "Hi"}]},
                {"sender": "assistant", "text": "Hello."},
            ],
        },
        ONE,
    ),
    "ChatGPT": (
        {
            "title": "t",
            "mapping": {
                "r": {"message": None, "children": ["a"]},
                "a": {
                    "parent": "r",
                    "children": ["b", "c"],
                    "message": {"author": {"role": "user"}, "content": {"parts": ["Hi"]}},
                },
                "c": {
                    "parent": "a",
                    "message": {
                        "author": {"role": "assistant"},
                        "content": {"parts": ["Not this."]},
                    },
                },
                "b": {
                    "parent": "a",
                    "message": {"author": {"role": "assistant"}, "content": {"parts": ["Hello."]}},
                },
            },
            "current_node": "b",
        },
        ONE,
    ),
    "ShareGPT as text": ({"conversations": json.dumps(TALK)}, ONE),
    "ShareGPT as Python prints it": ({"conversations": repr(TALK)}, ONE),
    "ShareGPT in columns": (
        {"conversations": {"from": ["human", "gpt"], "value": ["Hi", "Hello."]}},
        ONE,
    ),
    "ShareGPT, markdown": (
        {
            "conversations": [
                {"from": "human", "markdown": "Hi"},
                {"from": "gpt", "markdown": "Hello."},
            ]
        },
        ONE,
    ),
    "texts in turn": ({"conversations": ["Hi", "Hello."], "source": "s"}, ONE),
    "pairs": ({"conversation": [{"human": "Hi", "assistant": "Hello."}]}, ONE),
    "a list in a list": ({"messages": [[Q, A]]}, ONE),
    "Cohere": (
        {"messages": [{"role": "User", "message": "Hi"}, {"role": "Chatbot", "message": "Hello."}]},
        ONE,
    ),
    "a refusal": ({"messages": [Q, {"role": "assistant", "refusal": "No."}]}, [("Hi", "No.")]),
    "speech": (
        {"messages": [Q, {"role": "assistant", "audio": {"transcript": "Hello."}}]},
        ONE,
    ),
    "thoughts beside an answer": (
        {"prompt": "Hi", "reasoning_content": "Hm.", "response": "Hello."},
        [("Hi", "Hm.\nHello.")],
    ),
    "several answers": ({"prompt": "Hi", "responses": ["a", "b"]}, [("Hi", "a"), ("Hi", "b")]),
    "ranked answers": (
        {"prompt": "Hi", "answers": [{"answer": "a", "rank": 1}, {"answer": "b", "rank": 2}]},
        [("Hi", "a"), ("Hi", "b")],
    ),
    "what a model gave, beside what is right": (
        {"problem": "Hi", "solution": "4", "generations": ["It is 4."]},
        [("Hi", "It is 4.")],
    ),
    "an answer in a list": ({"question": "Hi", "answer": ["Hello."]}, ONE),
    "the same text twice": ({"instruction": "Hi", "input": "Hi", "output": "Hello."}, ONE),
    "FLAN": ({"inputs": "Hi", "targets": "Hello."}, ONE),
    "text that only looks like messages": (
        {"prompt": '[{"a": 1}]', "response": '{"content": "x"}'},
        [('[{"a": 1}]', '{"content": "x"}')],
    ),
}


def read(tmp_path, *rows, name="rows.jsonl"):
    path = tmp_path / name
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    table = read_file(path)
    return list(zip(table["prompt"], table["response"], strict=True)), table


@pytest.mark.parametrize("form", FORMS)
def test_a_row_of_each_tool(tmp_path, form):
    row, pairs = FORMS[form]
    found, table = read(tmp_path, row, row)
    assert found == pairs * 2
    assert (table.attrs["skipped"], table.attrs["skipped_turns"]) == ([], 0)


@pytest.mark.parametrize("form", ["OpenAI batch", "Langfuse", "ShareGPT in columns", "Gemini"])
@pytest.mark.parametrize("printed", [json.dumps, repr])
def test_a_table_whose_cells_hold_them(tmp_path, form, printed):
    row, pairs = FORMS[form]
    cells = {k: printed(v) if isinstance(v, list | dict) else v for k, v in row.items()}
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, list(cells))
    writer.writeheader()
    writer.writerow(cells)
    for name, content in (("a.csv", text.getvalue()), ("a.jsonl", json.dumps(cells))):
        (tmp_path / name).write_text(content)
        if name == "a.csv" and not any(k in ("conversations", "input", "response") for k in row):
            continue
        table = read_file(tmp_path / name)
        assert list(zip(table["prompt"], table["response"], strict=True)) == pairs, name
    pd.DataFrame([cells]).to_parquet(tmp_path / "a.parquet")
    assert len(read_file(tmp_path / "a.parquet")) == len(pairs)


@pytest.mark.parametrize(
    ("row", "cut"),
    [
        ({"finish_reason": "length"}, True),
        ({"finish_reason": "max_tokens"}, True),
        ({"finish_reason": "MAX_TOKENS"}, True),
        ({"stop_reason": "max_tokens"}, True),
        ({"done_reason": "length"}, True),
        ({"finishReason": "max_output_tokens"}, True),
        ({"incomplete_details": {"reason": "max_output_tokens"}}, True),
        ({"details": {"finish_reason": "length", "generated_tokens": 3}}, True),
        ({"finish_reason": "stop"}, False),
        ({"stop_reason": "end_turn"}, False),
        ({"finish_reason": "length", "censored": False}, False),
        ({"finish_reason": None, "stop_reason": 151645}, False),
        ({}, False),
    ],
)
def test_an_answer_that_was_cut_is_known_in_everybodys_words(tmp_path, row, cut):
    _, table = read(tmp_path, {"prompt": "Hi", "response": "Hello."} | row)
    assert table["censored"].tolist() == [cut]


@pytest.mark.parametrize("ending", ["abort", "cancelled", "Error"])
def test_an_answer_that_somebody_ended_is_left_out_and_counted(tmp_path, ending):
    good = {"prompt": "Hi", "response": "Hello."}
    _, table = read(tmp_path, good, good | {"finish_reason": ending})
    assert len(table) == 1
    assert table.attrs["skipped"][0]["reason"] == "the answer did not end by itself"


@pytest.mark.parametrize(
    ("row", "tokens"),
    [
        ({"prompt": "Hi", "response": "Hello.", "usage": USAGE}, [9, 44]),
        ({"prompt": "Hi", "choices": [{"text": "Hello."}], "usage": USAGE}, [9, 44]),
        ({"messages": [Q], **CHOICES, "usage": USAGE}, [1, 44]),
        ({"messages": [Q, A], "usage": {"output_tokens": 44}}, [1, 44]),
        ({"prompt": "Hi", "response": "Hello.", "usage": USAGE, "output_tokens": 3}, [9, 3]),
        ({"input": [Q], "output": A, "usage": {"input": 9, "output": 44}}, [1, 44]),
        ({"request": {"messages": [Q]}, "response": {**CHOICES, "usage": "none"}}, [1, 3]),
        ({"request": {"messages": [Q]}, "response": {**CHOICES, "usage": {"completion_tokens": 0}}}, [1, 3]),  # noqa: E501
        ({"prompt": "Hi", "responses": ["Hello.", "Hello."], "output_tokens": 44}, [1, 3]),
    ],
)  # fmt: skip
def test_counts_are_the_servers_where_it_says_them(tmp_path, row, tokens):
    _, table = read(tmp_path, row)
    assert table.loc[0, ["prompt_tokens", "output_tokens"]].tolist() == tokens


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"custom_id": "1", "response": {"body": CHOICES}}, "needs the request beside"),
        ({"request": {"messages": [Q]}, "response": {"error": {"message": "late"}}}, "the response is an error"),  # noqa: E501
        ({"request": {"messages": [Q]}, "response": {"choices": []}}, "response must be text"),
        ({"request": {"messages": [Q]}, "response": {"choices": ["x"]}}, "response must be text"),
        ({"turns": ["Hi", "More"]}, "a message must be an object"),
        ({"mapping": {"a": {"parent": "a"}}, "current_node": "a"}, "no assistant turn"),
        ({"mapping": {"a": {"parent": ["a"]}}, "current_node": ["a"]}, "no assistant turn"),
    ],
)  # fmt: skip
def test_what_cannot_be_read_is_counted(tmp_path, row, reason):
    good = {"prompt": "Hi", "response": "Hello."}
    found, table = read(tmp_path, good, row, good)
    assert found == ONE * 2
    assert table.attrs["skipped"][0]["reason"].startswith(reason)


values = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=3))
    | st.sampled_from(["user", "assistant", "tool_use", "human", '[{"role": "user"}]', "length"]),
    lambda inner: st.lists(inner, max_size=3)
    | st.dictionaries(
        st.sampled_from(
            ["request", "response", "body", "choices", "message", "delta", "candidates", "content",
             "output", "input", "messages", "mapping", "current_node", "parent", "children", "type",
             "author", "parts", "data", "kwargs", "id", "generations", "text", "usage", "details",
             "role", "name", "audio", "refusal", "arguments", "index", "error", "finish_reason",
             "human", "assistant", "system", "instructions", "prompt", "eval_count"]
        ),
        inner,
        max_size=5,
    ),
    max_leaves=14,
)  # fmt: skip
names = st.sampled_from(
    ["request", "response", "input", "output", "inputs", "outputs", "messages", "conversations",
     "choices", "candidates", "message", "mapping", "current_node", "usage", "generations", "body",
     "responses", "answers", "prompt", "chat_messages", "details", "reasoning_content", "result"]
)  # fmt: skip


@pytest.mark.parametrize("delta", [None, 3, "text", []])
def test_a_chunk_whose_delta_is_none_says_nothing(delta):
    row = {"choices": [{"index": 0, "delta": delta}], "messages": [Q]}
    assert answers_in(row) == answers_in([row]) == []
    assert examples_of(normal_row(row), "here") == ([], 0)


@settings(max_examples=300)
@given(st.dictionaries(names, values, min_size=1, max_size=5))
def test_whatever_is_around_it_a_row_is_read_or_refused(row):
    try:
        examples, _ = examples_of(normal_row(row), "here")
    except InputError:
        return
    for example in examples:
        assert example.prompt.strip()
        assert example.output_tokens or (example.response or "").strip()
