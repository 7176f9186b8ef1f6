"""The newest rows of a request log, read from its new end: what is older is not touched."""

from __future__ import annotations

import heapq
import os
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from lengthwise.data.lines import Watch, open_text
from lengthwise.data.packed import is_packed
from lengthwise.data.request_log.log_files import checked, checked_rows
from lengthwise.data.skipped import Skipped

LogRow = dict[str, Any]

_BLOCK = 1 << 20
_OLDEST = float("-inf")


def newest_first(
    files: list[Path],
    skipped: Skipped,
    *,
    most: int | None = None,
    wanted: Callable[[LogRow], bool] = bool,
    watch: Watch | None = None,
) -> Iterator[LogRow]:
    """The wanted rows of several files, newest first; rows that break a rule are counted.

    A file is opened when its last write is newer than every row that is left, so that who stops
    early opens few. Of a packed file, which can only be read from its old end, the newest `most`
    rows are held.
    """
    heap: list[tuple[float, int, LogRow | None, Iterator[LogRow]]] = []
    listed = [file for file in files if file.exists()]  # a server may have pruned some since
    for number, file in enumerate(listed):
        rows = _rows_back(file, skipped, most, wanted, watch)
        heap.append((-file.stat().st_mtime, -number, None, rows))
    heapq.heapify(heap)
    while heap:
        _, number, row, rows = heapq.heappop(heap)
        if row is not None:
            yield row
        following = next(rows, None)
        if following is not None:
            arrival = following.get("arrival_unix_s")
            key = _OLDEST if arrival is None else float(arrival)
            heapq.heappush(heap, (-key, number, following, rows))


def _rows_back(
    file: Path,
    skipped: Skipped,
    most: int | None,
    wanted: Callable[[LogRow], bool],
    watch: Watch | None,
) -> Iterator[LogRow]:
    if not file.exists():
        return
    if is_packed(file):
        kept = deque(filter(wanted, checked_rows(file, skipped, watch)), maxlen=most)
        yield from reversed(kept)
        return
    open_text(file).close()  # says what a file is that is no text
    lines = enumerate(_lines_back(file, watch), 1)
    yield from filter(
        wanted, checked(lines, skipped, lambda number: f"{file}: line {number} from the end")
    )


def _lines_back(file: Path, watch: Watch | None) -> Iterator[str]:
    """The lines that are not blank, from the last to the first, in pieces of bounded size."""
    for line in _raw_lines_back(file, watch):
        if line.strip():
            yield line.decode("utf-8", "surrogateescape").removeprefix("\ufeff")


def _raw_lines_back(file: Path, watch: Watch | None) -> Iterator[bytes]:
    with file.open("rb") as raw:
        end = raw.seek(0, os.SEEK_END)
        rest: list[bytes] = []  # pieces of a line that begins in an earlier block, the last first
        while end > 0:
            start = max(0, end - _BLOCK)
            raw.seek(start)
            block = raw.read(end - start)
            if watch is not None:
                watch(len(block))
            end = start
            first, *others = block.split(b"\n")
            if not others:
                rest.append(block)
                continue
            yield others.pop() + b"".join(reversed(rest))
            for line in reversed(others):
                yield line + b"\n"
            rest = [first + b"\n"]
        yield b"".join(reversed(rest))
