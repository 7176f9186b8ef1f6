"""JSON files that hold one object, and files that nobody sees half written."""

from __future__ import annotations

import os
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from lengthwise.data.errors import InputError, shown
from lengthwise.data.lines import damage, open_text, parse_object

_PREFIX = ".lengthwise-"  # a name may be as long as names may be
_MODE = 0o644  # mkstemp's own would lock out a server that runs as another user


def read_object(path: str | Path, what: str = "") -> dict[str, Any]:
    """The one JSON object in a file; `what` names it in errors.

    Raises InputError where the file is missing, unreadable, not UTF-8, or holds anything else, or
    a key twice: a person who wrote it meant both.
    """
    where = f"{what} {path}".strip()
    try:
        with open_text(path) as file:
            text = file.read()
    except InputError as error:
        raise InputError(f"cannot read {f'{what} {error}'.strip()}") from error
    except OSError as error:
        raise InputError(f"cannot read {where}: {damage(error, 'in the middle')}") from error
    return parse_object(text, where, once=True)


@contextmanager
def whole_file(path: str | Path) -> Iterator[IO[str]]:
    """A text file (UTF-8) to write, which takes its name when the block ends without an error.

    A link stays one and what it names is written; a file that is there keeps its mode; a pipe or a
    device (`/dev/stdout`) is written to and never put away. InputError for a folder and for no
    name; an OSError names the path that was asked for.
    """
    target = Path(path)
    if str(path) == "" or target.is_dir():
        raise InputError(f"must be the name of a file to write, got {shown(str(path))}")
    if target.exists() and not target.is_file():
        with target.open("w", encoding="utf-8") as stream:
            yield stream
        return
    target = Path(os.path.realpath(target))
    try:
        descriptor, name = tempfile.mkstemp(dir=target.parent, prefix=_PREFIX)
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from error
    part = Path(name)
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            yield file
        part.chmod(stat.S_IMODE(target.stat().st_mode) if target.exists() else _MODE)
        part.replace(target)
    finally:
        part.unlink(missing_ok=True)


def write_whole(path: str | Path, text: str) -> None:
    """Put text in a file at once: a reader sees the old content or the new, never half."""
    with whole_file(path) as file:
        file.write(text)
