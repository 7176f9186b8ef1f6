"""Files that are broken in one place, named as something else, or no files of rows at all."""

from __future__ import annotations

import bz2
import gzip
import io
import json
import lzma
import os
import pickle
import tarfile
import threading

import pyarrow as pa
import pytest

from lengthwise.data.errors import InputError
from lengthwise.data.sources.load import load_table
from lengthwise.data.sources.rows import json_arrays

ROWS = [{"id": i, "prompt": f"Frage {i} ü", "response": "b c"} for i in range(6)]
ITEMS = [json.dumps(row, ensure_ascii=False) for row in ROWS]
BAD = '{"id": 9, "prompt": "a"b", "response": [{"id": 7}, {"id": 8}], "x": {"y": [1]}}'


def joined(items, before="[", after="]", between=", "):
    return before + between.join(items) + after


def read(tmp_path, name, content):
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    table = load_table(str(path))
    return table["prompt"].tolist(), [(s["rows"], s["first"]) for s in table.attrs["skipped"]]


PROMPTS = [row["prompt"] for row in ROWS]
WHOLE = {
    "objects behind each other": "".join(ITEMS),
    "two on a line": "\n".join(a + " " + b for a, b in zip(ITEMS[::2], ITEMS[1::2], strict=True)),
    "a comma behind each line": joined(ITEMS, "", ",", ",\n"),
    "a comma behind the last item": joined(ITEMS, "[", ",]"),
    "two arrays": joined(ITEMS[:3]) + "\n" + joined(ITEMS[3:]),
    "an array and then lines": joined(ITEMS[:2]) + "\n" + joined(ITEMS[2:], "", "\n", "\n"),
}


@pytest.mark.parametrize("way", WHOLE)
@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "a.csv", "a"])
def test_nothing_is_lost_of_objects_however_they_follow_each_other(tmp_path, way, name):
    assert read(tmp_path, name, WHOLE[way]) == (PROMPTS, [])


BROKEN = {  # content, how many rows are read, and what is said of the rest
    "a quote in the middle": (joined([*ITEMS[:2], BAD, *ITEMS[2:]]), 6, "item 2: not JSON"),
    "a quote, over many lines": (
        json.dumps(ROWS, indent=2, ensure_ascii=False).replace("Frage 2", 'Frage "2'),
        5,
        "item 2: not JSON",
    ),
    "the first item": (joined([BAD, *ITEMS]), 6, "item 0: not JSON"),
    "cut off in an item": (joined(ITEMS)[:-20], 5, "item 5: not JSON"),
    "cut off behind one": (joined(ITEMS, "[", ""), 6, "item 6: an array must be closed"),
    "a page behind the array": (joined(ITEMS) + "<html>", 6, "item 6: not JSON"),
    "brackets without end": (joined([*ITEMS, "[" * 200_000]), 6, "item 6: not JSON"),
}


@pytest.mark.parametrize("way", BROKEN)
@pytest.mark.parametrize("packed", [False, True])
def test_an_item_that_is_no_json_costs_itself(tmp_path, way, packed, monkeypatch):
    content, kept, says = BROKEN[way]
    for chunk in (1, 1 << 20):  # what is read at a time changes nothing
        monkeypatch.setattr(json_arrays, "_PIECE", 64 if chunk == 1 else 1 << 14)
        monkeypatch.setattr(json_arrays, "_CHUNK", chunk)
        data = gzip.compress(content.encode()) if packed else content
        prompts, skipped = read(tmp_path, "a.json", data)
        assert len(prompts) == kept
        assert set(prompts) <= set(PROMPTS)
        assert any(says in first for _, first in skipped)


TABLES = {
    "a quote that is never closed": (
        'prompt,response\na,b\n"c,d\ne,f\ng,h\n', "aeg", "3: a quote must be closed"),
    "a spreadsheet's own first line": ("sep=;\nprompt;response\na;b\n", "a", None),
    "a NUL": ("prompt,response\na,b\0\nc,d\n", "ac", None),
    "counts as people write them": (
        "prompt,output_tokens\na,1e3\nb,7.0\nc,12\nd,n/a\ne,1_0\n", "abc", "must be a"),
    "digits of another script": ("prompt,output_tokens\na,7\nb,\uff13\n", "a", "must be a whole"),
}  # fmt: skip


