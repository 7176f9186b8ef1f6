"""Files as rows: JSON lines, JSON arrays and documents, CSV, TSV, Parquet, each also gzipped.

What a file is, its first bytes say; a name only has to tell CSV from TSV. Rows come one at a
time, so that a file larger than memory can be read; a row that cannot be taken apart comes as
the error that says why, and the next one follows.
"""

from __future__ import annotations

import csv
import io
import json
import tempfile
from collections.abc import Iterator
from functools import partial
from itertools import islice
from pathlib import Path
from typing import IO, Any

from lengthwise.data.errors import InputError, shown
from lengthwise.data.lines import (
    DAMAGE,
    PARQUET,
    CutShortError,
    Watch,
    broken_off,
    is_utf8,
    open_bytes,
    open_text,
    parse_line,
    read_lines,
)
from lengthwise.data.sources.names import NAMES_OF_COLUMNS

Row = dict[str, Any]
Placed = tuple[str, Row | InputError]

_BATCH_ROWS = 256
_CHUNK, _PIECE = 1 << 20, 1 << 14
_MOST_CELL = 2**31 - 1
_LONGEST_ODD_LINE = 1 << 16
_DELIMITERS = ",;\t|"
# members of a document that hold its rows
_LISTS = ("data", "rows", "examples", "instances", "items", "records", "samples", "dataset")
_LISTS_OF_SPLITS = ("train", "test", "validation", "eval")


def rows_of(path: Path, watch: Watch | None = None) -> Iterator[Placed]:
    """(place, row) of a file, or (place, error) for a row that cannot be read.

    A gzip that breaks off gives the rows before, and then its break as one more that cannot be
    read. `watch` is called with the bytes read from the disk. InputError for a file that is
    missing, damaged, or nothing that holds rows.
    """
    place = None
    try:
        for place, row in _rows_of(path, watch):
            yield place, row
    except CutShortError as error:
        if place is None:
            raise
        yield place, error.loss


def _rows_of(path: Path, watch: Watch | None) -> Iterator[Placed]:
    content, head = open_bytes(path)
    content.close()
    start = head.removeprefix(b"\xef\xbb\xbf").lstrip()[:1]
    if head.startswith(PARQUET):
        return _parquet(path, watch)
    if _ending(path) == ".parquet":
        raise InputError(f"{path}: not a readable Parquet file: it does not begin as one")
    if _ending(path) in (".csv", ".tsv", ".tab"):
        return _csv(path, watch)
    if start == b"[":
        return _lines_or_array(path, watch)
    if start == b"{":
        return _lines_or_document(path, watch)
    if start and _ending(path) not in (".jsonl", ".json", ".ndjson") and is_table(path):
        return _csv(path, watch)
    return _lines(path, watch)


def _lines_or_array(path: Path, watch: Watch | None) -> Iterator[Placed]:
    """The array's items, unless a short array on a line of its own stands before objects."""
    with open_text(path) as file:
        first, second = _line(file, _LONGEST_ODD_LINE), _line(file, _LONGEST_ODD_LINE)
    try:
        json.loads(first)
    except (ValueError, RecursionError):
        return _documents(path, watch)
    return (_lines if second.lstrip().startswith("{") else _documents)(path, watch)


def _line(file: IO[str], most: int = -1) -> str:
    """The next line, empty at the end and where a gzip breaks off."""
    try:
        return file.readline(most)
    except DAMAGE:
        return ""


def is_table(path: Path) -> bool:
    """Whether a text file begins with a line of column names that hold prompts or answers."""
    _, line = next(read_lines(path), (0, ""))
    return _delimiter(path, line) is not None


def _ending(path: Path) -> str:
    """The name's last suffix but .gz, in lower case."""
    name = path.name.lower().removesuffix(".gz")
    return Path(name).suffix


def _lines(path: Path, watch: Watch | None) -> Iterator[Placed]:
    for number, line in read_lines(path, watch):
        place = f"{path}:{number}"
        try:
            yield place, parse_line(line)
        except InputError as error:
            yield place, error


def _lines_or_document(path: Path, watch: Watch | None) -> Iterator[Placed]:
    """JSON lines, unless the first line is but the beginning of an object."""
    with open_text(path) as file:
        lines = (line for line in iter(lambda: _line(file), "") if line.strip())
        first, second = next(lines, ""), next(lines, "{")
    try:
        row = json.loads(first)
    except (ValueError, RecursionError):
        # a broken line among others, or the first line of a document that goes on below
        spread = not second.lstrip().startswith("{")
        return _documents(path, watch) if spread else _lines(path, watch)
    if second == "{" and isinstance(row, dict) and _members(row) is not None:
        return _documents(path, watch)
    return _lines(path, watch)


