"""The packs: real prompts with real answers of one model family, `packs/NAME.jsonl.gz`."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, NamedTuple

from lengthwise.data.chat import valid_text
from lengthwise.data.errors import InputError, shown
from lengthwise.data.packed import unpacked_name
from lengthwise.data.skipped import Skipped
from lengthwise.data.slo import check_class_name
from lengthwise.data.sources.containers import rows_of
from lengthwise.data.table import COLUMNS, PromptTable, file_sha256, make_table, note_reading
from lengthwise.data.workload import check_tokens

PACK_TOKENIZER = "tekken"
_ANSWER_GIVEN = re.compile(r"answer is:?\s*\(?[A-J]\)?|\n\n\Z")
_JSON_CLOSED = re.compile(r"(\}|```)\s*\Z")
_SENTENCE_CLOSED = re.compile(r"[.!?)\"'`*:}]\s*\Z")


class Cap(NamedTuple):
    """How answers of one (pack, source) were cut: a row is censored when its count has reached
    `floor_tokens` and its text lacks the ending that the source's finished answers have.

    The floor lies below the generation cap because the packs count with Tekken, the cap was
    counted by the model's own tokenizer: answers cut at 2,048 lie from 1,600 to 5,900 here.
    Checked on the packs: near the caps 0-5 % of the rows carry the ending, far below them 98-100 %.
    """

    cap_tokens: int
    floor_tokens: int
    finished: re.Pattern[str]


CAPS = {
    ("mixtral_8x7b", "mmlu_pro"): Cap(256, 200, _ANSWER_GIVEN),
    ("llama31_8b", "mmlu_pro"): Cap(2048, 1500, _ANSWER_GIVEN),
    ("llama31_8b", "zeroeval"): Cap(4096, 2500, _JSON_CLOSED),
    ("llama3_8b", "zeroeval"): Cap(4096, 2500, _JSON_CLOSED),
    ("mixtral_8x7b", "zeroeval"): Cap(4096, 2500, _JSON_CLOSED),
    ("gpt35", "zeroeval"): Cap(4096, 2500, _JSON_CLOSED),
    ("gpt4", "zeroeval"): Cap(4096, 2500, _JSON_CLOSED),
    ("llama31_8b", "alpaca_eval"): Cap(4096, 3000, _SENTENCE_CLOSED),
    ("gpt35", "arena_hard"): Cap(4096, 3500, _SENTENCE_CLOSED),
}
"""Two more caps are known to exist but cannot be told from the rows (alpaca_eval and part of
arena_hard, 300-2,048 tokens by model); those rows are taken as whole."""

_FIELDS = [name for name in COLUMNS if name != "censored"]
_TYPES = {"prompt_tokens": int, "output_tokens": int}


def is_pack_row(row: dict[str, Any]) -> bool:
    """Whether a row has all that a pack's rows have."""
    return set(_FIELDS) <= set(row)


def read_pack(path: Path) -> PromptTable:
    """A pack file as a table, cut rows marked `censored`; rows that break a rule are counted.

    InputError names file and line where none is left or most are broken.
    """
    pack = unpacked_name(path.name).removesuffix(".jsonl")
    columns: dict[str, list[Any]] = {name: [] for name in COLUMNS}
    skipped = Skipped()
    for place, row in rows_of(path):
        skipped.read += 1
        try:
            values = _checked(row)
        except InputError as error:
            skipped.add(place, error)
            continue
        for name, value in zip(_FIELDS, values, strict=True):
            columns[name].append(value)
        known = dict(zip(_FIELDS, values, strict=True))
        columns["censored"].append(
            is_censored(pack, known["source"], known["output_tokens"], known["response"])
        )
    skipped.check(str(path), len(columns["id"]))
    try:
        table = make_table(
            columns, source_label=pack, data_sha256=file_sha256(path), tokenizer=PACK_TOKENIZER
        )
    except InputError as error:
        raise InputError(f"{path}: {error}") from error
    note_reading(table, skipped)
    return table


def _checked(row: dict[str, Any] | InputError) -> list[Any]:
    """The values of a pack's row, in the order of its fields."""
    if isinstance(row, InputError):
        raise row
    values = []
    for name in _FIELDS:
        value = row.get(name)
        if type(value) is not _TYPES.get(name, str) or value == "":
            kind = "a whole number" if name in _TYPES else "non-empty text"
            raise InputError(f"{name} must be {kind}, got {shown(value)}")
        if name in _TYPES:
            value = check_tokens(value, name)
        elif name == "slo_class":
            value = check_class_name(value)
        values.append(valid_text(value) if isinstance(value, str) else value)
    return values


def is_censored(pack: str, source: str, output_tokens: int, response: str) -> bool:
    """Whether an answer was cut at its generation cap, by the rule of `CAPS`."""
    cap = CAPS.get((pack, source))
    if cap is None or output_tokens < cap.floor_tokens:
        return False
    return cap.finished.search(response) is None
