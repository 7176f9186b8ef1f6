from __future__ import annotations

import json
import re
from itertools import chain

import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lengthwise.data.chat import rendered
from lengthwise.data.errors import InputError
from lengthwise.data.sources.containers import rows_of
from lengthwise.data.sources.prompt_files import read_file
from lengthwise.data.splits import split_of
from lengthwise.data.table import prompt_group
from lengthwise.predictor.features.request_text import text_of_request

LONG = "Please explain to me in some detail how a refrigerator works"


def conversation(name, *turns):
    roles = ("human", "gpt")
    return {
        "id": name,
        "conversations": [{"from": roles[i % 2], "value": text} for i, text in enumerate(turns)],
    }


def written(tmp_path, rows, name="s.json"):
    path = tmp_path / name
    path.write_text(json.dumps(rows))
    return path


def test_one_row_per_assistant_turn_with_the_history_as_prompt(tmp_path):
    table = read_file(written(tmp_path, [conversation("a", "Q1", "A1", "Q2", "A2")]))
    assert table["prompt"].tolist() == ["Q1", "<|user|>\nQ1\n<|assistant|>\nA1\n<|user|>\nQ2"]
    assert table["response"].tolist() == ["A1", "A2"]
    assert table["group"].nunique() == 1
    assert table["slo_class"].unique().tolist() == ["chat"]
    assert table["output_tokens"].tolist() == [3, 3]


def test_the_history_is_what_the_server_would_see():
    for messages in (
        [("user", "Q")],
        [("system", "S"), ("user", "Q")],
        [("user", "Q"), ("assistant", "A"), ("user", "Q2")],
    ):
        body = {"messages": [{"role": r, "content": t} for r, t in messages]}
        assert rendered(messages) == text_of_request(body)


def test_all_role_names_and_openai_messages(tmp_path):
    rows = [
        {
            "conversations": [
                {"from": "system", "value": "S"},
                {"from": "user", "value": "Q"},
                {"from": "chatgpt", "value": "A"},
            ]
        },
        {"messages": [{"role": "user", "content": "Q"}, {"role": "assistant", "content": "A"}]},
    ]
    lines = tmp_path / "s.jsonl"
    lines.write_text("\n".join(map(json.dumps, rows)))
    for path in (written(tmp_path, rows), lines):
        table = read_file(path)
        assert table["prompt"].tolist() == ["<|system|>\nS\n<|user|>\nQ", "Q"]
        assert (table.attrs["skipped_turns"], table.attrs["skipped"]) == (0, [])


def test_blank_turns_are_counted_not_kept(tmp_path):
    rows = [
        {"id": "a", "conversations": [{"from": "gpt", "value": "no question"}]},
        conversation("b", "Q", "  "),
        {"id": "c", "conversations": []},
        conversation("d", "Q", "A"),
    ]
    table = read_file(written(tmp_path, rows))
    assert table["response"].tolist() == ["A"]
    assert table.attrs["skipped_turns"] == 2


def test_parts_and_equal_openings_share_a_group(tmp_path):
    rows = [
        conversation("x_0", LONG, "A"),
        conversation("x_1", "continue", "B"),
        conversation("y_0", LONG.upper() + "!", "C"),
        conversation("z_0", "continue", "D"),
    ]
    groups = read_file(written(tmp_path, rows))["group"].tolist()
    assert groups[0] == groups[2]
    assert groups[1] == groups[3] != groups[0]  # one question, which ties nothing


words = st.sampled_from(["hi", "Hi!", "continue", " continue.", "??", "!!", LONG, LONG + "?"])
talks = st.tuples(
    st.lists(st.tuples(words, words), min_size=1, max_size=3), st.sampled_from(["x", "y", "z"])
)


@settings(max_examples=150, deadline=None)
@given(st.lists(talks, min_size=1, max_size=12), st.lists(words, max_size=8), st.integers(0, 9))
def test_no_question_is_on_two_sides_however_short(tmp_path_factory, chats, asked, seed):
    """Up to case, spacing and punctuation; whatever a chat says besides stays together."""
    rows = []
    for number, (turns, stem) in enumerate(chats):
        rows.append(conversation(f"{stem}_{number}", *chain(*turns)))
    rows += [{"prompt": text, "output_tokens": 5} for text in asked]
    table = read_file(written(tmp_path_factory.mktemp("chats"), rows))
    questions = table["prompt"].map(prompt_group)
    assert table["group"].groupby(questions).nunique().max() == 1
    sides = pd.Series(split_of(table["group"].tolist(), seed))
    assert sides.groupby(questions.to_numpy()).nunique().max() == 1


def test_what_a_chat_says_beside_a_short_question_stays_together(tmp_path):
    chats = [conversation(f"{n}", "hi", *(f"{n} says {i}" for i in range(7))) for n in range(20)]
    table = read_file(written(tmp_path, chats))
    first = table["prompt"] == "hi"
    assert table["group"][first].nunique() == 1
    assert first.sum() == 20
    assert table["group"][~first].nunique() == 20


def test_an_id_prefix_of_a_whole_set_is_not_one_conversation(tmp_path):
    rows = [conversation(f"code_{i}", f"question {i}", "A") for i in range(150)]
    path = written(tmp_path, rows)
    assert read_file(path)["group"].nunique() == 150
    # also where only some of them are looked at
    assert read_file(path, limit=50)["group"].nunique() == 50


def test_a_file_longer_than_a_chunk(tmp_path):
    rows = [conversation(f"{i}", f"Q{i} " + "x" * 700_000, "A") for i in range(4)]
    rows.append(conversation("big", "y" * 5_000_000, "A"))
    found = [row["id"] for _, row in rows_of(written(tmp_path, rows))]
    assert found == [row["id"] for row in rows]


def test_reader_of_the_catalogue_sets_the_class(tmp_path):
    path = written(tmp_path, [conversation("a", "Q", "A")])
    table = read_file(path, reader="sharegpt_code", source_label="s", license_name="L")
    assert table["slo_class"].tolist() == ["code"]
    assert (table["source"][0], table["license"][0]) == ("s", "L")


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"id": "b"}, "needs a prompt"),
        ({"conversations": ["hi"]}, "a message must be an object, got 'hi'"),
        (
            {"conversations": [{"from": "martian", "value": "v"}]},
            r"role \('from'\) of a message must be .*'martian'",
        ),
        ({"conversations": [{"value": "v"}]}, r"role \('from'\) of a message must be .*None"),
        ({"conversations": [{"from": "gpt", "value": 3}]}, "must be text, got 3"),
        ({"conversations": [{"from": "gpt"}]}, "no assistant turn with text before it"),
    ],
)
def test_a_bad_item_is_named_and_the_others_are_read(tmp_path, row, message):
    path = written(tmp_path, [conversation("a", "Q", "A"), row])
    table = read_file(path)
    assert table["response"].tolist() == ["A"]
    (entry,) = table.attrs["skipped"]
    assert entry["rows"] == 1
    assert re.match(f"{re.escape(str(path))}: item 1: .*{message}", entry["first"])


def test_nothing_but_blanks(tmp_path):
    with pytest.raises(InputError, match=r"item 0: no assistant turn with text before it"):
        read_file(written(tmp_path, [conversation("a", "Q", "")]))
