"""Files of prompts and answers -> prompt table, whatever form they have.

A file is read once, row by row, in bounded memory: each row is normalised, read by the reader of
its form, and a row that breaks a rule is left out and counted. Counts in the file are taken as
they are, missing ones are made with the tokenizer. A row with `finish_reason` "length", as servers
report it, is censored.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain, islice
from pathlib import Path
from typing import Any

from lengthwise.data.errors import InputError
from lengthwise.data.lines import Watch
from lengthwise.data.skipped import NoAnswerError, Skipped
from lengthwise.data.slo import DEFAULT_CLASS
from lengthwise.data.sources.containers import rows_of
from lengthwise.data.sources.conversations import Stems, groups_of
from lengthwise.data.sources.examples import NO_TURN, Example, Row
from lengthwise.data.sources.formats import examples_of
from lengthwise.data.sources.normal import normal_row
from lengthwise.data.sources.oasst import flat_examples, is_message
from lengthwise.data.sources.packs import is_pack_row, read_pack
from lengthwise.data.sources.rows.json_arrays import Placed
from lengthwise.data.sources.sample import Sample
from lengthwise.data.table import (
    PromptTable,
    file_sha256,
    make_table,
    note_reading,
    prompt_id,
)
from lengthwise.data.tokens import DEFAULT_TOKENIZER, count_response_tokens, count_tokens

_CLASS_OF_READER = {"sharegpt": "chat", "sharegpt_code": "code"}


def read_file(
    path: str | Path,
    *,
    reader: str | None = None,
    source_label: str | None = None,
    license_name: str = "none-stated",
    limit: int | None = None,
    tokenizer: str = DEFAULT_TOKENIZER,
    watch: Watch | None = None,
) -> PromptTable:
    """The prompt table of a file; its form is told from its content, row by row.

    `reader`: a reader's name from the catalogue, which sets the class of conversations.
    `limit`: rows drawn evenly before counting tokens, by default as many as one training holds
    (`sample.MOST_ROWS`). `license_name`: for rows that state none. `watch` is called with the
    bytes read. What was left out stands in `attrs` (`table.note_reading`). Raises InputError with
    file, line, value and rule where nothing is left or most rows are broken.
    """
    file = Path(path)
    rows = rows_of(file, watch)
    first = list(islice(rows, 1))
    if first and not isinstance(first[0][1], InputError) and is_pack_row(first[0][1]):
        return read_pack(file)
    sample, skipped, stems = Sample(limit), Skipped(), Stems()
    blank = 0
    for example in _examples(chain(first, rows), skipped, stems):
        if example is None:
            blank += 1
        else:
            sample.add(example)
    skipped.check(str(file), sample.seen)
    table = _table(
        sample.examples(),
        stems,
        label=source_label or file.name,
        license_name=license_name,
        chat_class=_CLASS_OF_READER.get(reader or "", "chat"),
        tokenizer=tokenizer,
        digest=file_sha256(file),
    )
    note_reading(table, skipped, blank_turns=blank, left_out=sample.left_out)
    return table


def _examples(rows: Iterator[Placed], skipped: Skipped, stems: Stems) -> Iterator[Example | None]:
    """The examples of the rows in turn, None for a blank turn; rows that give none are counted."""
    normal = _normal(rows)
    first = next(normal, None)
    if first is None:
        return
    normal = chain([first], normal)
    if not isinstance(first[1], InputError) and is_message(first[1]):
        for place, found in flat_examples(normal):
            skipped.read += 1
            if isinstance(found, InputError):
                skipped.add(place, found)
            else:
                yield found
        return
    for place, row in normal:
        skipped.read += 1
        try:
            if isinstance(row, InputError):
                raise row
            examples, blank = examples_of(row, place)
            if not examples:
                skipped.add(place, NoAnswerError(NO_TURN))
            elif examples[0].talk is not None and examples[0].stem is not None:
                stems.add(examples[0].stem)
            yield from [None] * blank
            yield from examples
        except InputError as error:
            skipped.add(place, error)


def _normal(rows: Iterator[Placed]) -> Iterator[tuple[str, Row | InputError]]:
    for place, row in rows:
        try:
            yield place, row if isinstance(row, InputError) else normal_row(row)
        except InputError as error:
            yield place, error


def _table(
    examples: list[Example],
    stems: Stems,
    *,
    label: str,
    license_name: str,
    chat_class: str,
    tokenizer: str,
    digest: str,
) -> PromptTable:
    classes = [e.slo_class or (DEFAULT_CLASS if e.talk is None else chat_class) for e in examples]
    columns: dict[str, list[Any]] = {
        "id": [prompt_id(e.prompt) for e in examples],
        "group": groups_of(examples, stems),
        "source": [e.source or label for e in examples],
        "task": [e.task or name for e, name in zip(examples, classes, strict=True)],
        "slo_class": classes,
        "model": [e.model or "unknown" for e in examples],
        "prompt_tokens": [e.prompt_tokens for e in examples],
        "output_tokens": [e.output_tokens for e in examples],
        "prompt": [e.prompt for e in examples],
        "response": [e.response for e in examples],
        "censored": [e.censored for e in examples],
        "license": [e.license or license_name for e in examples],
    }
    given = any(e.prompt_tokens or e.output_tokens for e in examples)
    counted = False
    for name, texts, count in (
        ("prompt_tokens", columns["prompt"], count_tokens),
        ("output_tokens", columns["response"], count_response_tokens),
    ):
        missing = [i for i, tokens in enumerate(columns[name]) if tokens is None]
        counts = count([texts[i] for i in missing], tokenizer, progress=True) if missing else ()
        for i, tokens in zip(missing, counts, strict=True):
            columns[name][i] = max(1, int(tokens))
        counted |= bool(missing)
    who = tokenizer if counted and not given else f"file+{tokenizer}" if counted else "file"
    return make_table(columns, source_label=label, data_sha256=digest, tokenizer=who)
