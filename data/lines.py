"""Text files that a person may have written, and JSON lines, with errors that name the line.

One opener for all of them: how a file is packed is told by its first bytes, a byte-order mark is
dropped, line ends are of any kind, and what is no UTF-8 text says what it is instead.
"""

from __future__ import annotations

import io
import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any, BinaryIO, cast

from lengthwise.data.errors import InputError, shown
from lengthwise.data.packed import BrokenPackError, Unpacked, packing_of

Watch = Callable[[int], None]

PARQUET = b"PAR1"
ARROW = b"ARROW1"
ARROW_STREAM = b"\xff\xff\xff\xff"
# what else a file called .jsonl or .csv turns out to be
_OTHERS = (
    (b"\xff\xfe\x00\x00", "UTF-32 text", "save it as UTF-8"),
    (b"\x00\x00\xfe\xff", "UTF-32 text", "save it as UTF-8"),
    (b"\xff\xfe", "UTF-16 text", "save it as UTF-8: iconv -f UTF-16 -t UTF-8"),
    (b"\xfe\xff", "UTF-16 text", "save it as UTF-8: iconv -f UTF-16 -t UTF-8"),
    (b"PK\x03\x04", "a zip archive (or a spreadsheet)", "unpack it, or save it as CSV"),
    (b"\x5d\x00\x00", "lzma-compressed", "unpack it: xz -d --format=lzma"),
    (b"7z\xbc\xaf\x27\x1c", "a 7-zip archive", "unpack it"),
    (b"Rar!", "a RAR archive", "unpack it"),
    (ARROW, "an Arrow file", "save it as JSON lines"),
    (PARQUET, "a Parquet file", "save it as JSON lines"),
    (b"ORC", "an ORC file", "save it as Parquet"),
    (b"\x93NUMPY", "an array of numpy's", "save it as JSON lines"),
    (b"\x80\x04\x95", "a pickle", "save it as JSON lines"),
    (b"\x80\x05\x95", "a pickle", "save it as JSON lines"),
    (b"Obj\x01", "an Avro file", "save it as Parquet"),
    (b"version https://git-lfs", "a pointer of Git LFS", "fetch the file itself: git lfs pull"),
    (b"SQLite format 3\x00", "a SQLite database", "export its rows as JSON lines"),
    (b"%PDF-", "a PDF", "give the rows as JSON lines"),
)
_TAR = (257, b"ustar")  # where a tar archive says so
_HEAD_BYTES, _TELLING_BYTES = 512, 64
_BUFFER_BYTES = 1 << 18
_NOT_UTF8 = re.compile("[\udc80-\udcff]")  # what surrogateescape makes of a wrong byte


class CutShortError(InputError):
    """A packed file that ends early or breaks, of which what stood before was read.

    `loss` says so without the file's name, for a reader that counts what it leaves out.
    """

    def __init__(self, path: str | Path, error: BrokenPackError, where: str) -> None:
        super().__init__(f"{path}: {damage(error, where)}")
        self.loss = InputError(f"{error.what}: nothing can be read {where}")


class _Watched(io.FileIO):
    """A file that tells how many bytes were read of it."""

    def __init__(self, path: Path, watch: Watch) -> None:
        super().__init__(path)
        self._watch = watch

    def readinto(self, buffer: Any, /) -> int:
        count = super().readinto(buffer) or 0
        self._watch(count)
        return count


def open_bytes(path: str | Path, watch: Watch | None = None) -> tuple[BinaryIO, bytes]:
    """A file's content, unpacked, at its start, and the first bytes of it.

    `watch` is called with the bytes of every piece that is read from the disk. InputError if the
    file is missing, or broken from its beginning.
    """
    file = Path(path)
    if file.is_dir():
        raise InputError(f"{file}: is a folder, not a file")
    if not file.exists():
        raise InputError(f"{file}: no such file")
    content: Any = None
    try:
        content = io.BufferedReader(
            _Watched(file, watch) if watch else io.FileIO(file), _BUFFER_BYTES
        )
        head = content.peek(_HEAD_BYTES)[:_HEAD_BYTES]
        if (packing := packing_of(head)) is not None:
            content = io.BufferedReader(Unpacked(content, packing), _BUFFER_BYTES)
            head = content.peek(_HEAD_BYTES)[:_HEAD_BYTES]
    except OSError as error:
        if content is not None:
            content.close()
        raise InputError(f"{file}: {damage(error, 'before line 1')}") from error
    return content, head


