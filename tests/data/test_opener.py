"""Files as editors, spreadsheets and shells leave them."""

from __future__ import annotations

import contextlib
import gzip
import json
import random
import zlib

import pytest

from lengthwise.data.errors import InputError
from lengthwise.data.files import read_object
from lengthwise.data.lines import open_text, read_json_lines
from lengthwise.data.sources.load import load_table
from lengthwise.data.workload import read_workload

ROWS = [{"prompt": f"Frage {i} ü", "response": "b"} for i in range(3)]
LINES = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in ROWS)
MARK = b"\xef\xbb\xbf"
WAYS = {
    "plain": LINES.encode(),
    "byte-order mark": MARK + LINES.encode(),
    "dos line ends": LINES.replace("\n", "\r\n").encode(),
    "old mac line ends": LINES.replace("\n", "\r").encode(),
    "no last line end": LINES.rstrip().encode(),
    "blank lines": ("\n\n" + LINES.replace("\n", "\n \n")).encode(),
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz", "a.GZ", "packed-without-saying.jsonl"])
def test_lines_however_they_were_written(tmp_path, way, name):
    path = tmp_path / name
    packed = name != "a.jsonl"
    path.write_bytes(gzip.compress(WAYS[way]) if packed else WAYS[way])
    assert [row for _, row in read_json_lines(path)] == ROWS
    assert load_table(str(path))["prompt"].tolist() == [row["prompt"] for row in ROWS]


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (LINES.encode("utf-16"), "is UTF-16 text, not UTF-8 text: save it as UTF-8: iconv"),
        (b"\xfe\xff" + LINES.encode("utf-16-be"), "is UTF-16 text, not UTF-8"),
        (LINES.encode("utf-16-le"), "is UTF-16 text without a byte-order mark"),
        (LINES.encode("utf-16-be"), "is UTF-16 text without a byte-order mark"),
        (LINES.encode("utf-32"), "is UTF-32 text"),
        (gzip.compress(LINES.encode("utf-16"), mtime=0), "is UTF-16 text"),
        (b"PK\x03\x04rest", "is a zip archive"),
        (b"7z\xbc\xaf\x27\x1crest", "is a 7-zip archive, not UTF-8 text: unpack it"),
        (b"\x28\xb5\x2f\xfdrest", "(corrupt zstd|zstd ends early)"),
        (b"BZh91AY", "bzip2 ends early"),
        (b"\x7fELF\x00\x00\x00\x00", "binary data"),
    ],
)
@pytest.mark.parametrize("name", ["a.jsonl", "a.csv", "a.json"])
def test_what_is_no_utf8_says_what_it_is(tmp_path, content, says, name):
    path = tmp_path / name
    path.write_bytes(content)
    for read in (load_table, read_object, read_workload):
        with pytest.raises(InputError, match=says):
            read(str(path))


def test_every_reader_goes_through_it(tmp_path):
    table, workload = tmp_path / "slo.json", tmp_path / "w.jsonl"
    table.write_bytes(MARK + b'{"chat": {"ttft_ms": 500}}\r\n')
    assert read_object(table, "SLO table") == {"chat": {"ttft_ms": 500}}
    workload.write_bytes(MARK + b'{"arrival_s": 0, "prompt_tokens": 1, "output_tokens": 1}\r\n')
    assert len(read_workload(workload)) == 1


def test_folders_and_missing_files(tmp_path):
    with pytest.raises(InputError, match="is a folder, not a file"):
        open_text(tmp_path)
    with pytest.raises(InputError, match="no such file"):
        open_text(tmp_path / "none")


def test_bytes_read_are_told(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text(LINES * 1000)
    told = []
    with open_text(path, told.append) as file:
        assert len(file.read()) == len(LINES) * 1000
    assert sum(told) == path.stat().st_size


NOISE = random.Random(1)
MANY = "".join(  # too different from each other to pack well
    json.dumps({"prompt": f"{NOISE.random()} {i}", "response": f"{NOISE.random()}"}) + "\n"
    for i in range(12_000)
).encode()
PACKED = gzip.compress(MANY, mtime=0)
MIDDLE = len(PACKED) // 2


def lines_before(end: int) -> int:
    """How many whole lines so many packed bytes hold."""
    return zlib.decompressobj(31).decompress(PACKED[:end]).count(b"\n")


@pytest.mark.parametrize("name", ["a.jsonl.gz", "requests-1.jsonl"])
@pytest.mark.parametrize(
    ("broken", "reason", "at_least"),
    [
        (PACKED[:MIDDLE], "gzip ends early", lines_before(MIDDLE)),
        (PACKED[:-3], "gzip ends early", 12_000),
        (PACKED[:-8] + bytes(8), "corrupt gzip", 12_000),
        (PACKED + b"rest", "corrupt gzip", 12_000),
        (PACKED[:MIDDLE] + bytes(64) + PACKED[MIDDLE + 64 :], "corrupt gzip", 1),
    ],
)
def test_a_gzip_that_breaks_off_gives_the_rows_before_and_its_break_is_named(
    tmp_path, broken, reason, at_least, name
):
    path = tmp_path / name
    path.write_bytes(broken)
    table = load_table(str(path))
    assert at_least <= len(table) <= 12_000
    first = [json.loads(line)["prompt"] for line in MANY.splitlines()[:5]]
    assert table["prompt"].tolist()[:5] == first
    (skipped,) = [part for part in table.attrs["skipped"] if "gzip" in part["reason"]]
    assert (skipped["reason"], skipped["rows"]) == (reason, 1)
    assert "nothing can be read after line " in skipped["first"]
    for strict in (read_object, read_workload, lambda path: list(read_json_lines(path))):
        with pytest.raises(InputError):
            strict(path)


@pytest.mark.parametrize("end", [3, 40, 2000, MIDDLE])
@pytest.mark.parametrize("content", ["csv", "array", "document", "lines"])
def test_no_break_of_any_kind_of_file_is_more_than_an_error_of_input(tmp_path, content, end):
    rows = [json.loads(line) for line in MANY.splitlines()]
    text = {
        "csv": "prompt,response\n" + "".join(f"{r['prompt']},{r['response']}\n" for r in rows),
        "array": json.dumps(rows),
        "document": json.dumps({"data": rows}),
        "lines": MANY.decode(),
    }[content]
    path = tmp_path / f"a.{content if content == 'csv' else 'json'}.gz"
    path.write_bytes(gzip.compress(text.encode())[:end])
    if end < MIDDLE or content == "document":  # a document is whole, or none
        with contextlib.suppress(InputError):
            assert len(load_table(str(path)))
        return
    table = load_table(str(path))
    assert len(table) > 1000
    assert table.attrs["skipped_rows"] == 1


def test_a_plain_file_may_be_called_gz(tmp_path):
    path = tmp_path / "a.jsonl.gz"
    path.write_text(LINES)
    assert [row for _, row in read_json_lines(path)] == ROWS
    assert load_table(str(path))["prompt"].tolist() == [row["prompt"] for row in ROWS]
    table = tmp_path / "a.csv.gz"
    table.write_text("prompt,response\nx,y\n")
    assert load_table(str(table))["prompt"].tolist() == ["x"]
