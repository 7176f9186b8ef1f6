"""One row of each form that sets of prompts and answers come in."""

from __future__ import annotations

import csv
import gzip
import io
import json

import pandas as pd
import pytest

from lengthwise.data.sources.prompt_files import read_file

Q, A = {"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello."}
TOOL = {"type": "function", "function": {"name": "now"}}
TWO = "<|user|>\nHi\n<|assistant|>\nHello.\n<|user|>\nMore"


def oasst(role, text, **more):
    return {"message_id": text, "role": role, "text": text} | more


# form: (row, [(prompt, answer)])
FORMS = {
    "openai": ({"messages": [Q, A]}, [("Hi", "Hello.")]),
    "openai fine-tuning": (
        {"messages": [{"role": "developer", "content": "Be kind."}, Q, A | {"weight": 1}]},
        [("<|system|>\nBe kind.\n<|user|>\nHi", "Hello.")],
    ),
    "openai tools": (
        {
            "messages": [
                Q,
                {"role": "assistant", "content": None, "tool_calls": [{"id": "1"}]},
                {"role": "tool", "tool_call_id": "1", "content": "12:00"},
                A,
            ],
            "tools": [TOOL],
        },
        [
            ('Hi\n\nFunctions:\n[{"name": "now"}]', '[{"id": "1"}]'),
            (
                '<|user|>\nHi\n<|assistant|>\n[{"id": "1"}]\n<|tool|>\n12:00'
                '\n\nFunctions:\n[{"name": "now"}]',
                "Hello.",
            ),
        ],
    ),
    "openai preference": (
        {
            "input": {"messages": [Q], "tools": []},
            "preferred_output": [A],
            "non_preferred_output": [{"role": "assistant", "content": "What?"}],
        },
        [("Hi", "Hello."), ("Hi", "What?")],
    ),
    "stored completion": (
        {
            "request": {"model": "m", "messages": [Q]},
            "response": {"choices": [{"message": A, "finish_reason": "length"}]},
        },
        [("Hi", "Hello.")],
    ),
    "messages beside an answer": ({"messages": [Q], "response": "Hello."}, [("Hi", "Hello.")]),
    "trl": ({"prompt": [Q], "completion": [A]}, [("Hi", "Hello.")]),
    "gemini": (
        {
            "contents": [
                {"role": "user", "parts": [{"text": "Hi"}]},
                {"role": "model", "parts": [{"text": "Hello."}]},
            ]
        },
        [("Hi", "Hello.")],
    ),
    "sharegpt": (
        {
            "id": "a",
            "conversations": [
                {"from": "human", "value": "Hi"},
                {"from": "gpt", "value": "Hello."},
                {"from": "human", "value": "More"},
                {"from": "gpt", "value": "Yes."},
            ],
        },
        [("Hi", "Hello."), (TWO, "Yes.")],
    ),
    "sharegpt with system": (
        {
            "system": "S",
            "conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello."}],
        },
        [("<|system|>\nS\n<|user|>\nHi", "Hello.")],
    ),
    "lmsys-chat": (
        {
            "conversation_id": "c",
            "model": "vicuna-13b",
            "conversation": [Q, A],
            "turn": 1,
            "language": "English",
            "openai_moderation": [{"flagged": False}],
            "redacted": False,
        },
        [("Hi", "Hello.")],
    ),
    "wildchat": (
        {
            "conversation_hash": "h",
            "model": "gpt-4",
            "timestamp": "2023-04-09",
            "conversation": [Q | {"toxic": False}, A | {"toxic": False}],
            "turn": 1,
        },
        [("Hi", "Hello.")],
    ),
    "arena": (
        {
            "question_id": "q",
            "model_a": "a",
            "model_b": "b",
            "winner": "tie",
            "conversation_a": [Q, A],
            "conversation_b": [Q, {"role": "assistant", "content": "Hey."}],
        },
        [("Hi", "Hello."), ("Hi", "Hey.")],
    ),
    "arena preferences": (
        {
            "id": 1,
            "model_a": "a",
            "model_b": "b",
            "prompt": '["Hi", "More"]',
            "response_a": '["Hello.", "Yes."]',
            "response_b": '["Hello.", null]',
        },
        [("Hi", "Hello."), (TWO, "Yes."), ("Hi", "Hello.")],
    ),
    "oasst tree": (
        {
            "message_tree_id": "t",
            "tree_state": "ready_for_export",
            "prompt": oasst(
                "prompter",
                "Hi",
                replies=[
                    oasst("assistant", "Hello.", replies=[oasst("prompter", "More", replies=[])]),
                    oasst("assistant", "Hey.", replies=[]),
                ],
            ),
        },
        [("Hi", "Hello."), ("Hi", "Hey.")],
    ),
    "ultrachat": (
        {"id": "0", "data": ["Hi", "Hello.", "More", "Yes."]},
        [("Hi", "Hello."), (TWO, "Yes.")],
    ),
    "ultrachat 200k": ({"prompt": "Hi", "prompt_id": "p", "messages": [Q, A]}, [("Hi", "Hello.")]),
    "ultrafeedback": (
        {
            "source": "evol_instruct",
            "instruction": "Hi",
            "models": ["m", "n"],
            "completions": [
                {"model": "m", "response": "Hello.", "overall_score": 1.0},
                {"model": "n", "response": "Hey."},
            ],
        },
        [("Hi", "Hello."), ("Hi", "Hey.")],
    ),
    "ultrafeedback binarized": (
        {
            "prompt": "Hi",
            "chosen": [Q, A],
            "rejected": [Q, {"role": "assistant", "content": "Hey."}],
            "messages": [Q, A],
            "score_chosen": 8.0,
        },
        [("Hi", "Hello."), ("Hi", "Hey.")],
    ),
    "pairs": (
        {"prompt": "Hi", "chosen": "Hello.", "rejected": "Hey."},
        [("Hi", "Hello."), ("Hi", "Hey.")],
    ),
    "hh-rlhf": (
        {
            "chosen": "\n\nHuman: Hi\n\nAssistant: Hello.",
            "rejected": "\n\nHuman: Hi\n\nAssistant: Hey.",
        },
        [("Hi", "Hello."), ("Hi", "Hey.")],
    ),
    "openorca": (
        {"id": "niv.1", "system_prompt": "Think.", "question": "Hi", "response": "Hello."},
        [("<|system|>\nThink.\n<|user|>\nHi", "Hello.")],
    ),
    "openorca without system": (
        {"id": "niv.1", "system_prompt": "", "question": "Hi", "response": "Hello."},
        [("Hi", "Hello.")],
    ),
    "dolly": (
        {"instruction": "Hi", "context": "Here.", "response": "Hello.", "category": "open_qa"},
        [("Hi\n\nHere.", "Hello.")],
    ),
    "alpaca": (
        {"instruction": "Hi", "input": "", "output": "Hello.", "text": "Below is ... Hello."},
        [("Hi", "Hello.")],
    ),
    "alpaca without instruction": (
        {"instruction": "", "input": "Translate: hi", "output": "salut"},
        [("Translate: hi", "salut")],
    ),
    "alpaca with history": (
        {"instruction": "More", "input": "", "output": "Yes.", "history": [["Hi", "Hello."]]},
        [(TWO, "Yes.")],
    ),
    "capitals": ({" Prompt ": "Hi", "Response": "Hello."}, [("Hi", "Hello.")]),
    "content parts": (
        {"messages": [{"role": "user", "content": [{"type": "text", "text": "Hi"}]}, A]},
        [("Hi", "Hello.")],
    ),
    "hub viewer": (
        {"row_idx": 0, "row": {"prompt": "Hi", "response": "Hello."}},
        [("Hi", "Hello.")],
    ),
}


