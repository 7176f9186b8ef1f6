from __future__ import annotations

import gzip
import json
import math
import re

import pandas as pd
import pytest

from lengthwise.data.errors import InputError
from lengthwise.data.sources.containers import rows_of
from lengthwise.data.sources.load import load_table
from lengthwise.data.sources.prompt_files import read_file
from lengthwise.data.sources.synthetic.corpus import synthetic_table


def written(tmp_path, *rows, name="rows.jsonl"):
    path = tmp_path / name
    path.write_text("".join((r if isinstance(r, str) else json.dumps(r)) + "\n" for r in rows))
    return path


def test_prompt_and_response_are_counted(tmp_path):
    path = written(tmp_path, {"prompt": "Hello world!", "response": "Hello"})
    table = load_table(str(path))
    row = table.iloc[0]
    assert (row["prompt_tokens"], row["output_tokens"]) == (3, 2)
    assert (row["slo_class"], row["source"], row["license"]) == (
        "default",
        path.name,
        "none-stated",
    )
    assert table.attrs["tokenizer"] == "tekken"
    assert table.attrs["source_label"] == path.name


def test_given_counts_are_kept_and_need_no_answer(tmp_path):
    rows = [{"prompt": "Hello world!", "output_tokens": 99}, {"prompt": "b", "output_tokens": 7}]
    table = read_file(written(tmp_path, *rows))
    assert table["output_tokens"].tolist() == [99, 7]
    assert table["prompt_tokens"].tolist()[0] == 3
    assert table["response"].tolist() == [None, None]
    assert table.attrs["tokenizer"] == "file+tekken"


def test_an_empty_answer_is_none(tmp_path):
    rows = [{"prompt": "b", "response": text} for text in ("", "fine", "  ")]
    table = read_file(written(tmp_path, *rows))
    assert table["response"].tolist() == ["fine"]
    assert [(e["reason"], e["rows"]) for e in table.attrs["skipped"]] == [
        ("the answer is empty", 2)
    ]
    counted = read_file(written(tmp_path, {"prompt": "b", "response": "", "output_tokens": 3}))
    assert (counted["output_tokens"].tolist(), counted["response"].tolist()) == ([3], [None])


@pytest.mark.parametrize(
    ("row", "prompt", "response"),
    [
        ({"instruction": "Do", "input": "this", "output": "done"}, "Do\n\nthis", "done"),
        ({"instruction": "Do", "input": "", "output": "done"}, "Do", "done"),
        ({"instruction": "Do", "context": "so", "response": "done"}, "Do\n\nso", "done"),
        ({"question": "Why?", "answer": "So."}, "Why?", "So."),
        ({"input": "in", "output": "out"}, "in", "out"),
        ({"text": "t", "completion": "c"}, "t", "c"),
        ({"prompt": "p", "input": "i", "response": "r"}, "p", "r"),
    ],
)
def test_usual_column_names(tmp_path, row, prompt, response):
    table = read_file(written(tmp_path, row))
    assert (table["prompt"][0], table["response"][0]) == (prompt, response)


def test_other_columns_are_carried(tmp_path):
    row = {
        "prompt": "p",
        "completion_tokens": 5,
        "class": "chat",
        "category": "qa",
        "model": "m",
        "dataset": "d",
        "license": "MIT",
        "group": "g",
        "censored": True,
    }
    table = read_file(written(tmp_path, row))
    assert table.iloc[0][["slo_class", "task", "model", "source", "license", "group"]].tolist() == [
        "chat",
        "qa",
        "m",
        "d",
        "MIT",
        "g",
    ]
    assert table["censored"].tolist() == [True]


def test_an_answer_that_ran_to_its_limit_is_censored(tmp_path):
    rows = [{"prompt": "p", "output_tokens": 5, "finish_reason": r} for r in ("length", "stop")]
    assert read_file(written(tmp_path, *rows))["censored"].tolist() == [True, False]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"response": "r"}, "needs a prompt"),
        ({"prompt": "  ", "response": "r"}, "prompt must be text that is not blank"),
        ({"prompt": 5, "response": "r"}, "prompt must be text"),
        ({"prompt": "p"}, "needs a response or its output_tokens"),
        ({"prompt": "p", "response": ["r", 3]}, "response must be text"),
        ({"prompt": "p", "output_tokens": -1}, "output_tokens must be a whole number .* got -1"),
        ({"prompt": "p", "output_tokens": 2.5}, "got 2.5"),
        ({"prompt": "p", "output_tokens": math.nan}, "needs a response or its output_tokens"),
        ({"prompt": "p", "output_tokens": "7"}, "got '7'"),
        ({"prompt": "p", "output_tokens": 7, "prompt_tokens": 0}, "prompt_tokens must be"),
        ({"prompt": "p", "output_tokens": 7, "slo_class": "a b"}, "slo_class must be"),
        ({"prompt": "p", "output_tokens": 7, "group": [3]}, "group must be text"),
        ({"prompt": "p", "output_tokens": 7, "censored": 1}, "censored must be true or false"),
        ("{", "not JSON"),
        ("3", "must be a JSON object"),
    ],
)
def test_a_bad_row_is_named_with_file_and_line_and_the_others_are_read(tmp_path, row, message):
    good = {"prompt": "fine", "response": "r"}
    path = written(tmp_path, good, row, good)
    table = load_table(str(path))
    assert table["prompt"].tolist() == ["fine", "fine"]
    (entry,) = table.attrs["skipped"]
    assert re.match(f"{re.escape(str(path))}:2: .*{message}", entry["first"])
    with pytest.raises(InputError, match=message) as caught:
        load_table(str(written(tmp_path, row, row, name="alone.jsonl")))
    assert str(caught.value).startswith(f"{tmp_path}/alone.jsonl")
    assert "\n" not in str(caught.value)


