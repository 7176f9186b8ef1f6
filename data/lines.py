"""JSON lines, plain or gzip, with errors that name the file and the line."""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from lengthwise.data.errors import InputError, shown


def open_text(path: str | Path) -> IO[str]:
    """Open a UTF-8 text file, gunzipped when its name ends in .gz; InputError if missing."""
    file = Path(path)
    if not file.is_file():
        raise InputError(f"{file}: no such file")
    try:
        if file.suffix == ".gz":
            return gzip.open(file, "rt", encoding="utf-8")
        return file.open(encoding="utf-8")
    except OSError as error:
        raise InputError(f"{file}: cannot be read: {error.strerror or error}") from error


def read_lines(path: str | Path) -> Iterator[tuple[int, str]]:
    """(line number, line) of every line that is not blank.

    Raises InputError for a missing file, a truncated or corrupt gzip, or bytes that are not UTF-8.
    """
    number = 0
    with open_text(path) as file:
        try:
            for number, line in enumerate(file, 1):
                if line.strip():
                    yield number, line
        except EOFError as error:
            raise InputError(f"{path}: gzip ends early, after line {number}") from error
        except (gzip.BadGzipFile, zlib.error) as error:
            raise InputError(f"{path}: corrupt gzip after line {number}: {error}") from error
        except UnicodeDecodeError as error:
            raise InputError(
                f"{path}: not UTF-8 text after line {number}: {error.reason}"
            ) from error


def read_json_lines(path: str | Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """(line number, object) of every line; InputError where a line is not one JSON object."""
    for number, line in read_lines(path):
        yield number, parse_object(line, f"{path}:{number}")


def parse_object(line: str, where: str) -> dict[str, Any]:
    """One JSON object; `where` (file:line) opens the error message."""
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
        message = error.msg if isinstance(error, json.JSONDecodeError) else str(error)
        raise InputError(f"{where}: not JSON ({message}): {shown(line.strip())}") from error
    if not isinstance(row, dict):
        raise InputError(f"{where}: must be a JSON object, got {shown(row)}")
    return row
