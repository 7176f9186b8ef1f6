"""Reading the server's request log back, as a frame of outcomes or as training data."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd

from data.errors import InputError
from data.lines import parse_object, read_lines
from data.request_log_rows import FILE_PATTERN, NUMBERS, ROW_KEYS, check_row
from data.slo import DEFAULT_CLASS
from data.table import PromptTable, make_table, prompt_group, prompt_id, texts_sha256


def read_request_log(folder: str | Path) -> pd.DataFrame:
    """All rows of a log folder (or of one file), oldest file first, columns ROW_KEYS.

    A last line cut off by a crash, or not yet complete, is left out and counted in
    `attrs["torn_lines"]`. Raises InputError for no rows, or a bad line with file and number.
    """
    path = Path(folder)
    files = sorted(path.glob(FILE_PATTERN)) if path.is_dir() else [path]
    if not files:
        raise InputError(f"{path}: no request log here (no {FILE_PATTERN})")
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
    frame = pd.DataFrame(rows, columns=list(ROW_KEYS), dtype=object)
    for name in NUMBERS:
        frame[name] = frame[name].astype(float)
    frame.attrs |= {"torn_lines": torn, "files": len(files)}
    return frame


def log_to_table(frame: pd.DataFrame, source_label: str = "log") -> PromptTable:
    """The finished requests of a log as a prompt table; answers cut at `max_tokens` are censored.

    Aborted, shed and failed requests are left out: where a client gave up says little about the
    answer's length. Rows without a logged prompt keep `prompt` None and form a group each. Two
    columns are added where the log has them: `features` (list of floats) and `feature_contract`.
    Counts are the server's own (`attrs["tokenizer"] == "server"`). InputError if nothing is left.
    """
    answered = frame["status"].isin(("finished", "length")) & (
        frame["output_tokens"].fillna(0).astype(int) >= 1
    )
    kept = frame[answered & (frame["prompt_tokens"].fillna(0).astype(int) >= 1)]
    if kept.empty:
        raise InputError(f"none of the log's {len(frame)} rows is a finished request with tokens")
    texts = [text if isinstance(text, str) and text else None for text in kept["prompt"]]
    names = [
        text or f"request {request}"
        for text, request in zip(texts, kept["request_id"], strict=True)
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
    for name in ("features", "feature_contract"):
        table[name] = pd.Series(list(kept[name]), dtype=object)
    return table


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
