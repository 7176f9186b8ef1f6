"""Files packed in every way that is read: whole, cut, broken, and of several frames."""

from __future__ import annotations

import bz2
import contextlib
import gzip
import json
import lzma
import random

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lengthwise.data.errors import InputError
from lengthwise.data.lines import open_bytes, read_json_lines
from lengthwise.data.packed import PACKINGS, SUFFIXES, BrokenPackError, packing_of, unpacked_name
from lengthwise.data.request_log.reader import read_request_log
from lengthwise.data.sources.load import load_table
from lengthwise.data.workload import read_workload


def by_arrow(codec):
    def pack(content):
        sink = pa.BufferOutputStream()
        with pa.CompressedOutputStream(sink, codec) as out:
            out.write(content)
        return sink.getvalue().to_pybytes()

    return pack


PACK = {
    "gzip": lambda content: gzip.compress(content, mtime=0),
    "zstd": by_arrow("zstd"),
    "xz": lzma.compress,
    "bzip2": bz2.compress,
    "lz4": by_arrow("lz4"),
}
WAYS = [(packing.name, packing.suffix) for packing in PACKINGS]
NOISE = random.Random(1)
ROWS = [  # too different from each other to pack well, and more than one block of bzip2's
    {"prompt": f"{NOISE.random()} {i}", "output_tokens": 1 + i % 9} for i in range(30_000)
]
LINES = "".join(json.dumps(row) + "\n" for row in ROWS).encode()
LOG_ROW = {"request_id": "r1", "arrival_unix_s": 1.0, "slo_class": "chat", "prompt_tokens": 4,
           "output_tokens": 5, "prompt": "question", "status": "finished"}  # fmt: skip


def test_there_is_a_packer_for_each():
    assert PACK.keys() == {packing.name for packing in PACKINGS}
    assert len(set(SUFFIXES)) == len(PACKINGS)


@pytest.mark.parametrize(("name", "suffix"), WAYS)
def test_rows_of_every_shape_are_read(tmp_path, name, suffix):
    pack, few = PACK[name], ROWS[:20]
    shapes = {
        "a.jsonl": "".join(json.dumps(row) + "\n" for row in few),
        "a.json": json.dumps(few),
        "a.csv": "prompt,output_tokens\n"
        + "".join(f"{row['prompt']},{row['output_tokens']}\n" for row in few),
    }
    for file, text in shapes.items():
        for called in (file + suffix, file + suffix.upper()):
            path = tmp_path / called
            path.write_bytes(pack(text.encode()))
            assert load_table(str(path))["prompt"].tolist() == [row["prompt"] for row in few]
    columns = tmp_path / "a.parquet"
    load_table(str(path))[["prompt", "output_tokens"]].to_parquet(columns)
    packed = tmp_path / f"b.parquet{suffix}"
    packed.write_bytes(pack(columns.read_bytes()))
    assert load_table(str(packed))["prompt"].tolist() == [row["prompt"] for row in few]
    workload = tmp_path / f"w.jsonl{suffix}"
    workload.write_bytes(pack(b'{"arrival_s": 0, "prompt_tokens": 1, "output_tokens": 1}\n'))
    assert len(read_workload(workload)) == 1


@pytest.mark.parametrize(("name", "suffix"), WAYS)
def test_so_are_a_logs_files(tmp_path, name, suffix):
    rows = json.dumps(LOG_ROW) + "\n"
    (tmp_path / f"requests-1.jsonl{suffix}").write_bytes(PACK[name](rows.encode()))
    frame = read_request_log(tmp_path)
    assert frame["request_id"].tolist() == ["r1"]
    assert "unread_files" not in frame.attrs or not frame.attrs["unread_files"]


