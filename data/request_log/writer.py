"""Writing the request log beside a serving engine.

The writer never slows or stops serving: rows wait in a bounded line for one background thread,
which is woken by the first of a batch and by a full one, not by each row; what cannot be written
is counted, not raised. Every writer opens files of its own and only appends, so a log can be read
while it grows; a torn line can only be the last of its file.
"""

from __future__ import annotations

import atexit
import contextlib
import json
import logging
import math
import os
import threading
import time
from bisect import bisect_right
from collections import deque
from collections.abc import Callable
from itertools import accumulate
from pathlib import Path
from stat import S_ISREG
from typing import Any

from lengthwise.data.errors import InputError

log = logging.getLogger("lengthwise.request_log")

_MOST_FILE_BYTES = 64 * 1024**2
_FILES_PER_AGE = 10
_FILES_PER_LOG = 8


class RequestLogWriter:
    """Appends rows to `folder`; `write` returns at once, `dropped` counts what was lost.

    A file is closed at `max_bytes`, or when it has been open for a tenth of `max_age_s`; with each
    new file the oldest are deleted when all together pass `max_total_bytes` or a file is older
    than `max_age_s` (None: kept). Rows reach the disk after `flush_s` or `flush_rows`, whichever
    is first. `stem` begins the files' names. Files are readable by their owner only, since they
    may hold prompts.
    """

    def __init__(
        self,
        folder: str | Path,
        *,
        max_bytes: int = _MOST_FILE_BYTES,
        max_total_bytes: int = 4 * 1024**3,
        max_age_s: float | None = None,
        flush_s: float = 1.0,
        flush_rows: int = 100,
        queue_rows: int = 10_000,
        stem: str = "requests",
        clock: Callable[[], float] = time.time,
    ) -> None:
        for name, value in (("max_bytes", max_bytes), ("flush_rows", flush_rows)):
            if value < 1:
                raise InputError(f"{name} must be at least 1, got {value}")
        self.folder = Path(folder)
        self._stem = stem
        self._max_bytes = max_bytes
        self._max_total_bytes = max_total_bytes
        self._max_age_s = max_age_s
        self._flush_s = flush_s
        self._flush_rows = flush_rows
        self._clock = clock
        self._waiting: deque[dict[str, Any]] = deque()
        self._most_waiting = queue_rows
        self._wake_rows = min(flush_rows, max(1, queue_rows // 2))
        self._some, self._full = threading.Event(), threading.Event()
        self._lock = threading.Lock()
        self._dropped = 0
        self._written = 0
        self._reported = False
        self._closed = False
        self._file = -1
        self._path = Path()
        self._file_bytes = 0
        self._opened_s = 0.0
        self._files_opened = 0
        self._thread = threading.Thread(target=self._run, name="request-log", daemon=True)
        self._thread.start()
        atexit.register(self.close)

    @property
    def dropped(self) -> int:
        """Rows lost to a full queue, a disk error, or a value JSON cannot hold."""
        return self._dropped

    @property
    def written(self) -> int:
        """Rows that reached a file."""
        return self._written

    def write(self, row: dict[str, Any]) -> None:
        """Hand a row over; it is not copied, so do not change it afterwards. Never raises."""
        if self._closed:
            self._drop(1, "the writer is closed")
            return
        if len(self._waiting) >= self._most_waiting:
            self._drop(1, "the queue is full")
            return
        self._waiting.append(row)
        if not self._some.is_set():
            self._some.set()
        if len(self._waiting) >= self._wake_rows and not self._full.is_set():
            self._full.set()

    def close(self, timeout_s: float = 10.0) -> None:
        """Write what is queued and stop; safe to call twice."""
        if self._closed:
            return
        self._closed = True
        atexit.unregister(self.close)
        self._full.set()
        self._some.set()
        self._thread.join(timeout_s)
        if self._thread.is_alive():
            log.warning("request log: the disk did not keep up, closing without a last flush")

    def _run(self) -> None:
        closing = False
        while not closing:
            self._some.wait()
            self._full.wait(self._flush_s)  # from the first row on: older ones are written sooner
            self._some.clear()
            self._full.clear()
            closing = self._closed  # what came before it is still written
            while self._waiting:
                count = min(len(self._waiting), self._flush_rows)
                self._flush([self._waiting.popleft() for _ in range(count)])
        self._close_file()

    def _flush(self, rows: list[dict[str, Any]]) -> None:
        left = [line for row in rows if (line := self._line(row)) is not None]
        try:
            self._leave_if_removed()
            while left:
                self._append(left)
        except OSError as error:
            self._close_file()  # a half-written line stays the last of its file
            self._remove_if_empty()
            self._drop(len(left), f"disk error: {error}")

    def _append(self, lines: list[bytes]) -> None:
        """Write the first of the lines, as many as the file has room for, and take them out."""
        ends = list(accumulate(map(len, lines), initial=self._file_bytes))[1:]
        if self._file >= 0 and (ends[0] > self._max_bytes or self._is_stale()):
            self._close_file()
        if self._file < 0:
            self._open_file()
            self._prune()
            ends = list(accumulate(map(len, lines)))
        fits = max(1, bisect_right(ends, self._max_bytes))
        left = memoryview(b"".join(lines[:fits]))
        try:
            while left:
                count = os.write(self._file, left)
                self._file_bytes += count
                left = left[count:]
        finally:
            whole = bisect_right(ends, self._file_bytes, hi=fits)
            self._written += whole
            del lines[:whole]

    def _open_file(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        now_s = self._opened_s = self._clock()
        stamp = time.strftime("%Y%m%dT%H%M%S", time.gmtime(now_s))
        name = f"{self._stem}-{stamp}.{int(now_s % 1 * 1e6):06d}-{os.getpid()}-{self._files_opened}"
        self._path = self.folder / f"{name}.jsonl"
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_EXCL
        self._file = os.open(self._path, flags, 0o600)
        self._file_bytes = 0
        self._files_opened += 1

    def _is_stale(self) -> bool:
        """Little traffic would keep one file open, and its oldest rows, for months."""
        if self._max_age_s is None:
            return False
        return self._clock() - self._opened_s > self._max_age_s / _FILES_PER_AGE

    def _leave_if_removed(self) -> None:
        """Whatever is written to a file that somebody removed, or whose folder, is lost."""
        if self._file >= 0 and not os.fstat(self._file).st_nlink:
            self._close_file()

    def _close_file(self) -> None:
        if self._file >= 0:
            os.close(self._file)
            self._file = -1

    def _remove_if_empty(self) -> None:
        """A full disk would gain an empty file with every batch that it cannot take."""
        with contextlib.suppress(OSError):
            if self._path.stat().st_size == 0:
                self._path.unlink()

    def _prune(self) -> None:
        stats = {}
        for file in sorted(self.folder.glob(f"{self._stem}-*.jsonl")):
            with contextlib.suppress(OSError):  # another writer may have pruned it just now
                stat = file.stat()
                if file != self._path and S_ISREG(stat.st_mode):
                    stats[file] = stat
        total = sum(stat.st_size for stat in stats.values())
        for file, stat in stats.items():
            too_old = self._max_age_s is not None and (
                self._clock() - stat.st_mtime > self._max_age_s
            )
            if too_old or total + self._max_bytes > self._max_total_bytes:
                with contextlib.suppress(OSError):  # one that may not be removed costs no rows
                    file.unlink(missing_ok=True)
                    total -= stat.st_size

    def _line(self, row: dict[str, Any]) -> bytes | None:
        try:
            return (_json(row) + "\n").encode("utf-8", "replace")
        except (TypeError, ValueError, RecursionError) as error:
            self._drop(1, f"a row is not JSON: {error}")
            return None

    def _drop(self, rows: int, reason: str) -> None:
        with self._lock:
            self._dropped += rows
            first = not self._reported
            self._reported = True
        if first:
            log.warning(
                "request log in %s loses rows (%s); further losses are only counted",
                self.folder,
                reason,
            )


def limited_writer(
    folder: str | Path,
    *,
    max_mb: float,
    max_age_days: float | None = None,
    stem: str = "requests",
    queue_rows: int = 10_000,
) -> RequestLogWriter:
    """A writer whose files together hold at most `max_mb` (10^6 bytes) and `max_age_days`."""
    total_bytes = max(1, int(max_mb * 1e6))
    return RequestLogWriter(
        folder,
        max_bytes=max(1, min(_MOST_FILE_BYTES, total_bytes // _FILES_PER_LOG)),
        max_total_bytes=total_bytes,
        max_age_s=None if max_age_days is None else max_age_days * 86_400.0,
        stem=stem,
        queue_rows=queue_rows,
    )


def _json(row: dict[str, Any]) -> str:
    try:
        return json.dumps(row, ensure_ascii=False, allow_nan=False, default=_unpacked)
    except ValueError:  # a NaN somewhere, which is rare: only then is the row walked in Python
        return json.dumps(_finite(row), ensure_ascii=False, allow_nan=False)


def _unpacked(value: Any) -> Any:
    """numpy scalars and arrays as Python's; JSON has no other types."""
    if hasattr(value, "tolist"):
        return value.tolist()
    raise TypeError(f"{type(value).__name__} is not JSON")


def _finite(value: Any) -> Any:
    """The value in JSON's own types, NaN and infinity as null."""
    if isinstance(value, dict):
        return {str(key): _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if value is None or isinstance(value, str | int):
        return value
    return _finite(_unpacked(value))
