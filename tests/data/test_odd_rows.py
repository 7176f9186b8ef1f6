"""One odd row never ends a file: it is read if it can be, else left out, counted and named."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lengthwise.data.chat import ROLES, rendered, role_of, valid_text
from lengthwise.data.errors import InputError
from lengthwise.data.skipped import MOST_BROKEN_SHARE
from lengthwise.data.sources.examples import turn_of
from lengthwise.data.sources.formats import examples_of
from lengthwise.data.sources.normal import normal_row
from lengthwise.data.sources.prompt_files import read_file
from lengthwise.predictor.features.request_text import text_of_request

GOOD = {"prompt": "fine", "response": "good"}


def written(tmp_path, rows, name="rows.jsonl"):
    path = tmp_path / name
    if name.endswith(".json"):
        path.write_text("[" + ",\n".join(map(json.dumps, rows)) + "]")
    else:
        path.write_text("".join((r if isinstance(r, str) else json.dumps(r)) + "\n" for r in rows))
    return path


@pytest.mark.parametrize(
    ("row", "pair"),
    [
        (
            {
                "messages": [
                    {"role": "user", "content": [{"type": "text", "text": "Hi"}]},
                    {"role": "assistant", "content": "Hello."},
                ]
            },
            ("Hi", "Hello."),
        ),
        (
            {
                "messages": [
                    {"role": "developer", "content": "S"},
                    {"role": "user", "content": "Hi"},
                    {"role": "assistant", "content": None, "tool_calls": [{"id": "x"}]},
                ]
            },
            ("<|system|>\nS\n<|user|>\nHi", '[{"id": "x"}]'),
        ),
        (
            {"instruction": "", "input": "Translate: hi", "output": "salut"},
            ("Translate: hi", "salut"),
        ),
        ({"prompt": "a\ud83d", "response": "b"}, ("a\ufffd", "b")),
        ({"prompt": "a\ud83d", "response": "\udc00"}, ("a\ufffd", "\ufffd")),
        ({"prompt": "a", "instruction": None, "response": "b", "output": None}, ("a", "b")),
        ({"prompt": None, "instruction": "a", "response": None, "output": "b"}, ("a", "b")),
        ({"PROMPT": "a", "Completion": [{"type": "text", "text": "b"}]}, ("a", "b")),
        ({"prompt": "a", "response": "b", "model": 3, "task": {"x": 1}}, ("a", "b")),
        (
            {"messages": [None, {"role": "USER", "content": "a"}, {"role": "AI", "text": "b"}]},
            ("a", "b"),
        ),
    ],
)
@pytest.mark.parametrize("name", ["rows.jsonl", "rows.json"])
def test_odd_rows_that_can_be_read(tmp_path, row, pair, name):
    table = read_file(written(tmp_path, [GOOD, row, GOOD], name))
    assert list(zip(table["prompt"], table["response"], strict=True))[1] == pair
    assert (len(table), table.attrs["skipped_rows"]) == (3, 0)


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"instruction": "a", "output": 4}, "output must be text"),
        ({"prompt": "a", "response": ""}, "the answer is empty"),
        ({"prompt": "a", "response": None}, "needs a response or its output_tokens"),
        ({"prompt": ["a", 3], "response": "b"}, "prompt must be text"),
        ({"conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": None}]},
         "no assistant turn with text before it"),
        ({"messages": [{"role": "martian", "content": "a"}]}, "role"),
        ({"messages": [{"role": "user", "content": 3}]}, "text"),
        ({}, "needs a prompt"),
        (7, "must be"),
        ([], "must be"),
        (None, "must be"),
        ("text", "must be"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("name", ["rows.jsonl", "rows.json"])
def test_odd_rows_that_cannot_are_counted_with_their_first_place(tmp_path, row, reason, name):
    rows = [GOOD, json.dumps(row) if name == "rows.jsonl" else row, GOOD]
    table = read_file(written(tmp_path, rows, name))
    assert table["prompt"].tolist() == ["fine", "fine"]
    (entry,) = table.attrs["skipped"]
    place = f"{tmp_path}/{name}" + (":2" if name == "rows.jsonl" else ": item 1")
    assert entry["first"].startswith(f"{place}: ")
    assert entry["reason"].startswith(reason)
    assert (entry["rows"], table.attrs["skipped_rows"], table.attrs["rows_read"]) == (1, 1, 3)


def test_bytes_that_are_no_text_and_broken_lines(tmp_path):
    path = tmp_path / "rows.jsonl"
    good = json.dumps(GOOD).encode()
    path.write_bytes(b"\n".join([good, b'{"prompt": "\xe9", "response": "b"}', good, b"{", good]))
    table = read_file(path)
    assert len(table) == 3
    assert {e["reason"]: e["first"].split(": ")[0] for e in table.attrs["skipped"]} == {
        "not UTF-8 text": f"{path}:2",
        "not JSON": f"{path}:4",
    }


def test_the_share_that_may_be_broken_is_stated_and_kept_to(tmp_path):
    bad = {"prompt": 5}
    assert MOST_BROKEN_SHARE == 0.5
    assert len(read_file(written(tmp_path, [GOOD] * 10 + [bad] * 10))) == 10
    with pytest.raises(InputError, match=r"11 of 21 rows cannot be used, more than 50%"):
        read_file(written(tmp_path, [GOOD] * 10 + [bad] * 11))
    # a set of prompts of which few were answered is no wrong file
    assert len(read_file(written(tmp_path, [GOOD, *[{"prompt": "a", "response": ""}] * 30]))) == 1


def test_every_name_of_a_role_is_one_the_server_knows():
    assert set(ROLES.values()) == {"user", "assistant", "system", "tool"}
    for name in ROLES:
        assert turn_of({"from": name.upper(), "value": "x"}) == (ROLES[name], "x")
    for name in (None, 3, "", "martian", ["user"]):
        assert role_of(name) is None


texts = st.text(st.characters(), max_size=12)
contents = st.one_of(
    st.none(),
    texts,
    st.lists(
        st.one_of(
            texts.map(lambda t: {"type": "text", "text": t}),
            st.just({"type": "image_url", "image_url": {"url": "x"}}),
        ),
        max_size=3,
    ),
)
messages = st.lists(
    st.fixed_dictionaries(
        {"role": st.sampled_from(["user", "assistant", "system", "developer", "tool", "function"])},
        optional={"content": contents, "tool_calls": st.just([{"id": "c"}])},
    ),
    min_size=1,
    max_size=4,
)


@given(messages)
def test_a_file_reads_a_conversation_as_the_server_does(talk):
    """Every answer's prompt is what the server would have been asked."""
    talk = json.loads(json.dumps(talk))
    row = normal_row({"messages": [*talk, {"role": "assistant", "content": "the answer"}]})
    examples, _ = examples_of(row, "here")
    asked = text_of_request({"messages": talk})
    if asked.strip():
        assert examples[-1].prompt == valid_text(asked)
        assert examples[-1].response == "the answer"