@pytest.mark.parametrize(("name", "suffix"), WAYS)
def test_several_frames_are_one_content(tmp_path, name, suffix):
    path = tmp_path / f"a.jsonl{suffix}"
    half = LINES.index(b"\n", len(LINES) // 2) + 1
    path.write_bytes(PACK[name](LINES[:half]) + PACK[name](LINES[half:]))
    assert sum(1 for _ in read_json_lines(path)) == len(ROWS)


@pytest.mark.parametrize(("name", "suffix"), WAYS)
@pytest.mark.parametrize("kept", [0.75, 0.9999])
def test_a_break_costs_what_stands_behind_it_and_is_named(tmp_path, name, suffix, kept):
    packed = PACK[name](LINES)
    path = tmp_path / f"a.jsonl{suffix}"
    path.write_bytes(packed[: int(kept * len(packed))])
    table = load_table(str(path))
    assert len(ROWS) // 3 < len(table) <= len(ROWS)
    assert table["prompt"].tolist()[:100] == [row["prompt"] for row in ROWS[:100]]
    (told,) = table.attrs["skipped"]
    assert (told["reason"], told["rows"]) == (f"{name} ends early", 1)
    assert "nothing can be read after line " in told["first"]
    with pytest.raises(InputError, match=f"{name} ends early, after line "):
        list(read_json_lines(path))


@pytest.mark.parametrize(("name", "suffix"), WAYS)
def test_what_was_written_over_costs_what_it_spoils(tmp_path, name, suffix):
    packed = PACK[name](LINES)
    at = len(packed) * 3 // 4
    path = tmp_path / f"a.jsonl{suffix}"
    path.write_bytes(packed[:at] + bytes(64) + packed[at + 64 :])
    table = load_table(str(path))
    assert len(ROWS) // 3 < len(table) < len(ROWS)
    assert table["prompt"].tolist()[:100] == [row["prompt"] for row in ROWS[:100]]
    assert table.attrs["skipped_rows"] >= 1
    with pytest.raises(InputError):
        list(read_json_lines(path))


@pytest.mark.parametrize(("name", "suffix"), WAYS)
def test_packed_twice_is_told(tmp_path, name, suffix):
    path = tmp_path / f"a.jsonl{suffix}"
    path.write_bytes(PACK["gzip"](PACK[name](b"{}\n")))
    with pytest.raises(InputError, match=f"is {name}-compressed twice, not UTF-8 text"):
        load_table(str(path))


@pytest.mark.parametrize(("name", "suffix"), WAYS)
def test_nothing_packed_is_nothing(tmp_path, name, suffix):
    path = tmp_path / f"a{suffix}"
    path.write_bytes(PACK[name](b""))
    content, head = open_bytes(path)
    with content:
        assert (head, content.read()) == (b"", b"")


def test_text_is_not_taken_for_packed():
    for head in (b"BZhang,prompt", b"]", b"PK", b"", b"\x1f"):
        assert packing_of(head) is None


@given(st.sampled_from(WAYS), st.binary(max_size=200), st.integers(0, 300), st.binary(max_size=8))
def test_whatever_is_cut_or_changed_is_content_or_an_error_of_input(
    tmp_path_factory, way, content, at, put
):
    name, suffix = way
    packed = PACK[name](content)
    path = tmp_path_factory.mktemp("packed") / f"a.jsonl{suffix}"
    path.write_bytes(packed[:at] + put + packed[at + len(put) :])
    with contextlib.suppress(InputError):
        for _ in read_json_lines(path):
            pass
    if put or packing_of(packed[:at]) is None:
        return
    read = b""
    with contextlib.suppress(InputError, BrokenPackError):
        stream, _ = open_bytes(path)
        with stream:
            while piece := stream.read(64):
                read += piece
    assert content.startswith(read)  # of what is only cut nothing is made up


@pytest.mark.parametrize(
    ("name", "plain"),
    [("a.jsonl.ZST", "a.jsonl"), ("a.xz", "a"), ("a.jsonl", "a.jsonl"), ("a.gz.gz", "a.gz")],
)
def test_a_name_without_its_packing(name, plain):
    assert unpacked_name(name) == plain
