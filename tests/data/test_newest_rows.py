"""Logs of any size, packed or not, with odd rows: the newest rows that can be used."""

from __future__ import annotations

import gzip
import json
import os
import tracemalloc

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lengthwise.data.describe import describe, unused_lines
from lengthwise.data.errors import InputError
from lengthwise.data.request_log import (
    largest_group,
    log_batches,
    newest_requests,
    newest_table,
    read_request_log,
)
from lengthwise.data.request_log.newest import _raw_lines_back
from lengthwise.data.sources.load import load_table


def row(number, **changes):
    return {
        "request_id": f"r{number}", "status": "finished", "arrival_unix_s": 1e9 + number,
        "slo_class": "chat", "prompt_tokens": 4, "output_tokens": 1 + number % 50,
        "prompt": f"question {number}",
    } | changes  # fmt: skip


def written(folder, name, rows):
    folder.mkdir(exist_ok=True)
    text = "".join((r if isinstance(r, str) else json.dumps(r) + "\n") for r in rows).encode()
    path = folder / name
    path.write_bytes(gzip.compress(text) if name.endswith(".gz") else text)
    return path


def ids(frame):
    return [int(name[1:]) for name in frame["request_id"]]


def test_packed_files_are_read_and_what_is_none_of_the_logs_is_named(tmp_path):
    written(tmp_path, "requests-1.jsonl.gz", [row(i) for i in range(200)])
    written(tmp_path, "requests-2.jsonl", [row(i) for i in range(200, 400)])
    written(tmp_path, "requests-2.jsonl.gz", [row(i) for i in range(200, 400)])
    (tmp_path / "server.json").write_text("{}")
    (tmp_path / "requests-0.jsonl.zip").write_bytes(b"x")
    frame = read_request_log(tmp_path)
    assert ids(frame) == list(range(400))
    unread = ["requests-0.jsonl.zip", "requests-2.jsonl.gz"]
    assert frame.attrs["unread_files"] == unread
    assert describe(str(tmp_path))["unused"]["unread_files"] == unread
    assert unused_lines({"unread_files": unread}) == [f"Not read: {', '.join(unread)}"]
    assert sum(len(batch) for batch in log_batches(tmp_path, 90)) == 400
    assert len(load_table(str(tmp_path))) == 400


def test_packed_files_that_break_off_give_the_rows_before(tmp_path):
    rows = written(
        tmp_path, "requests-1.jsonl.gz", [row(i, text_id=f"t{i}", prompt=None) for i in range(200)]
    )
    rows.write_bytes(rows.read_bytes()[:-5])
    texts = written(
        tmp_path, "texts-1.jsonl.gz", [{"text_id": f"t{i}", "prompt": "x"} for i in range(200)]
    )
    texts.write_bytes(texts.read_bytes()[:-9])
    for frame in (read_request_log(tmp_path), newest_requests(tmp_path, 500)):
        assert ids(frame) == list(range(200))
        assert frame["prompt"].notna().sum() >= 150
        (cut,) = frame.attrs["skipped"]
        assert (cut["reason"], cut["rows"]) == ("gzip ends early", 2)
        assert "requests-1.jsonl.gz" in cut["first"]


def test_plain_files_called_gz_are_read(tmp_path):
    written(tmp_path, "requests-1.jsonl", [row(i) for i in range(20)])
    (tmp_path / "requests-1.jsonl").rename(tmp_path / "requests-1.jsonl.gz")
    for frame in (read_request_log(tmp_path), newest_requests(tmp_path, 500)):
        assert ids(frame) == list(range(20))


def test_only_the_new_end_is_read(tmp_path):
    for i in range(10):
        path = written(tmp_path, f"requests-{i}.jsonl", [row(100 * i + k) for k in range(100)])
        os.utime(path, (1e9 + 100 * (i + 1),) * 2)
    read = []
    frame = newest_requests(tmp_path, 150, watch=read.append)
    assert ids(frame) == list(range(850, 1000))
    size = path.stat().st_size
    assert sum(read) <= 3 * size
    assert frame.attrs["unread_bytes"] >= 6 * size
    assert ids(newest_requests(tmp_path, 5000)) == list(range(1000))


def test_writers_beside_each_other_are_merged(tmp_path):
    for part in range(3):
        rows = [row(i) for i in range(part, 300, 3)]
        written(tmp_path, f"requests-1-{part}.jsonl" + (".gz" if part == 1 else ""), rows)
    assert ids(newest_requests(tmp_path, 100)) == list(range(200, 300))