@pytest.mark.parametrize("way", TABLES)
def test_tables_with_something_odd_in_them(tmp_path, way):
    content, kept, says = TABLES[way]
    prompts, skipped = read(tmp_path, "a.csv", content)
    assert "".join(prompts) == kept
    assert (says is None and not skipped) or any(says in first for _, first in skipped)
    assert read(tmp_path, "a.jsonl", content)[0] == prompts


def test_a_column_of_prompts_that_is_there_twice_is_refused(tmp_path):
    with pytest.raises(InputError, match="named once, got 'prompt' twice"):
        read(tmp_path, "a.csv", "prompt,response,prompt\na,b,c\n")


@pytest.mark.parametrize("way", ["file", "stream"])
@pytest.mark.parametrize("name", ["data-00000-of-00001.arrow", "rows.arrow.gz", "rows"])
def test_arrow_as_datasets_keeps_it(tmp_path, way, name):
    table = pa.Table.from_pylist(ROWS)
    sink = pa.BufferOutputStream()
    make = pa.ipc.new_file if way == "file" else pa.ipc.new_stream
    with make(sink, table.schema) as writer:
        writer.write_table(table, max_chunksize=2)
    content = sink.getvalue().to_pybytes()
    data = gzip.compress(content) if name.endswith("gz") else content
    assert read(tmp_path, name, data) == (PROMPTS, [])
    with pytest.raises(InputError, match="not a readable Arrow file"):
        read(tmp_path, name, content[:100])


def test_text_that_a_table_does_not_call_text(tmp_path):
    import pyarrow.parquet as pq

    columns = {"prompt": pa.array(["ü".encode(), b"\xff"], pa.binary()), "response": ["a", "b"]}
    pq.write_table(pa.table(columns), tmp_path / "a.parquet")
    table = load_table(str(tmp_path / "a.parquet"))
    assert table["prompt"].tolist() == ["ü"]
    assert "prompt must be text" in table.attrs["skipped"][0]["first"]


def tar():
    raw = io.BytesIO()
    with tarfile.open(fileobj=raw, mode="w") as archive:
        entry = tarfile.TarInfo("rows.jsonl")
        entry.size = len(ITEMS[0].encode())
        archive.addfile(entry, io.BytesIO(ITEMS[0].encode()))
    return raw.getvalue()


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (tar(), "is a tar archive"),
        (gzip.compress(tar(), mtime=0), "is a tar archive"),
        (gzip.compress(gzip.compress(b"{}", mtime=0), mtime=0), "is gzip-compressed twice"),
        (lzma.compress(b"{}" * 99, lzma.FORMAT_ALONE), "is lzma-compressed"),
        (bz2.compress(b"{}")[:20], "bzip2 ends early"),
        (b"7z\xbc\xaf\x27\x1c" + bytes(90), "is a 7-zip archive"),
        (b"\x93NUMPY" + bytes(90), "is an array of numpy's"),
        (pickle.dumps(ROWS), "is a pickle"),
        (b"ORC" + bytes(9), "is an ORC file"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "pointer of Git LFS"),
        (bytes(4096), "is binary data"),
    ],
)
@pytest.mark.parametrize("name", ["a.jsonl", "a.csv", "a.parquet"])
def test_what_holds_no_rows_says_what_it_is(tmp_path, content, says, name):
    with pytest.raises(InputError, match=says):
        read(tmp_path, name, content)


def test_what_can_be_read_only_once_is_refused_before_it_is(tmp_path):
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    with pytest.raises(InputError, match="must be a file, got a pipe or a device"):
        load_table(str(pipe))
    writer = threading.Thread(target=pipe.write_text, args=(ITEMS[0],))
    writer.start()
    assert pipe.read_text() == ITEMS[0]
    writer.join()
    with pytest.raises(InputError, match="must be a file"):
        load_table("/dev/null")