def _documents(path: Path, watch: Watch | None) -> Iterator[Placed]:
    """The items of an array, or of the arrays in a document; objects that follow each other."""
    decoder = json.JSONDecoder()
    item = 0
    with open_text(path, watch) as file:
        pieces = iter(partial(file.read, _PIECE), "")
        broken: list[Exception] = []

        def read(size: int) -> str:
            """About so much more; what comes before a break is kept, the next call raises it."""
            if broken:
                raise broken[0]
            parts: list[str] = []
            try:
                parts.extend(islice(pieces, size // _PIECE))
            except DAMAGE as error:
                if not parts:
                    raise
                broken.append(error)
            return "".join(parts)

        try:
            text, chunk = read(_CHUNK).lstrip(), _CHUNK
            in_array = text.startswith("[")
            text = text[1:] if in_array else text
            while True:
                text = text.lstrip(" \t\r\n,")
                if in_array and text.startswith("]"):
                    return
                place = f"{path}: item {item}"
                try:
                    row, end = decoder.raw_decode(text)
                except (json.JSONDecodeError, RecursionError) as error:
                    more = read(chunk)
                    if more:
                        # doubling keeps the retries on one huge item linear
                        text, chunk = text + more, 2 * chunk
                        continue
                    if not text and not in_array:
                        return
                    message = getattr(error, "msg", "nested too deep")
                    raise InputError(f"{place}: not JSON ({message})") from error
                whole = is_utf8(text[:end])
                text, chunk = text[end:], _CHUNK
                for value in [row] if in_array else _members(row) or [row]:
                    yield f"{path}: item {item}", _checked(value, whole)
                    item += 1
        except DAMAGE as error:
            raise broken_off(path, error, f"after {item} items") from error


def _checked(value: Any, whole: bool) -> Row | InputError:
    if not whole:
        return InputError(f"not UTF-8 text, got {shown(value)}")
    if not isinstance(value, dict):
        return InputError(f"must be an object, got {shown(value)}")
    return value


def _members(row: Any) -> list[Any] | None:
    """The rows inside a document, where its one list of objects holds them."""
    if not isinstance(row, dict):
        return None
    found = [row[name] for name in _LISTS if _is_list_of_objects(row.get(name))]
    if not found:
        found = [row[name] for name in _LISTS_OF_SPLITS if _is_list_of_objects(row.get(name))]
    return [item for part in found for item in part] or None


def _is_list_of_objects(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and isinstance(value[0], dict)


def _csv(path: Path, watch: Watch | None) -> Iterator[Placed]:
    csv.field_size_limit(_MOST_CELL)
    _, line = next(read_lines(path), (0, ""))
    delimiter = _delimiter(path, line)
    if line and delimiter is None:
        raise InputError(
            f"{path}:1: the first line must name the columns, prompt and response among them, "
            f"got {shown(line.strip())}"
        )
    with open_text(path, watch, newline="") as file:
        cells = csv.reader(file, delimiter=delimiter or ",")
        try:
            # blank lines before the names are nothing
            header = next((row for row in cells if any(cell.strip() for cell in row)), [])
            names = [name.strip() for name in header]
            number = cells.line_num
            for row in cells:
                place, number = f"{path}:{number + 1}", cells.line_num
                if any(cell.strip() for cell in row):
                    yield place, _cells(names, row)
        except csv.Error as error:
            raise InputError(f"{path}:{cells.line_num}: not readable as CSV: {error}") from error
        except DAMAGE as error:
            raise broken_off(path, error, f"after line {cells.line_num}") from error


def _cells(names: list[str], row: list[str]) -> Row | InputError:
    if len(row) > len(names) and any(cell.strip() for cell in row[len(names) :]):
        return InputError(f"must have at most {len(names)} cells, got {len(row)}")
    if not all(map(is_utf8, row)):
        return InputError(f"not UTF-8 text, got {shown(row)}")
    found: Row = {}
    for name, cell in zip(names, row, strict=False):
        if cell != "":
            found.setdefault(name, _typed(name, cell))
    return found


def _typed(name: str, cell: str) -> Any:
    """A cell as JSON would have it: counts are numbers, and truth is no text."""
    text = cell.strip()
    if name.lower().endswith(("_tokens", "_len")):
        return int(text) if text.isdecimal() else _float(text)
    if name.lower() == "censored" and text.lower() in ("true", "false", "1", "0"):
        return text.lower() in ("true", "1")
    return cell


def _float(text: str) -> Any:
    try:
        return float(text)
    except ValueError:
        return text


def _delimiter(path: Path, line: str) -> str | None:
    """What parts the names in a file's first line; None where none of them is known."""
    tabs = _ending(path) in (".tsv", ".tab")
    best, most = None, 0
    for delimiter in "\t" if tabs else _DELIMITERS:
        names = next(csv.reader([line], delimiter=delimiter), [])
        known = sum(name.strip().lower() in NAMES_OF_COLUMNS for name in names)
        if known > most:
            best, most = delimiter, known
    return best


def _parquet(path: Path, watch: Watch | None) -> Iterator[Placed]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    content, _ = open_bytes(path)
    with content, tempfile.TemporaryFile() as unpacked:
        source: IO[bytes] = content
        if not isinstance(getattr(content, "raw", None), io.FileIO):  # gzipped: Parquet must seek
            while piece := content.read(_CHUNK):
                unpacked.write(piece)
            source = unpacked
        try:
            table = pq.ParquetFile(source)
            rows, size = table.metadata.num_rows, path.stat().st_size
            number = 0
            for batch in table.iter_batches(batch_size=_BATCH_ROWS):
                for row in batch.to_pylist():
                    yield f"{path}: row {number}", row
                    number += 1
                if watch is not None:
                    watch(size * batch.num_rows // max(rows, 1))
        except (OSError, ValueError, pa.ArrowException) as error:
            raise InputError(
                f"{path}: not a readable Parquet file: {shown(str(error), 120)}"
            ) from error
