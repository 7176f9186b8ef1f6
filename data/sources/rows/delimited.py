"""CSV and TSV as rows: a line of names, then cells; whatever parts them, in quotes or not."""

from __future__ import annotations

import csv
import math
import re
from collections.abc import Iterator
from itertools import chain, count
from pathlib import Path
from typing import IO, Any

from lengthwise.data.errors import InputError, shown
from lengthwise.data.lines import Watch, broken_off, is_utf8, open_text, read_lines
from lengthwise.data.packed import unpacked_name
from lengthwise.data.slo import parse_number
from lengthwise.data.sources.names import NAMES_OF_COLUMNS

Row = dict[str, Any]
Placed = tuple[str, Row | InputError]

_MOST_CELL = 2**31 - 1
_DELIMITERS = ",;\t|"
_SAYS_DELIMITER = re.compile(r"sep=(.)\s*\Z", re.IGNORECASE)  # a spreadsheet's own first line
_MOST_UNCLOSED = 100  # quotes that are never closed, after which the rest of a file is given up
_NO_NUMBER = frozenset({"nan", "null", "none", "na", "n/a"})


def table_ending(path: Path) -> bool:
    """Whether a file's name says that it is a table."""
    return ending(path) in (".csv", ".tsv", ".tab")


def ending(path: Path) -> str:
    """The name's last suffix but that of its packing, in lower case."""
    name = unpacked_name(path.name.lower())
    return Path(name).suffix


def is_table(path: Path) -> bool:
    """Whether a text file begins with a line of column names that hold prompts or answers."""
    return _delimiter(path, _first_line(path)[1]) is not None


def table_rows(path: Path, watch: Watch | None) -> Iterator[Placed]:
    """(place, row) of each line of cells, or (place, error); InputError for what is no table.

    A quote that is never closed costs its own line only.
    """
    csv.field_size_limit(_MOST_CELL)
    said, line = _first_line(path)
    delimiter = _delimiter(path, line) if said is None else said
    if line and delimiter is None:
        raise InputError(
            f"{path}:1: the first line must name the columns, prompt and response among them, "
            f"got {shown(line.strip())}"
        )
    with open_text(path, watch, newline="") as file:
        if said is not None:
            file.readline()
        reader = _Cells(file, delimiter or ",", int(said is not None))
        try:
            # blank lines before the names are nothing
            header = next((row for _, row in reader if _holds(row)), [])
            names = _names(path, header if isinstance(header, list) else [])
            for number, row in reader:
                place = f"{path}:{number}"
                if isinstance(row, InputError):
                    yield place, row
                elif _holds(row):
                    yield place, _row(names, row)
        except csv.Error as error:
            raise InputError(f"{path}:{reader.line}: not readable as CSV: {error}") from error
        except OSError as error:
            raise broken_off(path, error, f"after line {reader.line}") from error


class _Cells:
    """(number of its first line, cells) of each row; a line whose quote stays open is an error."""

    def __init__(self, file: IO[str], delimiter: str, line: int) -> None:
        self._delimiter = delimiter
        self._lines: Iterator[str] = iter(file)
        self._held: list[str] = []
        self._ended = False
        self.line = line

    def __iter__(self) -> Iterator[tuple[int, list[str] | InputError]]:
        for unclosed in count(1):
            self._ended, again = False, False
            for row in csv.reader(self._holding(), delimiter=self._delimiter):
                held, self._held = self._held, []
                number, self.line = self.line + 1, self.line + len(held)
                if not self._ended:
                    yield number, row
                    continue
                # a row that takes the end of the file to end is inside quotes
                again = unclosed < _MOST_UNCLOSED
                lost = "" if again else f" ({len(held) - 1} lines after it are not read)"
                yield number, InputError(f"a quote must be closed, got {shown(held[0])}{lost}")
                if again:
                    self._lines, self.line = iter(held[1:]), number
            if not again:
                return

    def _holding(self) -> Iterator[str]:
        for line in self._lines:
            self._held.append(line)
            yield line
        self._ended = True


def _holds(row: list[str] | InputError) -> bool:
    return isinstance(row, list) and any(cell.strip() for cell in row)


def _names(path: Path, header: list[str]) -> list[str]:
    names = [name.strip() for name in header]
    known = [name.lower() for name in names if name.lower() in NAMES_OF_COLUMNS]
    twice = next((name for name in known if known.count(name) > 1), None)
    if twice is not None:
        raise InputError(f"{path}: a column must be named once, got {twice!r} twice")
    return names


def _row(names: list[str], cells: list[str]) -> Row | InputError:
    if len(cells) > len(names) and any(cell.strip() for cell in cells[len(names) :]):
        return InputError(f"must have at most {len(names)} cells, got {len(cells)}")
    if not all(map(is_utf8, cells)):
        return InputError(f"not UTF-8 text, got {shown(cells)}")
    found: Row = {}
    for name, cell in zip(names, cells, strict=False):
        if cell != "":
            found.setdefault(name, _typed(name, cell))
    return found


def _typed(name: str, cell: str) -> Any:
    """A cell as JSON would have it: counts are numbers, and truth is no text."""
    text = cell.strip()
    if name.lower().endswith(("_tokens", "_len")):
        if text.lower() in _NO_NUMBER:
            return None
        number = parse_number(text)
        return text if math.isnan(number) else number
    if name.lower() == "censored" and text.lower() in ("true", "false", "1", "0"):
        return text.lower() in ("true", "1")
    return cell


def _first_line(path: Path) -> tuple[str | None, str]:
    """The delimiter that a spreadsheet's own first line states, and the line of names."""
    lines = read_lines(path)
    _, line = next(lines, (0, ""))
    if (said := _SAYS_DELIMITER.match(line)) is None:
        return None, line
    return said[1], next(chain(lines, [(0, "")]))[1]


def _delimiter(path: Path, line: str) -> str | None:
    """What parts the names in a file's first line; None where none of them is known."""
    tabs = ending(path) in (".tsv", ".tab")
    best, most = None, 0
    for delimiter in "\t" if tabs else _DELIMITERS:
        names = next(csv.reader([line], delimiter=delimiter), [])
        known = sum(name.strip().lower() in NAMES_OF_COLUMNS for name in names)
        if known > most:
            best, most = delimiter, known
    return best
