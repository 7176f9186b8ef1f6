"""Parquet and Arrow files as rows: `datasets` keeps and hands out both."""

from __future__ import annotations

import io
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from lengthwise.data.errors import InputError, shown
from lengthwise.data.lines import ARROW, ARROW_STREAM, PARQUET, Watch, open_bytes

Row = dict[str, Any]

_BATCH_ROWS = 256
_PIECE = 1 << 20


def kind_of(head: bytes) -> str | None:
    """What a file that begins so is called, if it is one of columns."""
    if head.startswith(PARQUET):
        return "Parquet"
    return "Arrow" if head.startswith((ARROW, ARROW_STREAM)) else None


def rows_of_columns(path: Path, kind: str, watch: Watch | None) -> Iterator[tuple[str, Row]]:
    """(place, row) of each row; InputError for a file that is damaged, after the rows before.

    Values that Python has no type for (nanoseconds of a far year) come as text.
    """
    import pyarrow as pa

    size = path.stat().st_size
    with _seekable(path) as source:
        number = 0
        try:
            total, batches = _parquet(source) if kind == "Parquet" else _arrow(source)
            for batch in batches:
                for row in batch.to_pylist():
                    yield f"{path}: row {number}", row
                    number += 1
                if watch is not None:
                    watch(size * batch.num_rows // max(total, 1))
        except (OSError, ValueError, pa.ArrowException) as error:
            raise InputError(
                f"{path}: not a readable {kind} file: {shown(str(error), 120)}"
            ) from error


def _parquet(source: IO[bytes]) -> tuple[int, Iterator[Any]]:
    import pyarrow.parquet as pq

    file = pq.ParquetFile(source)
    return file.metadata.num_rows, file.iter_batches(batch_size=_BATCH_ROWS)


def _arrow(source: IO[bytes]) -> tuple[int, Iterator[Any]]:
    """A file with a footer, or a stream as `datasets` writes them; no rows are told of a stream."""
    import pyarrow as pa

    try:
        reader = pa.ipc.open_file(source)
    except pa.ArrowInvalid:
        source.seek(0)
        return 0, _in_parts(pa.ipc.open_stream(source))
    return 0, _in_parts(reader.get_batch(i) for i in range(reader.num_record_batches))


def _in_parts(batches: Any) -> Iterator[Any]:
    for batch in batches:
        for start in range(0, batch.num_rows, _BATCH_ROWS):
            yield batch.slice(start, _BATCH_ROWS)


@contextmanager
def _seekable(path: Path) -> Iterator[IO[bytes]]:
    content, _ = open_bytes(path)
    with content, tempfile.TemporaryFile() as unpacked:
        if isinstance(getattr(content, "raw", None), io.FileIO):
            yield content
            return
        while piece := content.read(_PIECE):  # packed: columns must seek
            unpacked.write(piece)
        unpacked.seek(0)
        yield unpacked
