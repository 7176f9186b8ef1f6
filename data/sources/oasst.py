"""OASST in its flat form: one message a row, which names its parent."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import NamedTuple

from lengthwise.data.chat import role_of
from lengthwise.data.errors import InputError, shown
from lengthwise.data.skipped import NoAnswerError
from lengthwise.data.sources.examples import NO_TURN, Example, Row, turn_examples

_MOST_TURNS = 200
_MEMBERS = ("message_id", "text", "role")


class _Message(NamedTuple):
    parent: str | None
    role: str
    text: str
    tree: str
    model: str | None


def is_message(row: Row) -> bool:
    """Whether a row in normal form is one message of a tree."""
    return all(name in row for name in _MEMBERS) and "prompt" not in row


def flat_examples(
    rows: Iterable[tuple[str, Row | InputError]],
) -> Iterator[tuple[str, Example | InputError | None]]:
    """(place, example) of every assistant message, with the path to it as its prompt.

    All messages are held at once: a parent may stand anywhere. A row that is no message, and an
    answer whose question is not in the file, come as the error that says so, None as a blank turn.
    """
    messages: dict[str, _Message] = {}
    places: dict[str, str] = {}
    for place, row in rows:
        if isinstance(row, InputError):
            yield place, row
            continue
        role, text, name = (row.get(key) for key in ("role", "text", "message_id"))
        if not (isinstance(text, str) and isinstance(name, str) and role_of(role)):
            yield place, InputError(f"a message needs message_id, role and text, got {shown(row)}")
            continue
        tree, model = row.get("message_tree_id", name), row.get("model_name")
        messages[name] = _Message(
            row.get("parent_id"), str(role), text, str(tree), model and str(model)
        )
        if role_of(role) == "assistant":
            places[name] = place
    for name, place in places.items():
        for example in _answered(name, messages, place):
            yield place, example


def _answered(
    name: str, messages: dict[str, _Message], place: str
) -> Iterator[Example | InputError | None]:
    path = [messages[name]]
    while (parent := path[-1].parent) is not None:
        if parent not in messages or len(path) > _MOST_TURNS:
            yield NoAnswerError(
                f"the message before it is not in the file, got parent_id {parent!r}"
            )
            return
        path.append(messages[parent])
    talk = [{"role": message.role, "content": message.text} for message in reversed(path)]
    known: Row = {"id": path[0].tree, "model": path[0].model or "people"}
    found = list(turn_examples(talk, known, place=place))
    yield found[-1] if found else NoAnswerError(NO_TURN)
