"""Reading the server's request log back, as a frame of outcomes or as training data.

A row that breaks a rule is left out, counted and named; texts are joined by their id.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import pandas as pd

from lengthwise.data.errors import InputError
from lengthwise.data.lines import Watch
from lengthwise.data.request_log.log_files import LogFiles, checked_rows, join_texts, log_files
from lengthwise.data.request_log.newest import newest_first
from lengthwise.data.request_log.schema import FIXED_LENGTH, NUMBERS, QUANTILES, ROW_KEYS
from lengthwise.data.skipped import Skipped
from lengthwise.data.slo import DEFAULT_CLASS
from lengthwise.data.table import (
    PromptTable,
    make_table,
    note_reading,
    prompt_group,
    prompt_id,
    texts_sha256,
)

_JUDGED_LEVELS = ("0.1", "0.9")


def read_request_log(folder: str | Path, *, compact: bool = False) -> pd.DataFrame:
    """All rows of a log folder (or of one file), oldest file first, columns ROW_KEYS.

    A last line cut off by a crash, or not yet complete, is left out and counted in
    `attrs["torn_lines"]`; rows that break a rule in `attrs["skipped"]` (`table.note_reading`),
    files that are none of the log's in `attrs["unread_files"]`. `compact` keeps of features and
    quantiles what figures need, in a tenth of the memory. Raises InputError for no rows, or where
    most are broken.
    """
    files, skipped = log_files(folder), Skipped()
    rows: list[dict[str, Any]] = []
    for file in files.rows:
        for row in checked_rows(file, skipped):
            rows.append(_compact(row) if compact else row)
    join_texts(rows, files.texts, skipped)
    return _noted(_frame(rows, folder, skipped), files, skipped)


def newest_requests(
    folder: str | Path,
    most: int,
    characters: int | None = None,
    watch: Watch | None = None,
) -> pd.DataFrame:
    """The newest answered requests of a log, oldest first: at most so many, and so much text.

    Reads from the new end and no more than it needs: `attrs["unread_bytes"]` says how much was
    left, beside what `read_request_log` notes. `watch` is called with the bytes read.
    """
    files, skipped = log_files(folder), Skipped()
    read = 0

    def counted(count: int) -> None:
        nonlocal read
        read += count
        if watch is not None:
            watch(count)

    rows: list[dict[str, Any]] = []
    held = 0
    for row in newest_first(files.rows, skipped, most=most, wanted=is_answered, watch=counted):
        held += len(row.get("prompt") or "") + 8 * len(row.get("features") or ())
        if len(rows) == most or (characters is not None and held > characters and rows):
            break
        rows.append(row)
    size = sum(file.stat().st_size for file in files.rows if file.exists())
    unread = max(0, size - read)
    join_texts(rows, files.texts, skipped, watch)
    rows = _within(rows, characters)
    rows.sort(key=lambda row: row.get("arrival_unix_s") or 0.0)
    if not rows and skipped.read and not skipped.broken:
        raise InputError(
            f"{folder}: none of the log's {skipped.read} rows is a finished request with tokens"
        )
    frame = _noted(_frame(rows, folder, skipped), files, skipped)
    frame.attrs["unread_bytes"] = unread
    return frame


def newest_table(
    folder: str | Path,
    most: int,
    characters: int | None = None,
    *,
    source_label: str = "log",
    watch: Watch | None = None,
) -> PromptTable:
    """`newest_requests` as a prompt table (`log_to_table`)."""
    return log_to_table(newest_requests(folder, most, characters, watch), source_label)


def log_batches(folder: str | Path, rows: int = 20_000) -> Iterator[PromptTable]:
    """The log's finished requests as prompt tables (`log_to_table`) of so many rows, in turn.

    For logs that do not fit in memory. Raises InputError where most rows are broken.
    """
    path = Path(folder)
    files, skipped = log_files(path), Skipped()
    found = (row for file in files.rows for row in checked_rows(file, skipped))
    any_row = False
    while batch := list(islice(found, rows)):
        any_row = True
        frame = _frame(batch, path, skipped)
        if answered(frame).any():
            yield log_to_table(_noted(frame, files, skipped), source_label=path.name)
    if not any_row:
        skipped.check(str(path), 0)


def log_to_table(frame: pd.DataFrame, source_label: str = "log") -> PromptTable:
    """The finished requests of a log as a prompt table; answers cut at `max_tokens` are censored.

    Aborted, shed and failed requests are left out: where a client gave up says little about the
    answer's length. So are lengths that a request fixed (`is_answered`). Rows without a logged
    prompt keep `prompt` None and are grouped by their features. Columns added: `features` (list of
    floats or None), their `feature_contract`, and the `predictor` that computed them.
    Counts are the server's own (`attrs["tokenizer"] == "server"`). InputError if nothing is left.
    """
    kept = frame[answered(frame)]
    if kept.empty:
        raise InputError(f"none of the log's {len(frame)} rows is a finished request with tokens")
    texts = [text if isinstance(text, str) and text else None for text in kept["prompt"]]
    names = [
        text or (repr(features) if features else f"request {request}")
        for text, features, request in zip(texts, kept["features"], kept["request_id"], strict=True)
    ]
    classes = [value if isinstance(value, str) else DEFAULT_CLASS for value in kept["slo_class"]]
    output_tokens = [int(count) for count in kept["output_tokens"]]
    table = make_table(
        {
            "id": [prompt_id(name) for name in names],
            "group": [prompt_group(name) for name in names],
            "source": ["request_log"] * len(kept),
            "task": classes,
            "slo_class": classes,
            "model": ["served"] * len(kept),
            "prompt_tokens": [int(count) for count in kept["prompt_tokens"]],
            "output_tokens": output_tokens,
            "prompt": texts,
            "censored": [status == "length" for status in kept["status"]],
            "license": ["own traffic"] * len(kept),
        },
        source_label=source_label,
        data_sha256=texts_sha256([*kept["request_id"], *output_tokens]),
        tokenizer="server",
    )
    for name in ("features", "feature_contract", "predictor"):
        table[name] = pd.Series(list(kept[name]), dtype=object)
    table.attrs |= {
        name: frame.attrs[name]
        for name in ("rows_read", "skipped_rows", "skipped", "unread_files", "unread_bytes")
        if name in frame.attrs
    }
    return table


def is_answered(row: dict[str, Any]) -> bool:
    """Whether a row is a finished request with tokens, a cut answer included.

    A length that the request fixed is no answer's: it says what the client chose.
    """
    if row.get("predictor") == FIXED_LENGTH:
        return False
    counts = (row.get("output_tokens"), row.get("prompt_tokens"))
    return row.get("status") in ("finished", "length") and all(n and n >= 1 for n in counts)


def answered(frame: pd.DataFrame) -> pd.Series[bool]:
    """Which rows are answers (`is_answered`): a mask, (n,)."""
    with_tokens = (frame[["output_tokens", "prompt_tokens"]].fillna(0).astype(int) >= 1).all(axis=1)
    chosen = frame["predictor"] == FIXED_LENGTH
    return frame["status"].isin(("finished", "length")) & with_tokens & ~chosen


def _within(newest: list[dict[str, Any]], characters: int | None) -> list[dict[str, Any]]:
    """As many of the rows, which come newest first, as hold so much text: it was joined late."""
    if characters is None:
        return newest
    held = 0
    for count, row in enumerate(newest):
        held += len(row.get("prompt") or "")
        if held > characters and count:
            return newest[:count]
    return newest


def _frame(rows: list[dict[str, Any]], what: str | Path, skipped: Skipped) -> pd.DataFrame:
    if not rows and not skipped.reasons:
        raise InputError(f"{what}: the request log has no complete row ({skipped.torn} torn)")
    skipped.check(str(what), len(rows))
    frame = pd.DataFrame(rows, columns=list(ROW_KEYS), dtype=object)
    for name in NUMBERS:
        frame[name] = frame[name].astype(float)
    return frame


def _noted(frame: pd.DataFrame, files: LogFiles, skipped: Skipped) -> pd.DataFrame:
    note_reading(frame, skipped)
    frame.attrs |= {
        "torn_lines": skipped.torn,
        "files": len(files.rows),
        "unread_files": files.unread,
    }
    return frame


def _compact(row: dict[str, Any]) -> dict[str, Any]:
    if row.get("features"):
        row["features"] = array("f", row["features"])
    for name in QUANTILES:
        if row.get(name):
            row[name] = {k: v for k, v in row[name].items() if k in _JUDGED_LEVELS}
    return row
