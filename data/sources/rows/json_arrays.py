"""JSON arrays and documents as rows, one item at a time: a file is never held whole.

An item that is not JSON costs itself: reading goes on where an object begins as the first one did.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from lengthwise.data.errors import InputError, shown
from lengthwise.data.lines import Watch, broken_off, is_utf8, open_text

Row = dict[str, Any]
Placed = tuple[str, Row | InputError]

_CHUNK, _PIECE = 1 << 20, 1 << 14
_BETWEEN = re.compile(r"[ \t\r\n,]*")
_FIRST_KEY = re.compile(r'\{\s*("(?:[^"\\]|\\.)*"\s*:)')
_NEAR_THE_END = 32  # characters before the end of what was read where an error may mean "more"
# members of a document that hold its rows
_LISTS = ("data", "rows", "examples", "instances", "items", "records", "samples", "dataset")
_LISTS_OF_SPLITS = ("train", "test", "validation", "eval")


def members_of(row: Any) -> list[Any] | None:
    """The rows inside a document, where its one list of objects holds them."""
    if not isinstance(row, dict):
        return None
    found = [row[name] for name in _LISTS if _is_list_of_objects(row.get(name))]
    if not found:
        found = [row[name] for name in _LISTS_OF_SPLITS if _is_list_of_objects(row.get(name))]
    return [item for part in found for item in part] or None


def array_rows(path: Path, watch: Watch | None) -> Iterator[Placed]:
    """The items of arrays, or of the arrays in documents; objects that follow each other.

    An item that is no JSON, and what stands behind an array, comes as an error of its own.
    InputError where the first item is broken and nothing can be read after it.
    """
    with open_text(path, watch) as file:
        text = _Text(file)
        item, in_array = 0, False
        try:
            while True:
                start = text.skip_blanks()
                if not start:
                    if in_array:
                        yield _place(path, item), InputError("an array must be closed, got the end")
                    return
                if start == "]":
                    text.at, in_array = text.at + 1, False
                    continue
                if not in_array and start == "[":
                    text.at, in_array = text.at + 1, True
                    continue
                try:
                    value, whole = text.take()
                except ValueError as error:
                    message = getattr(error, "msg", None) or "nested too deep"
                    broken = InputError(f"not JSON ({message}), got {shown(text.ahead(80))}")
                    if not text.resume():
                        if item == 0:
                            raise InputError(f"{_place(path, item)}: {broken}") from error
                        yield _place(path, item), InputError(f"{broken}; nothing after it is read")
                        return
                    yield _place(path, item), broken
                    item += 1
                    continue
                for row in [value] if in_array else members_of(value) or [value]:
                    yield _place(path, item), _checked(row, whole)
                    item += 1
        except OSError as error:
            raise broken_off(path, error, f"after {item} items") from error


class _Text:
    """A window of a file's text: `at` is where the next item begins."""

    def __init__(self, file: IO[str]) -> None:
        self._file = file
        self._decoder = json.JSONDecoder()
        self._text = ""
        self._first: re.Pattern[str] | None = None
        self._broken: Exception | None = None
        self.at = 0

    def skip_blanks(self) -> str:
        """Go to the next character that is neither blank nor comma; empty at the end."""
        while True:
            blanks = _BETWEEN.match(self._text, self.at)
            self.at = blanks.end() if blanks else self.at
            if self.at < len(self._text):
                return self._text[self.at]
            if not self._more(_CHUNK):
                return ""

    def ahead(self, most: int) -> str:
        """What stands here."""
        return self._text[self.at : self.at + most]

    def take(self) -> tuple[Any, bool]:
        """The value here, and whether it is UTF-8; ValueError for none."""
        size = _CHUNK
        while True:
            try:
                value, end = self._decoder.raw_decode(self._text, self.at)
            except RecursionError as error:
                # its end cannot be told, nor whether there is one
                raise ValueError from error
            except json.JSONDecodeError as error:
                torn = error.msg.startswith("Unterminated")
                if not torn and error.pos < len(self._text) - _NEAR_THE_END:
                    raise
                if not self._more(size):
                    raise
                size *= 2  # keeps the retries on one huge item linear
                continue
            whole = is_utf8(self._text[self.at : end])
            self._remember(end)
            self.at = end
            return value, whole

    def resume(self) -> bool:
        """Go to the next object that begins with the first one's first key; False for none."""
        self._remember(len(self._text))
        if self._first is None:
            return False
        start = self.at + 1
        while True:
            if (found := self._first.search(self._text, start)) is not None:
                self.at = found.end(1)
                return True
            self.at = start = max(start, len(self._text) - 4096)  # an opening may be cut in two
            if not self._more(_CHUNK):
                return False
            start = self.at

    def _remember(self, end: int) -> None:
        if self._first is None and (key := _FIRST_KEY.match(self._text, self.at, end)):
            self._first = re.compile(r"([,\[\]}]\s*)(?=\{\s*" + re.escape(key[1]) + ")")

    def _more(self, size: int) -> bool:
        """About so much more text; what comes before a break is kept, the next call raises it."""
        if self._broken is not None:
            raise self._broken
        parts: list[str] = []
        try:
            while size > 0 and (piece := self._file.read(_PIECE)):
                parts.append(piece)
                size -= len(piece)
        except OSError as error:
            if not parts:
                raise
            self._broken = error
        if not parts:
            return False
        if self.at > len(self._text) // 2:
            self._text, self.at = self._text[self.at :], 0
        self._text += "".join(parts)
        return True


def _place(path: Path, item: int) -> str:
    return f"{path}: item {item}"


def _checked(value: Any, whole: bool) -> Row | InputError:
    if not whole:
        return InputError(f"not UTF-8 text, got {shown(value)}")
    if not isinstance(value, dict):
        return InputError(f"must be an object, got {shown(value)}")
    return value


def _is_list_of_objects(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and isinstance(value[0], dict)