def read(path):
    table = read_file(path)
    return list(zip(table["prompt"], table["response"], strict=True)), table


@pytest.mark.parametrize("form", FORMS)
def test_a_row_of_each_form(tmp_path, form):
    row, pairs = FORMS[form]
    lines, packed, array = (tmp_path / n for n in ("rows.data", "rows.jsonl.gz", "rows.json"))
    lines.write_text(json.dumps(row) + "\n" + json.dumps(row) + "\n")
    packed.write_bytes(gzip.compress(lines.read_bytes()))
    array.write_text(json.dumps([row, row], indent=2))
    for path in (lines, packed, array):
        found, table = read(path)
        assert found == pairs * 2, path
        assert table.attrs["skipped"] == []
    assert table["group"].nunique() <= 2


@pytest.mark.parametrize("form", ["openai", "wildchat", "ultrafeedback", "openorca", "alpaca"])
def test_parquet_of_each_shape(tmp_path, form):
    row, pairs = FORMS[form]
    path = tmp_path / "train-00000-of-00001.parquet"
    pd.DataFrame([row]).to_parquet(path)
    assert read(path)[0] == pairs
    packed = tmp_path / "rows.parquet.gz"
    packed.write_bytes(gzip.compress(path.read_bytes()))
    assert read(packed)[0] == pairs


