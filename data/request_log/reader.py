"""Reading the server's request log back, as a frame of outcomes or as training data."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import pandas as pd

from lengthwise.data.errors import InputError
from lengthwise.data.lines import parse_object, read_lines
from lengthwise.data.request_log.schema import FILE_PATTERN, NUMBERS, ROW_KEYS, check_row
from lengthwise.data.slo import DEFAULT_CLASS
from lengthwise.data.table import PromptTable, make_table, prompt_group, prompt_id, texts_sha256


def read_request_log(folder: str | Path) -> pd.DataFrame:
    """All rows of a log folder (or of one file), oldest file first, columns ROW_KEYS.

    A last line cut off by a crash, or not yet complete, is left out and counted in
    `attrs["torn_lines"]`. Raises InputError for no rows, or a bad line with file and number.
    """
    path = Path(folder)
    files = _files(path)
    rows: list[dict[str, Any]] = []
    torn = 0
    for file in files:
        for row in _rows_of(file):
            if row is None:
                torn += 1
            else:
                rows.append(row)
    if not rows:
        raise InputError(f"{path}: the request log has no complete row ({torn} torn)")
    frame = _frame(rows)
    frame.attrs |= {"torn_lines": torn, "files": len(files)}
    return frame


def log_batches(folder: str | Path, rows: int = 20_000) -> Iterator[PromptTable]:
    """The log's finished requests as prompt tables (`log_to_table`) of so many rows, in turn.

    For logs that do not fit in memory. Raises InputError as `read_request_log` does.
    """
    path = Path(folder)
    complete = (row for file in _files(path) for row in _rows_of(file) if row is not None)
    while batch := list(islice(complete, rows)):
        frame = _frame(batch)
        if answered(frame).any():
            yield log_to_table(frame, source_label=path.name)


def log_to_table(frame: pd.DataFrame, source_label: str = "log") -> PromptTable:
    """The finished requests of a log as a prompt table; answers cut at `max_tokens` are censored.

    Aborted, shed and failed requests are left out: where a client gave up says little about the
    answer's length. Rows without a logged prompt keep `prompt` None and are grouped by their
    features. Columns added: `features` (list of floats or None), their `feature_contract`, and the
    `predictor` that computed them.
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
    return table


def answered(frame: pd.DataFrame) -> pd.Series[bool]:
    """Which rows are finished requests with tokens, cut answers included: a mask, (n,)."""
    with_tokens = (frame[["output_tokens", "prompt_tokens"]].fillna(0).astype(int) >= 1).all(axis=1)
    return frame["status"].isin(("finished", "length")) & with_tokens


def _files(path: Path) -> list[Path]:
    files = sorted(path.glob(FILE_PATTERN)) if path.is_dir() else [path]
    if not files:
        raise InputError(f"{path}: no request log here (no {FILE_PATTERN})")
    return files


def _frame(rows: list[dict[str, Any]]) -> pd.DataFrame:
    frame = pd.DataFrame(rows, columns=list(ROW_KEYS), dtype=object)
    for name in NUMBERS:
        frame[name] = frame[name].astype(float)
    return frame


def _rows_of(file: Path) -> Iterator[dict[str, Any] | None]:
    """The file's rows; None for a last line that is not complete."""
    held: tuple[int, str] | None = None
    for number, line in read_lines(file):
        if held:
            yield _row(f"{file}:{held[0]}", held[1])
        held = number, line
    if held:
        number, line = held
        yield _row(f"{file}:{number}", line) if line.endswith("\n") else None


def _row(where: str, line: str) -> dict[str, Any]:
    row = parse_object(line, where)
    try:
        check_row(row)
    except InputError as error:
        raise InputError(f"{where}: {error}") from error
    return row