def test_what_was_not_answered_takes_no_room(tmp_path):
    rows = [row(i, status="finished" if i % 10 == 0 else "aborted") for i in range(1000)]
    for name in ("requests-1.jsonl", "requests-1.jsonl.gz"):
        path = written(tmp_path, name, rows)
        assert ids(newest_requests(path, 20)) == list(range(800, 1000, 10))
    with pytest.raises(InputError, match="none of the log's 9 rows is a finished request"):
        newest_requests(written(tmp_path, "requests-1.jsonl", rows[1:10]), 5)


def test_a_large_log_costs_little_memory(tmp_path):
    """60 MB on disk; what is held is what was asked for."""
    text = "x" * 3000
    path = tmp_path / "requests-1.jsonl"
    with path.open("w") as file:
        for i in range(20_000):
            file.write(json.dumps(row(i, prompt=text)) + "\n")
    tracemalloc.start()
    frame = newest_requests(tmp_path, 500)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert ids(frame) == list(range(19_500, 20_000))
    assert peak < 25e6
    few = newest_table(tmp_path, 10_000, characters=300_000)
    assert 90 <= len(few) <= 100


@settings(max_examples=60, deadline=None)
@given(st.lists(st.binary(max_size=30), max_size=12), st.integers(1, 40))
def test_lines_from_the_end_are_lines_from_the_start_reversed(tmp_path_factory, parts, block):
    path = tmp_path_factory.mktemp("lines") / "x"
    path.write_bytes(b"\n".join(parts))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("lengthwise.data.request_log.newest._BLOCK", block)
        back = [line for line in _raw_lines_back(path, None) if line]
    assert back[::-1] == [line for line in path.read_bytes().splitlines(True) if line] or (
        # other line ends than \n are no ends here
        b"".join(back[::-1]) == path.read_bytes() and all(line.endswith(b"\n") for line in back[1:])
    )


def test_texts_in_files_of_their_own_are_joined_by_id(tmp_path):
    rows = [row(i, prompt=None, text_id=f"t{i}") for i in range(50)]
    written(tmp_path, "requests-1.jsonl", rows)
    texts = [{"text_id": f"t{i}", "prompt": f"text \ud83d {i}"} for i in range(50) if i != 7]
    written(tmp_path, "texts-1.jsonl.gz", texts[:20])
    written(tmp_path, "texts-2.jsonl", [*texts[20:], '{"text_id": "t7", "pro'])
    for frame in (read_request_log(tmp_path), newest_requests(tmp_path, 100)):
        assert frame["prompt"][0] == "text \ufffd 0"
        assert frame["prompt"].isna().tolist() == [i == 7 for i in range(50)]
        assert frame.attrs["unread_files"] == []
    assert newest_table(tmp_path, 10)["prompt"].notna().all()


def features(width, contract="a"):
    return {"prompt": None, "features": [0.5] * width, "feature_contract": contract}


@pytest.mark.parametrize(
    ("rows", "kept", "contract", "left_out"),
    [
        ([row(0)] * 399 + [row(1, **features(3))], 399, None, {"without prompt text": 1}),
        ([row(0, **features(3))] * 399 + [row(1)], 399, "a", {"without features": 1}),
        (
            [row(0, **features(3))] * 9 + [row(1, **features(2))],
            9,
            "a",
            {"features a of width 2": 1},
        ),
        (
            [row(0, **features(3))] * 2 + [row(0, **features(3, "b"))] * 5 + [row(0, prompt="")],
            5,
            "b",
            {"features a of width 3": 2, "without features": 1},
        ),
        ([row(0, features=[1.0], feature_contract="a")] * 4, 4, None, {}),
        ([row(0)] * 2 + [row(0, **features(3))] * 3, 2, None, {"without prompt text": 3}),
    ],
)
def test_the_largest_consistent_group_is_taken_and_the_others_named(
    tmp_path, rows, kept, contract, left_out
):
    written(tmp_path, "requests-1.jsonl", rows)
    frame = newest_requests(tmp_path, 1000)
    group = largest_group(frame, "log")
    assert (int(group.rows.sum()), group.contract) == (kept, contract)
    assert {part["reason"]: part["rows"] for part in group.left_out} == left_out


def test_neither_text_nor_features(tmp_path):
    written(tmp_path, "requests-1.jsonl", [row(0, prompt=None)])
    with pytest.raises(InputError, match="my log holds neither prompt text nor features"):
        largest_group(newest_requests(tmp_path, 10), "my log")


def test_requests_nobody_could_predict_are_counted_apart(tmp_path):
    rows = [row(i, predictor="m/1", predicted_tokens=None if i < 3 else 5.0) for i in range(10)]
    written(tmp_path, "requests-1.jsonl", rows)
    figures = describe(str(tmp_path))
    assert figures["unpredicted_rows"] == 3
    assert [side["rows"] for side in figures["predictions"]] == [7]