def test_oasst_as_flat_messages_in_any_order(tmp_path):
    rows = [
        oasst("assistant", "Yes.", parent_id="More", message_tree_id="Hi"),
        oasst("prompter", "Hi", parent_id=None, message_tree_id="Hi", lang="en"),
        oasst("prompter", "More", parent_id="Hello.", message_tree_id="Hi"),
        oasst("assistant", "Hello.", parent_id="Hi", message_tree_id="Hi"),
        oasst("assistant", "Lost.", parent_id="nowhere", message_tree_id="x"),
    ]
    path = tmp_path / "oasst.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    found, table = read(path)
    assert found == [(TWO, "Yes."), ("Hi", "Hello.")]
    assert table["group"].nunique() == 1
    assert table.attrs["skipped"][0]["reason"] == "the message before it is not in the file"


@pytest.mark.parametrize(
    ("name", "delimiter", "quoting"),
    [
        ("rows.csv", ",", csv.QUOTE_MINIMAL),
        ("rows.csv", ";", csv.QUOTE_ALL),
        ("rows.tsv", "\t", csv.QUOTE_MINIMAL),
        ("rows.CSV.gz", ",", csv.QUOTE_MINIMAL),
        ("rows.txt", ",", csv.QUOTE_MINIMAL),
    ],
)
def test_tables_with_a_header(tmp_path, name, delimiter, quoting):
    text = io.StringIO(newline="")
    writer = csv.writer(text, delimiter=delimiter, quoting=quoting)
    writer.writerow(["Prompt", "response", "output_tokens", "note"])
    writer.writerow(["Hi, you;\tand\nmore", 'He said "so".', "", "n"])
    writer.writerow(["Hi", "", "7", ""])
    writer.writerow(["No answer", "", "", ""])
    content = b"\xef\xbb\xbf" + text.getvalue().encode()
    path = tmp_path / name
    path.write_bytes(gzip.compress(content) if name.endswith("gz") else content)
    found, table = read(path)
    assert found == [("Hi, you;\tand\nmore", 'He said "so".'), ("Hi", None)]
    assert table["output_tokens"].tolist()[1] == 7
    assert table.attrs["skipped"][0]["first"].startswith(f"{path}:5: needs a response")


@pytest.mark.parametrize("name", ["rows.ndjson", "rows.json", "rows", "rows.txt", "rows.log"])
def test_json_lines_under_any_name(tmp_path, name):
    path = tmp_path / name
    path.write_text('{"prompt": "Hi", "response": "Hello."}\n' * 3)
    assert read(path)[0] == [("Hi", "Hello.")] * 3


@pytest.mark.parametrize("name", ["data", "rows", "examples", "train"])
def test_a_document_whose_member_holds_the_rows(tmp_path, name):
    document = {"version": 1, name: [{"prompt": "Hi", "response": "Hello."}] * 2}
    for indent in (None, 2):
        path = tmp_path / f"{indent}.json"
        path.write_text(json.dumps(document, indent=indent))
        assert read(path)[0] == [("Hi", "Hello.")] * 2


def test_one_object_over_many_lines(tmp_path):
    path = tmp_path / "one.json"
    path.write_text(json.dumps(FORMS["sharegpt"][0], indent=2))
    assert read(path)[0] == FORMS["sharegpt"][1]


def test_what_a_row_says_of_itself_is_kept(tmp_path):
    path = tmp_path / "rows.jsonl"
    row = FORMS["wildchat"][0] | {"slo_class": "agent", "completion_tokens": 9, "license": "ODC-BY"}
    path.write_text(json.dumps(row))
    _, table = read(path)
    first = table.iloc[0]
    assert (first["model"], first["slo_class"], first["license"]) == ("gpt-4", "agent", "ODC-BY")
    assert (first["output_tokens"], first["task"]) == (9, "conversation")
    stored, _ = FORMS["stored completion"]
    stored["response"]["usage"] = {"completion_tokens": 5, "prompt_tokens": 9}
    path.write_text(json.dumps(stored))
    assert read(path)[1][["output_tokens", "censored"]].to_numpy().tolist() == [[5, True]]
