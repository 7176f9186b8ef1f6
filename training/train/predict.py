"""Add predicted lengths to a JSONL file, row by row, in order, in bounded memory."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from itertools import islice
from typing import IO, TYPE_CHECKING, Any

from lengthwise.data.errors import InputError, shown
from lengthwise.data.files import whole_file
from lengthwise.data.lines import parse_object, read_json_lines
from lengthwise.data.sources.formats import ends_with_answer
from lengthwise.predictor.features.request_text import text_of_request
from lengthwise.training.console import Steps

if TYPE_CHECKING:
    from lengthwise.predictor.model import LengthPredictor

BATCH_ROWS = 512
STANDARD_STREAM = "-"

Row = dict[str, Any]


def predict_file(predictor: LengthPredictor, source: str, target: str, *, steps: Steps) -> int:
    """Write each row of ``source`` to ``target`` with its prediction; return the number of rows.

    A row is a ``prompt``, or ``messages`` as a server is sent them; an answer at their end is not
    read. Adds ``predicted_tokens`` (median) and ``quantiles``, an object from level to tokens.
    ``-`` is stdin or stdout; a packed source is unpacked. The target file appears only when
    every row was good. Raises InputError with the line number for a row that is no object, has
    no text, or holds a ``slo_class`` or ``prompt_tokens`` of the wrong kind.
    """
    rows = _checked_rows(source)
    written = 0
    steps.step("predict")
    with _writer(target) as out:
        while batch := list(islice(rows, BATCH_ROWS)):
            for row in _predicted(predictor, batch):
                out.write(json.dumps(row) + "\n")
            written += len(batch)
            steps.advance(len(batch))
    return written


def _checked_rows(source: str) -> Iterator[tuple[str, Row]]:
    """The text that is predicted on, and its row."""
    for number, row in _stdin() if source == STANDARD_STREAM else read_json_lines(source):
        where = f"{source}:{number}"
        text = _text_of(row)
        if text is None or not text.strip():
            name = "messages" if "messages" in row else "prompt"
            raise InputError(f"{where}: {name!r} must hold text, got {shown(row.get(name))}")
        slo_class = row.get("slo_class")
        if slo_class is not None and not isinstance(slo_class, str):
            raise InputError(f"{where}: 'slo_class' must be text, got {shown(slo_class)}")
        tokens = row.get("prompt_tokens")
        if tokens is not None and (type(tokens) is not int or tokens < 1):
            raise InputError(
                f"{where}: 'prompt_tokens' must be a whole number from 1, got {shown(tokens)}"
            )
        yield text, row


def _text_of(row: Row) -> str | None:
    messages = row.get("messages")
    if isinstance(messages, list) and len(messages) > 1 and ends_with_answer(messages):
        row = row | {"messages": messages[:-1]}
    return text_of_request(row)


def _stdin() -> Iterator[tuple[int, Row]]:
    for number, line in enumerate(sys.stdin, 1):
        if line.strip():
            text = line.removeprefix("\ufeff") if number == 1 else line
            yield number, parse_object(text, f"{STANDARD_STREAM}:{number}")


def _predicted(predictor: LengthPredictor, batch: list[tuple[str, Row]]) -> Iterable[Row]:
    texts, rows = zip(*batch, strict=True)
    lengths = predictor.predict(
        texts,
        slo_class=[row.get("slo_class") for row in rows],
        prompt_tokens=[row.get("prompt_tokens") for row in rows],
    )
    names = [str(float(level)) for level in lengths.levels]
    for row, median, quantiles in zip(rows, lengths.median(), lengths.quantiles, strict=True):
        tokens = (round(float(value), 2) for value in quantiles)
        yield row | {
            "predicted_tokens": round(float(median), 2),
            "quantiles": dict(zip(names, tokens, strict=True)),
        }


@contextmanager
def _writer(target: str) -> Iterator[IO[str]]:
    if target == STANDARD_STREAM:
        yield sys.stdout
        return
    with whole_file(target) as file:
        yield file
