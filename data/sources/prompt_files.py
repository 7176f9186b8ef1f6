"""Files of prompts and answers -> prompt table: JSONL, JSON, Parquet, ShareGPT, packs.

A row needs a prompt and either its answer or the answer's `output_tokens`; column names of the
usual instruction sets are understood. Counts in the file are taken as they are, missing ones are
made with the tokenizer. A row with `finish_reason` "length", as servers report it, is censored.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import chain, islice
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from lengthwise.data.errors import InputError, shown
from lengthwise.data.slo import DEFAULT_CLASS, check_class_name
from lengthwise.data.sources.conversations import Turn, conversation_rows, is_conversation, turns_of
from lengthwise.data.sources.packs import read_pack
from lengthwise.data.table import (
    COLUMNS,
    PromptTable,
    file_sha256,
    make_table,
    prompt_group,
    prompt_id,
)
from lengthwise.data.tokens import DEFAULT_TOKENIZER, count_response_tokens, count_tokens
from lengthwise.data.workload import check_tokens

ALIASES = {
    "prompt": ("prompt", "instruction", "question", "query", "input", "text"),
    "context": ("input", "context"),
    "response": ("response", "output", "completion", "answer", "target"),
    "prompt_tokens": ("prompt_tokens", "input_tokens", "num_prompt_tokens", "prompt_len"),
    "output_tokens": (
        "output_tokens",
        "completion_tokens",
        "response_tokens",
        "num_output_tokens",
        "output_len",
    ),
    "slo_class": ("slo_class", "class"),
    "task": ("task", "category"),
    "model": ("model",),
    "source": ("source", "dataset"),
    "license": ("license", "licence"),
    "group": ("group",),
    "censored": ("censored",),
}
SUFFIXES = (".jsonl", ".jsonl.gz", ".json", ".json.gz", ".parquet")
_WITH_CONTEXT = ("instruction", "question")
_CLASS_OF_READER = {"sharegpt": "chat", "sharegpt_code": "code"}

Row = dict[str, Any]


def read_file(
    path: str | Path,
    *,
    reader: str | None = None,
    source_label: str | None = None,
    license_name: str = "none-stated",
    limit: int | None = None,
    tokenizer: str = DEFAULT_TOKENIZER,
) -> PromptTable:
    """The prompt table of a file; its form is told from the suffix and the first row.

    `reader`: a reader's name from the catalogue, which sets the class of ShareGPT rows.
    `limit`: rows drawn evenly before counting tokens. `license_name`: for rows that state none.
    Raises InputError with file, line, value and rule.
    """
    file = Path(path)
    if not file.name.endswith(SUFFIXES):
        raise InputError(f"{file}: must end in {', '.join(SUFFIXES)}")
    rows = _parquet_rows(file) if file.suffix == ".parquet" else conversation_rows(file)
    first = list(islice(rows, 1))
    if not first:
        raise InputError(f"{file}: needs at least one row, got none")
    rows = chain(first, rows)
    label = source_label or file.name
    if is_conversation(first[0][1]):
        slo_class = _CLASS_OF_READER.get(reader or "", "chat")
        return _conversations(rows, file, label, license_name, slo_class, limit, tokenizer)
    if ".jsonl" in file.suffixes and set(COLUMNS) - {"censored"} <= set(first[0][1]):
        return read_pack(file)
    return _flat(rows, file, label, license_name, limit, tokenizer)


def _flat(
    rows: Iterable[tuple[str, Row]],
    file: Path,
    label: str,
    license_name: str,
    limit: int | None,
    tokenizer: str,
) -> PromptTable:
    parsed = _drawn([_parsed(where, row, label, license_name) for where, row in rows], limit)
    columns = {name: [row[name] for row in parsed] for name in parsed[0]}
    counted = False
    for name, texts, count in (
        ("prompt_tokens", columns["prompt"], count_tokens),
        ("output_tokens", columns["response"], count_response_tokens),
    ):
        missing = [i for i, tokens in enumerate(columns[name]) if tokens is None]
        counts = count([texts[i] for i in missing], tokenizer, progress=True) if missing else ()
        for i, tokens in zip(missing, counts, strict=True):
            columns[name][i] = int(tokens)
        counted |= bool(missing)
    given = any(row["given"] for row in parsed)
    who = tokenizer if counted and not given else f"file+{tokenizer}" if counted else "file"
    del columns["given"]
    return make_table(columns, source_label=label, data_sha256=file_sha256(file), tokenizer=who)


def _conversations(
    rows: Iterable[tuple[str, Row]],
    file: Path,
    label: str,
    license_name: str,
    slo_class: str,
    limit: int | None,
    tokenizer: str,
) -> PromptTable:
    turns, skipped = turns_of(rows)
    if not turns:
        raise InputError(f"{file}: no assistant turn with text before it ({skipped} blank)")
    kept: list[Turn] = _drawn(turns, limit)
    prompts = [turn.prompt for turn in kept]
    responses = [turn.response for turn in kept]
    table = make_table(
        {
            "id": [prompt_id(prompt) for prompt in prompts],
            "group": [turn.group for turn in kept],
            "source": [label] * len(kept),
            "task": ["conversation"] * len(kept),
            "slo_class": [slo_class] * len(kept),
            "model": [str(turn.row.get("model") or "unknown") for turn in kept],
            "prompt_tokens": count_tokens(prompts, tokenizer, progress=True).tolist(),
            "output_tokens": count_response_tokens(responses, tokenizer, progress=True).tolist(),
            "prompt": prompts,
            "response": responses,
            "license": [license_name] * len(kept),
        },
        source_label=label,
        data_sha256=file_sha256(file),
        tokenizer=tokenizer,
    )
    table.attrs["skipped_turns"] = skipped
    return table


def _parsed(where: str, row: Row, label: str, license_name: str) -> Row:
    """One row of the table, `prompt_tokens` and `output_tokens` None where not in the file."""
    try:
        prompt, response = _prompt(row), _find(row, "response")
        if response is not None and not isinstance(response, str):
            raise InputError(f"response must be text, got {shown(response)}")
        counts = {
            name: None if (value := _find(row, name)) is None else check_tokens(_whole(value), name)
            for name in ("prompt_tokens", "output_tokens")
        }
        if response is None and counts["output_tokens"] is None:
            raise InputError("needs a response or its output_tokens")
        censored = row.get("censored", row.get("finish_reason") == "length")
        if not isinstance(censored, bool):
            raise InputError(f"censored must be true or false, got {shown(censored)}")
        slo_class = check_class_name(_find(row, "slo_class") or DEFAULT_CLASS)
        texts = {
            name: _text(row, name, default)
            for name, default in (
                ("group", prompt_group(prompt)),
                ("source", label),
                ("task", slo_class),
                ("model", "unknown"),
                ("license", license_name),
            )
        }
    except InputError as error:
        raise InputError(f"{where}: {error}") from error
    return {
        "id": prompt_id(prompt),
        "slo_class": slo_class,
        "prompt": prompt,
        "response": response,
        "censored": censored,
        "given": any(value is not None for value in counts.values()),
        **texts,
        **counts,
    }


def _prompt(row: Row) -> str:
    name = next((alias for alias in ALIASES["prompt"] if row.get(alias) is not None), None)
    if name is None:
        raise InputError(f"needs a prompt ({', '.join(ALIASES['prompt'])}), has {shown(list(row))}")
    text = row[name]
    if not isinstance(text, str) or not text.strip():
        raise InputError(f"{name} must be text that is not blank, got {shown(text)}")
    # Alpaca's and Dolly's second field; beside another name these words mean something else
    contexts = [row.get(alias) for alias in ALIASES["context"] if name in _WITH_CONTEXT]
    context = next((c for c in contexts if isinstance(c, str) and c.strip()), None)
    return f"{text}\n\n{context}" if context else text


def _find(row: Row, name: str) -> Any:
    return next((row[alias] for alias in ALIASES[name] if row.get(alias) is not None), None)


def _text(row: Row, name: str, default: str) -> str:
    value = _find(row, name)
    if value is None or value == "":
        return default
    if not isinstance(value, str):
        raise InputError(f"{name} must be text, got {shown(value)}")
    return value


def _whole(value: Any) -> Any:
    """3.0 as 3: Parquet and pandas turn a column with gaps into floats."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _drawn(rows: list[Any], limit: int | None) -> list[Any]:
    if limit is None or limit >= len(rows):
        return rows
    kept = np.random.default_rng(0).choice(len(rows), limit, replace=False)
    return [rows[i] for i in np.sort(kept)]


def _parquet_rows(file: Path) -> Iterator[tuple[str, Row]]:
    try:
        frame = pd.read_parquet(file)
    except (OSError, ValueError) as error:  # pyarrow's errors derive from these
        raise InputError(
            f"{file}: not a readable Parquet file: {shown(str(error), 120)}"
        ) from error
    for number, row in enumerate(frame.to_dict("records")):
        yield f"{file}: row {number}", {str(k): _plain(v) for k, v in row.items()}


def _plain(value: Any) -> Any:
    """numpy's and pandas' cells as Python's: arrays as lists, NaN as None."""
    if hasattr(value, "tolist"):
        value = value.tolist()
    if isinstance(value, list):
        return [_plain(item) for item in value]
    return None if value is None or value is pd.NA or value != value else value