json_values = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(st.characters())),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.dictionaries(
            st.sampled_from(
                ["prompt", "response", "messages", "role", "content", "from", "value", "text",
                 "conversations", "instruction", "input", "output", "data", "chosen", "rejected",
                 "completions", "request", "choices", "message", "conversation_a", "response_a",
                 "output_tokens", "slo_class", "history", "tools", "system", "finish_reason",
                 "message_id", "parent_id", "replies", "usage", "parts", "body", "row", "row_idx"]
            ),
            inner,
            max_size=5,
        ),
    ),
    max_leaves=12,
)  # fmt: skip


names = st.sampled_from(
    ["prompt", "response", "messages", "conversations", "input", "chosen", "completions", "data",
     "request", "preferred_output", "conversation_a", "conversation_b", "response_b", "system"]
)  # fmt: skip


@given(st.dictionaries(names, json_values, max_size=4))
def test_any_row_is_read_or_refused(row):
    """Examples with text and whole counts, or an error of ours that says why not."""
    try:
        examples, blank = examples_of(normal_row(row), "here")
    except InputError:
        return
    assert blank >= 0
    for example in examples:
        assert example.prompt.strip()
        example.prompt.encode()
        assert example.output_tokens or example.response.strip()


@given(st.text(st.characters(categories=("Cs", "Ll", "So")), max_size=8))
def test_text_is_made_valid_once(text):
    made = valid_text(text)
    assert made.encode().decode() == made
    assert valid_text(made) == made
    assert rendered([("user", made)]) == made