def refuse_pipe(path: str | Path) -> None:
    """InputError for what can be read only once: whoever opens a file several times says so here.

    What was read of a pipe to see what it is would be lost.
    """
    file = Path(path)
    if file.exists() and not (file.is_file() or file.is_dir()):
        raise InputError(f"{file}: must be a file, got a pipe or a device; write it to one first")


def open_text(path: str | Path, watch: Watch | None = None, newline: str | None = None) -> IO[str]:
    """Open a UTF-8 text file, unpacked if need be, without its byte-order mark.

    A byte that is no UTF-8 comes as a lone surrogate (`is_utf8` tells). `newline` as in `open`.
    InputError if the file is missing or something else than text.
    """
    content, head = open_bytes(path, watch)
    if (other := _no_utf8(head)) is not None:
        content.close()
        raise InputError(f"{path}: is {other}")
    return io.TextIOWrapper(
        cast(Any, content), encoding="utf-8-sig", errors="surrogateescape", newline=newline
    )


def _no_utf8(head: bytes) -> str | None:
    """What a file that begins so is, instead of UTF-8 text."""
    if (packing := packing_of(head)) is not None:
        return f"{packing.name}-compressed twice, not UTF-8 text: unpack it once"
    for start, what, way_out in _OTHERS:
        if head.startswith(start):
            return f"{what}, not UTF-8 text: {way_out}"
    if head.startswith(_TAR[1], _TAR[0]):
        return "a tar archive, not UTF-8 text: unpack it: tar -x"
    head = head[:_TELLING_BYTES]
    if 8 * head.count(0) <= len(head) and not head.startswith(b"\0"):
        return None  # a NUL in a text is one odd row's affair
    low, high = sorted((head[::2].count(0), head[1::2].count(0)))
    wide = low == 0 and high > len(head) // 4
    what = "UTF-16 text without a byte-order mark" if wide else "binary data"
    return f"{what}, not UTF-8 text"


def broken_off(path: str | Path, error: OSError, where: str) -> InputError:
    """The error of a read that failed so far into a file, with its name."""
    if isinstance(error, BrokenPackError):
        return CutShortError(path, error, where)
    return InputError(f"{path}: {damage(error, where)}")


def damage(error: OSError, where: str) -> str:
    """What a failed read means, on one line; `where` says how far it came."""
    if isinstance(error, BrokenPackError):
        reason = "" if error.early else f": {error}"
        return f"{error.what}{',' if error.early else ''} {where}{reason}"
    return f"cannot be read, {where}: {error.strerror or error}"


def is_utf8(text: str) -> bool:
    """Whether a text from `open_text` held nothing but UTF-8."""
    return text.isascii() or _NOT_UTF8.search(text) is None


def read_lines(path: str | Path, watch: Watch | None = None) -> Iterator[tuple[int, str]]:
    """(line number, line) of every line that is not blank; see `is_utf8` for wrong bytes.

    Raises InputError for a missing file, and CutShortError after the last whole line of a
    packed file that ends early or is corrupt.
    """
    number = 0
    with open_text(path, watch) as file:
        try:
            for number, line in enumerate(file, 1):
                if line.strip():
                    yield number, line
        except OSError as error:
            raise broken_off(path, error, f"after line {number}") from error


def read_json_lines(path: str | Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """(line number, object) of every line; InputError where a line is not one JSON object."""
    for number, line in read_lines(path):
        yield number, parse_object(line, f"{path}:{number}")


def parse_object(line: str, where: str, *, once: bool = False) -> dict[str, Any]:
    """One JSON object; `where` (file:line) opens the error message. `once`: no key twice."""
    try:
        return parse_line(line, once=once)
    except InputError as error:
        raise InputError(f"{where}: {error}") from error


def parse_line(line: str, *, once: bool = False) -> dict[str, Any]:
    """One JSON object; InputError, without a place, for anything else."""
    if not is_utf8(line):
        raise InputError(f"not UTF-8 text, got {shown(line.strip())}")
    try:
        row = json.loads(line, object_pairs_hook=_each_once if once else None)
    except InputError:
        raise
    except (ValueError, RecursionError) as error:
        message = error.msg if isinstance(error, json.JSONDecodeError) else str(error)
        raise InputError(f"not JSON ({message}): {shown(line.strip())}") from error
    if not isinstance(row, dict):
        raise InputError(f"must be a JSON object, got {shown(row)}")
    return row


def _each_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object's members; InputError for a name that stands there twice."""
    members = dict(pairs)
    if len(members) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise InputError(f"a key must stand once in its object, got {shown(twice)} twice")
    return members
