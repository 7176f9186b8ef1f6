"""The files of a log's folder: rows, texts, and what is neither and gets named."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lengthwise.data.chat import valid_text
from lengthwise.data.errors import InputError
from lengthwise.data.lines import CutShortError, Watch, parse_line, read_lines
from lengthwise.data.packed import SUFFIXES, unpacked_name
from lengthwise.data.request_log.schema import FILE_PATTERN, TEXTS_PATTERN, check_row, normal_row
from lengthwise.data.skipped import Skipped

_OURS = frozenset({"server.json", "learned.json"})
_SLACK_S = 3600.0  # by which clocks and late writes may differ


@dataclass(frozen=True, slots=True)
class LogFiles:
    """Files of a log, oldest first; `unread` are names of others that lie there."""

    rows: list[Path]
    texts: list[Path]
    unread: list[str]


def log_files(folder: str | Path) -> LogFiles:
    """The files of a folder, also packed ones, or one file alone; InputError where there is no log.

    Of a file and its packed copy only the file is read.
    """
    path = Path(folder)
    if not path.is_dir():
        if not path.exists():
            raise InputError(f"{path}: no such file")
        return LogFiles([path], _matching(path.parent, TEXTS_PATTERN), [])
    rows, texts = _matching(path, FILE_PATTERN), _matching(path, TEXTS_PATTERN)
    if not rows:
        raise InputError(f"{path}: no request log here (no {FILE_PATTERN}, nor one packed)")
    known = {file.name for file in (*rows, *texts)} | _OURS
    others = (file.name for file in path.iterdir() if not file.name.startswith("."))
    return LogFiles(rows, texts, sorted(name for name in others if name not in known))


def checked_rows(
    file: Path, skipped: Skipped, watch: Watch | None = None
) -> Iterator[dict[str, Any]]:
    """The rows of one file, oldest first; of a packed one that breaks off those before, and its
    break is counted. A server may have pruned it since it was listed: no rows."""
    if not file.exists():
        return
    try:
        yield from checked(read_lines(file, watch), skipped, lambda number: f"{file}:{number}")
    except CutShortError as error:
        skipped.read += 1
        skipped.add(str(file), error.loss)


def checked(
    lines: Iterable[tuple[int, str]], skipped: Skipped, place: Callable[[int], str]
) -> Iterator[dict[str, Any]]:
    """The rows of numbered lines, in whatever order; those that break a rule are counted.

    A line that does not end is the file's last, and torn.
    """
    for number, line in lines:
        if not line.endswith("\n"):
            skipped.torn += 1
            continue
        skipped.read += 1
        try:
            row = normal_row(parse_line(line))
            check_row(row)
        except InputError as error:
            skipped.add(place(number), error)
        else:
            yield row


def join_texts(
    rows: Collection[dict[str, Any]],
    files: list[Path],
    skipped: Skipped,
    watch: Watch | None = None,
) -> None:
    """Put the prompts, which the server keeps in files of their own, into the rows that name them.

    A text was written when its request arrived: files older than all rows are not read.
    """
    wanted: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        if row.get("text_id") and not row.get("prompt"):
            wanted.setdefault(row["text_id"], []).append(row)
    if not wanted:
        return
    came = [row["arrival_unix_s"] for row in rows if row.get("arrival_unix_s") is not None]
    oldest_s = min(came, default=0.0) - _SLACK_S
    for file in reversed(files):
        if not wanted:
            return
        if not file.exists() or file.stat().st_mtime < oldest_s:
            continue
        for text in _texts(file, skipped, watch):
            if isinstance(prompt := text.get("prompt"), str):
                for row in wanted.pop(str(text.get("text_id")), ()):
                    row["prompt"] = valid_text(prompt)


def _texts(file: Path, skipped: Skipped, watch: Watch | None) -> Iterator[dict[str, Any]]:
    """The texts of one file; what is torn or none is passed over: its row stays without."""
    try:
        for _, line in read_lines(file, watch):
            try:
                text = parse_line(line)
            except InputError:
                continue
            yield text
    except CutShortError as error:
        skipped.read += 1
        skipped.add(str(file), error.loss)


def _matching(folder: Path, pattern: str) -> list[Path]:
    plain = {file.name: file for file in folder.glob(pattern) if file.is_file()}
    packed = {
        name: file
        for suffix in SUFFIXES
        for file in folder.glob(f"{pattern}{suffix}")
        if (name := unpacked_name(file.name)) not in plain and file.is_file()
    }
    return [file for _, file in sorted((plain | packed).items())]
