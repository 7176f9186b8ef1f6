"""Conversations in ShareGPT form, or as OpenAI messages: one row per assistant turn.

`[{"id": .., "conversations": [{"from": "human", "value": ..}, {"from": "gpt", "value": ..}]}]`,
as in ShareGPT_Vicuna_unfiltered and Python-Code-23k-ShareGPT, or lines of such objects;
`messages`/`role`/`content` are read alike. The prompt is the history before the turn, rendered
as the server renders a chat request (predictor/features/request_text.py): one user message as it
stands, more as `<|role|>` lines.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from lengthwise.data.errors import InputError, shown
from lengthwise.data.lines import open_text, read_json_lines
from lengthwise.data.table import prompt_group

_CHUNK = 1 << 20
# an id stem shared by more rows is a set's prefix, not one conversation in parts
_MOST_PARTS = 100
# "continue" or "hi" opens unrelated conversations
_TELLING_CHARACTERS = 40
_ROLES = {
    "human": "user",
    "user": "user",
    "system": "system",
    "gpt": "assistant",
    "assistant": "assistant",
    "chatgpt": "assistant",
    "bing": "assistant",
    "bard": "assistant",
    "model": "assistant",
    "tool": "tool",
    "function": "tool",
    "function_call": "assistant",
    "observation": "tool",
}


class Turn(NamedTuple):
    """An assistant turn: the history as text, the answer, and its conversation's group."""

    prompt: str
    response: str
    group: str
    row: dict[str, Any]


def read_conversations(path: Path) -> tuple[list[Turn], int]:
    """All assistant turns of a .json array or .jsonl file, and the number skipped as empty.

    A turn is skipped when it is blank or nothing stands before it, as happens in scraped sets.
    Conversations that begin alike or are parts of one (`id_0`, `id_1`) share a group.
    Raises InputError with file and item for anything of another form.
    """
    return turns_of(conversation_rows(path))


def turns_of(rows: Iterable[tuple[str, dict[str, Any]]]) -> tuple[list[Turn], int]:
    """As `read_conversations`, from (place for messages, object) pairs."""
    parsed = [(where, row, _messages(row, where)) for where, row in rows]
    groups = _groups([(row, messages) for _, row, messages in parsed])
    turns: list[Turn] = []
    skipped = 0
    for (_, row, messages), group in zip(parsed, groups, strict=True):
        for position, (role, text) in enumerate(messages):
            if role != "assistant":
                continue
            prompt = rendered(messages[:position])
            if not text.strip() or not prompt.strip():
                skipped += 1
                continue
            turns.append(Turn(prompt, text, group, row))
    return turns, skipped


def is_conversation(row: dict[str, Any]) -> bool:
    """Whether an object is a conversation rather than a prompt with an answer."""
    return isinstance(row.get("conversations", row.get("messages")), list)


def rendered(messages: list[tuple[str, str]]) -> str:
    """(role, text) pairs as one prompt text."""
    if len(messages) == 1 and messages[0][0] == "user":
        return messages[0][1]
    return "\n".join(f"<|{role}|>\n{text}" for role, text in messages)


def conversation_rows(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """(place, object) of a JSON array of objects, or of JSON lines, without loading it whole."""
    if ".jsonl" in path.name:
        for number, row in read_json_lines(path):
            yield f"{path}:{number}", row
        return
    decoder = json.JSONDecoder()
    item = 0
    with open_text(path) as file:
        try:
            text = file.read(_CHUNK).lstrip()
            if not text.startswith("["):
                raise InputError(f"{path}: must be a JSON array, begins with {shown(text[:20])}")
            text, chunk = text[1:], _CHUNK
            while True:
                text = text.lstrip(" \t\r\n,")
                if text.startswith("]"):
                    return
                try:
                    row, end = decoder.raw_decode(text)
                except json.JSONDecodeError as error:
                    more = file.read(chunk)
                    if not more:
                        raise InputError(f"{path}: item {item}: not JSON ({error.msg})") from error
                    # doubling keeps the retries on one huge item linear
                    text, chunk = text + more, 2 * chunk
                    continue
                if not isinstance(row, dict):
                    raise InputError(f"{path}: item {item}: must be an object, got {shown(row)}")
                yield f"{path}: item {item}", row
                text, chunk, item = text[end:], _CHUNK, item + 1
        except (OSError, EOFError, UnicodeDecodeError) as error:
            raise InputError(f"{path}: item {item}: cannot be read: {error}") from error


def _messages(row: dict[str, Any], where: str) -> list[tuple[str, str]]:
    listed = row.get("conversations", row.get("messages"))
    if not isinstance(listed, list):
        raise InputError(
            f"{where}: needs a list 'conversations' or 'messages', got {shown(listed)}"
        )
    messages = []
    for message in listed:
        if not isinstance(message, dict):
            raise InputError(f"{where}: a message must be an object, got {shown(message)}")
        role = message.get("from", message.get("role"))
        text = message.get("value", message.get("content"))
        if not isinstance(role, str) or role.lower() not in _ROLES:
            raise InputError(
                f"{where}: 'from' must be one of {', '.join(_ROLES)}, got {shown(role)}"
            )
        if not isinstance(text, str):
            raise InputError(f"{where}: 'value' must be text, got {shown(text)}")
        messages.append((_ROLES[role.lower()], text))
    return messages


def _groups(rows: list[tuple[dict[str, Any], list[tuple[str, str]]]]) -> list[str]:
    """A group per conversation, joined over a shared id stem or a shared first message."""
    parent: dict[str, str] = {}

    def root(key: str) -> str:
        parent.setdefault(key, key)
        while parent[key] != key:
            parent[key] = parent[parent[key]]
            key = parent[key]
        return key

    stems = [_stem(row, position) for position, (row, _) in enumerate(rows)]
    sizes = Counter(stems)
    for position, (_, messages) in enumerate(rows):
        opening = next((text for role, text in messages if role == "user"), "")
        here = root(f"row {position}")
        if sizes[stems[position]] <= _MOST_PARTS:
            parent[here] = here = root(f"stem {stems[position]}")
        if len(opening) >= _TELLING_CHARACTERS:
            parent[here] = root(f"text {prompt_group(opening)}")
    return [prompt_group(root(f"row {position}")) for position in range(len(rows))]


def _stem(row: dict[str, Any], position: int) -> str:
    name = row.get("id")
    return f"row {position}" if name is None else re.sub(r"_\d+\Z", "", str(name))
