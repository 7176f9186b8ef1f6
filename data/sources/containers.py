"""Files as rows: JSON lines, arrays and documents, CSV, TSV, Parquet, Arrow, each also packed.

What a file is, its first bytes say; a name only has to tell CSV from TSV. Rows come one at a
time, so that a file larger than memory can be read; a row that cannot be taken apart comes as
the error that says why, and the next one follows.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from lengthwise.data.errors import InputError
from lengthwise.data.lines import (
    CutShortError,
    Watch,
    open_bytes,
    open_text,
    parse_line,
    read_lines,
    refuse_pipe,
)
from lengthwise.data.sources.rows.column_files import kind_of, rows_of_columns
from lengthwise.data.sources.rows.delimited import ending, is_table, table_ending, table_rows
from lengthwise.data.sources.rows.json_arrays import Placed, array_rows, members_of

_LONGEST_ODD_LINE = 1 << 16
_JSON_ENDINGS = (".jsonl", ".json", ".ndjson")


def rows_of(path: Path, watch: Watch | None = None) -> Iterator[Placed]:
    """(place, row) of a file, or (place, error) for a row that cannot be read.

    A packed file that breaks off gives the rows before, and then its break as one more that cannot
    be read. `watch` is called with the bytes read from the disk. InputError for a file that is
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
    refuse_pipe(path)
    content, head = open_bytes(path)
    content.close()
    start = head.removeprefix(b"\xef\xbb\xbf").lstrip()[:1]
    if (kind := kind_of(head)) is not None:
        return rows_of_columns(path, kind, watch)
    if ending(path) == ".parquet":
        open_text(path).close()  # says what else it is, if that is known
        raise InputError(f"{path}: not a readable Parquet file: it does not begin as one")
    if start in (b"[", b"{") and not (table_ending(path) and is_table(path)):
        return (_lines_or_array if start == b"[" else _lines_or_document)(path, watch)
    if table_ending(path) or (start and _is_table_by_content(path)):
        return table_rows(path, watch)
    return _lines(path, watch)


def _is_table_by_content(path: Path) -> bool:
    """Whether a file begins with names of columns, and no JSON lines follow the first line."""
    if not is_table(path):
        return False
    lines = (line for _, line in read_lines(path))
    next(lines)
    return ending(path) not in _JSON_ENDINGS or not next(lines, "").lstrip().startswith("{")


def _lines_or_array(path: Path, watch: Watch | None) -> Iterator[Placed]:
    """The array's items, unless a short array of no rows stands on a line before objects."""
    with open_text(path) as file:
        first, second = _line(file, _LONGEST_ODD_LINE), _line(file, _LONGEST_ODD_LINE)
    try:
        odd = not any(isinstance(item, dict) for item in json.loads(first))
    except (ValueError, RecursionError):
        return array_rows(path, watch)
    return (_lines if odd and second.lstrip().startswith("{") else array_rows)(path, watch)


def _line(file: IO[str], most: int = -1) -> str:
    """The next line, empty at the end and where a packed file breaks off."""
    try:
        return file.readline(most)
    except OSError:
        return ""


def _lines(path: Path, watch: Watch | None) -> Iterator[Placed]:
    for number, line in read_lines(path, watch):
        place = f"{path}:{number}"
        try:
            yield place, parse_line(line)
        except InputError as error:
            yield place, error


def _lines_or_document(path: Path, watch: Watch | None) -> Iterator[Placed]:
    """JSON lines, unless the first line is but the beginning of an object, or more than one."""
    with open_text(path) as file:
        lines = (line for line in iter(lambda: _line(file), "") if line.strip())
        first, second = next(lines, ""), next(lines, "{")
    try:
        row = json.loads(first)
    except (ValueError, RecursionError) as error:
        # a broken line among others, or the first line of a document that goes on below
        spread = not second.lstrip().startswith("{")
        spread |= getattr(error, "msg", "") == "Extra data" and _goes_on(first, error)
        return array_rows(path, watch) if spread else _lines(path, watch)
    if second == "{" and members_of(row) is not None:
        return array_rows(path, watch)
    return _lines(path, watch)


def _goes_on(line: str, error: Exception) -> bool:
    """Whether another object, or a comma before one, follows the first on its line."""
    return line[getattr(error, "pos", 0) :].lstrip().startswith(("{", ","))
