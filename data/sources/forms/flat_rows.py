"""A prompt beside an answer, under any of their names: tables, Alpaca, Dolly, OpenOrca, others."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from lengthwise.data.chat import rendered
from lengthwise.data.errors import InputError, shown
from lengthwise.data.sources.examples import Example, Row, find, flat_example, text_of
from lengthwise.data.sources.forms.envelopes import tokens_of
from lengthwise.data.sources.names import ALIASES, WITH_CONTEXT

Found = Iterator[Example | None]

# members that hold several answers, or one in a list
_SEVERAL = (
    *("generations", "responses", "completions", "answers"),
    *("response", "output", "completion", "answer", "outputs"),
)


def flat_row(row: Row, _place: str) -> Found:
    """A prompt beside an answer, under any of their names."""
    answers = _several(row)
    if len(answers) > 1:  # what the row counts is not one of them
        row = {name: value for name, value in row.items() if name not in ALIASES["output_tokens"]}
    for answer in answers:
        yield from answered(row, answer)
    if not answers:
        counts = {k: v for k, v in tokens_of(row).items() if find(row, k) is None}
        yield from answered(row | counts, answer_of(row))


def _several(row: Row) -> list[str]:
    """Answers to one prompt that stand in a list, of which each is an example.

    What a model gave (`generations`) goes before what people hold for right beside it.
    """
    for name in _SEVERAL:
        answers = row.get(name)
        if not isinstance(answers, list) or any(map(_is_part, answers)):
            continue
        texts = [_text_in(answer) for answer in answers]
        said = [text for text in texts if text is not None]
        beside = name != "generations" and isinstance(find(row, "response"), str)
        if said and len(said) == len(texts) and not beside:
            return said
    return []


def _text_in(answer: Any) -> str | None:
    """The text of one of several answers."""
    if isinstance(answer, dict):
        answer = next((t for t in (find(answer, "response"), answer.get("text")) if t), None)
    return answer if isinstance(answer, str) else None


def _is_part(value: Any) -> bool:
    """Whether an item of a list is a content part or a message: the list is one answer then."""
    return isinstance(value, dict) and any(name in value for name in ("type", "content", "role"))


def answered(row: Row, answer: str | None) -> Found:
    """The example of a row's prompt, with its system prompt and history, and an answer."""
    prompt = _prompt(row)
    turns: list[tuple[str, str]] = []
    system = find(row, "system")
    if isinstance(system, str) and system.strip():
        turns.append(("system", system))
    for pair in row.get("history") or ():
        if isinstance(pair, list) and len(pair) == 2 and all(isinstance(t, str) for t in pair):
            turns += [("user", pair[0]), ("assistant", pair[1])]
    tools = row.get("tools")
    yield flat_example(rendered([*turns, ("user", prompt)], tools), answer, row)


def _prompt(row: Row) -> str:
    """The prompt under its first name that holds one; blank is absent."""
    there = [alias for alias in ALIASES["prompt"] if not _is_blank(row.get(alias))]
    if not there:
        blank = next((alias for alias in ALIASES["prompt"] if alias in row), None)
        if blank is not None:
            raise InputError(f"{blank} must be text that is not blank, got {shown(row[blank])}")
        names = ", ".join(ALIASES["prompt"][:6])
        raise InputError(f"needs a prompt ({names}, ...), has {shown(list(row))}")
    name = there[0]
    text = _as_text(row[name], name)
    # Alpaca's and Dolly's second field; beside another name these words mean something else
    contexts = [row.get(alias) for alias in ALIASES["context"] if name in WITH_CONTEXT]
    context = next((c for c in contexts if isinstance(c, str) and c.strip() and c != text), None)
    return f"{text}\n\n{context}" if context else text


def answer_of(row: Row) -> str | None:
    """The answer under its first name that holds one; None where there is none."""
    prompt = next((alias for alias in ALIASES["prompt"] if not _is_blank(row.get(alias))), None)
    names = [alias for alias in ALIASES["response"] if alias in row and alias != prompt]
    name = next((alias for alias in names if not _is_blank(row[alias])), None)
    if name is not None:
        thought = row.get("reasoning_content")
        said = [thought if isinstance(thought, str) else "", _as_text(row[name], name)]
        return "\n".join(part for part in said if part)
    return "" if names else None


def _as_text(value: Any, name: str) -> str:
    """Text, content parts, or one message as text; InputError for anything else."""
    if isinstance(value, str):
        return value
    if (
        isinstance(value, list)
        and value
        and all(isinstance(p, dict) and "text" in p for p in value)
    ):
        return text_of({"content": value})
    if isinstance(value, list) and len(value) == 1 and isinstance(value[0], dict):
        value = value[0]
    if isinstance(value, dict) and ("content" in value or isinstance(value.get("text"), str)):
        return text_of(value)
    raise InputError(f"{name} must be text, got {shown(value)}")


def _is_blank(value: Any) -> bool:
    return value is None or (isinstance(value, str) and not value.strip()) or value == []