def test_a_file_that_is_mostly_broken_is_refused(tmp_path):
    good, bad = {"prompt": "fine", "response": "r"}, {"prompt": 5, "response": "r"}
    assert len(load_table(str(written(tmp_path, *[good] * 4, *[bad] * 4)))) == 4
    with pytest.raises(InputError, match=r":5: prompt must .* \(5 of 9 rows cannot be used, more"):
        load_table(str(written(tmp_path, *[good] * 4, *[bad] * 5)))


def test_an_array_before_json_lines_is_one_odd_row(tmp_path):
    file = tmp_path / "rows.jsonl"
    row = '{"prompt": "How long?", "response": "So long."}'
    file.write_text(f"[1, 2]\n{row}\n{row}\n")
    places, rows = zip(*rows_of(file), strict=True)
    assert places[0] == f"{file}:1"
    assert isinstance(rows[0], InputError)
    assert [one["prompt"] for one in rows[1:]] == ["How long?"] * 2
    file.write_text(f"[{row},\n{row}]\n")
    assert [one["prompt"] for _, one in rows_of(file)] == ["How long?"] * 2


def test_gzip_array_and_parquet_give_the_same_rows(tmp_path):
    rows = [{"prompt": f"p {i}", "response": f"r {i}"} for i in range(30)]
    plain = read_file(written(tmp_path, *rows))
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress((tmp_path / "rows.jsonl").read_bytes()))
    (tmp_path / "a.json").write_text(json.dumps(rows, indent=1))
    pd.DataFrame(rows).to_parquet(tmp_path / "a.parquet")
    for name in ("a.jsonl.gz", "a.json", "a.parquet"):
        other = read_file(tmp_path / name)
        assert other.drop(columns="source").equals(plain.drop(columns="source"))


def test_parquet_gaps_are_gaps(tmp_path):
    frame = pd.DataFrame(
        {"prompt": ["a", "b"], "response": ["x", None], "output_tokens": [None, 9]}
    )
    path = tmp_path / "a.parquet"
    frame.to_parquet(path)
    assert read_file(path)["output_tokens"].tolist() == [2, 9]


def test_limit_draws_before_counting(tmp_path):
    rows = [{"prompt": f"p {i}", "response": f"r {i}"} for i in range(50)]
    path = written(tmp_path, *rows)
    table = load_table(str(path), limit=10)
    assert len(table) == 10
    assert table.equals(load_table(str(path), limit=10))


def test_a_written_table_reads_back(tmp_path):
    table = synthetic_table(40)
    path = tmp_path / "s.jsonl"
    with path.open("w") as file:
        for row in table.drop(columns="response").to_dict("records"):
            file.write(json.dumps(row) + "\n")
    again = load_table(str(path))
    assert again.equals(table)
    assert again.attrs["tokenizer"] == "file"


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.csv", b"prompt", "at least one row"),
        ("a.csv", b"when,who\n1,2\n", "the first line must name the columns"),
        ("a.jsonl", b"", "at least one row"),
        ("a.jsonl", b"\xff\xfe\x00", "is UTF-16 text, not UTF-8"),
        ("a.jsonl.gz", b"nonsense", "not JSON"),
        ("a.jsonl.gz", b"\x1f\x8bnonsense", "corrupt gzip before line 1"),
        ("a.json", b"{}", "needs a prompt"),
        ("a.json", b"[]", "at least one row"),
        ("a.json", b'[{"prompt": "p", "response"', "item 0: not JSON"),
        ("a.json", b"[3]", "item 0: must be an object, got 3"),
        ("a.json.gz", gzip.compress(b"[{}]" * 999, mtime=0)[:20], "gzip ends early"),
        ("a.parquet", b"nonsense", "not a readable Parquet file"),
        ("a.parquet", b"PAR1 nonsense", "not a readable Parquet file"),
    ],
)
def test_damaged_files(tmp_path, name, content, message):
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(InputError, match=message) as caught:
        load_table(str(path))
    assert str(caught.value).startswith(str(path))
