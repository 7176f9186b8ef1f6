"""The prompt table: what every source of prompts and answer lengths is turned into."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import pandas as pd

from lengthwise.data.errors import InputError, shown
from lengthwise.data.skipped import Skipped
from lengthwise.data.slo import check_class_name
from lengthwise.data.workload import MAX_TOKENS

PromptTable: TypeAlias = pd.DataFrame
"""One row per (prompt, answer), columns as in COLUMNS; provenance in `attrs`:
`source_label` (pack name, "synthetic", file name), `data_sha256`, `tokenizer` (who counted), and
what its reader left out (`note_reading`)."""

COLUMNS = {
    "id": "identity of the prompt text",
    "group": "the question behind the prompt; splits never part a group",
    "source": "data set of origin",
    "task": "what is asked, finer than the class",
    "slo_class": "class of service-level objective",
    "model": "who answered",
    "prompt_tokens": "int, tokens of the prompt without chat template",
    "output_tokens": "int, tokens of the answer, end of sequence included",
    "prompt": "text or None",
    "response": "text or None",
    "censored": "bool, cut off at a cap: output_tokens is a lower bound",
    "license": "as the source states it",
}
_TEXT_COLUMNS = ("id", "group", "source", "task", "slo_class", "model", "license")
_COUNT_COLUMNS = ("prompt_tokens", "output_tokens")
_NOT_WORD = re.compile(r"[\W_]+")


def make_table(
    columns: Mapping[str, Sequence[Any]], *, source_label: str, data_sha256: str, tokenizer: str
) -> PromptTable:
    """A validated table from columns; `response` defaults to None and `censored` to False."""
    rows = len(columns["prompt_tokens"])
    filled: dict[str, Sequence[Any]] = {
        "response": [None] * rows,
        "censored": [False] * rows,
        **columns,
    }
    table = pd.DataFrame({name: filled[name] for name in COLUMNS})
    for name in ("prompt", "response"):
        # one dtype whether or not all texts are present, and None instead of NaN
        table[name] = pd.Series(list(filled[name]), dtype=object)
    table.attrs |= {
        "source_label": source_label,
        "data_sha256": data_sha256,
        "tokenizer": tokenizer,
    }
    return validate(table)


def validate(table: pd.DataFrame) -> PromptTable:
    """The table with canonical dtypes; InputError names the first row that breaks a rule."""
    missing = [name for name in COLUMNS if name not in table.columns]
    if missing:
        raise InputError(
            f"a prompt table needs the column {missing[0]}; it has {list(table.columns)}"
        )
    if table.empty:
        raise InputError("a prompt table needs at least one row, got none")
    for name in _COUNT_COLUMNS:
        table[name] = _counts(table[name], name)
    for name in _TEXT_COLUMNS:
        _require(table[name], name, lambda v: isinstance(v, str) and v != "", "be text")
    for name in ("prompt", "response"):
        _require(table[name], name, lambda v: v is None or isinstance(v, str), "be text or None")
    _require(table["censored"], "censored", lambda v: isinstance(v, bool | np.bool_), "be a bool")
    table["censored"] = table["censored"].astype(bool)
    for slo_class in table["slo_class"].unique():
        check_class_name(slo_class)
    return table


def note_reading(
    table: PromptTable, skipped: Skipped, *, blank_turns: int = 0, left_out: int = 0
) -> None:
    """Keep in `attrs` what a reader did not use: `rows_read`, `skipped_rows` and why (`skipped`,
    see `Skipped.to_list`), `skipped_turns` (blank), `left_out_rows` (more than were asked for)."""
    table.attrs |= {
        "rows_read": skipped.read,
        "skipped_rows": skipped.rows,
        "skipped": skipped.to_list(),
        "skipped_turns": blank_turns,
        "left_out_rows": left_out,
    }


def prompt_id(text: str) -> str:
    """16 hex digits that identify a prompt text."""
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:16]


def prompt_group(text: str) -> str:
    """12 hex digits shared by texts that differ only in case, spacing and punctuation."""
    normal = _NOT_WORD.sub(" ", text.casefold()).strip() or text
    return hashlib.sha256(normal.encode("utf-8", "surrogatepass")).hexdigest()[:12]


def file_sha256(path: str | Path) -> str:
    """SHA-256 of a file's bytes, hex; InputError if it cannot be read."""
    try:
        with Path(path).open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror or error}") from error


def texts_sha256(parts: Iterable[object]) -> str:
    """SHA-256 over the text form of a sequence, for tables that come from no file."""
    digest = hashlib.sha256()
    for part in parts:
        digest.update(f"{part}\x1f".encode("utf-8", "surrogatepass"))
    return digest.hexdigest()


def sample_rows(table: PromptTable, limit: int | None, seed: int = 0) -> PromptTable:
    """At most `limit` rows, drawn evenly (files are sorted by source) and kept in file order."""
    if limit is None or limit >= len(table):
        return table
    if limit < 1:
        raise InputError(f"limit must be at least 1, got {limit}")
    kept = np.sort(np.random.default_rng(seed).choice(len(table), limit, replace=False))
    return take_rows(table, kept)


def take_rows(table: PromptTable, rows: Any) -> PromptTable:
    """Rows by position or mask, renumbered from 0, with the table's provenance."""
    part = table.iloc[np.flatnonzero(rows) if np.asarray(rows).dtype == bool else rows]
    part = part.reset_index(drop=True)
    part.attrs = dict(table.attrs)
    return part


def _counts(column: pd.Series, name: str) -> pd.Series:
    rule = f"be a whole number from 1 to {MAX_TOKENS}"
    if column.dtype == object or not pd.api.types.is_integer_dtype(column):
        _require(
            column,
            name,
            lambda v: isinstance(v, int | np.integer) and not isinstance(v, bool),
            rule,
        )
    _require(column, name, lambda v: 1 <= v <= MAX_TOKENS, rule)
    return column.astype(np.int64)


def _require(column: pd.Series, name: str, holds: Any, rule: str) -> None:
    for position, value in enumerate(column):
        if not holds(value):
            raise InputError(f"row {position}: {name} must {rule}, got {shown(value)}")
