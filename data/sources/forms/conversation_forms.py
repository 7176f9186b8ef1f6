"""Conversations in the shapes that tools export, brought into one: a list of messages.

Also where a table's cell or a log's column holds them as JSON text, or as Python prints them.
"""

from __future__ import annotations

import ast
import json
import warnings
from typing import Any

from lengthwise.data.chat import role_of
from lengthwise.data.sources.names import CONVERSATIONS

Row = dict[str, Any]

_IN_TEXT = frozenset(
    (
        *CONVERSATIONS,
        *("request", "request_body", "body", "response", "response_body", "usage", "tools"),
        *("prompt", "input", "inputs", "output", "outputs", "completion", "chosen", "rejected"),
    )
)
_ROLE_KEYS = ("role", "from")
_CONTENT_KEYS = ("content", "value", "parts", "tool_calls")
_EXCHANGED = ("messages", "contents", "choices", "candidates", "generations")
# of texts that follow each other every second is an answer; MT-bench's `turns` are all questions
_ALTERNATE = frozenset(CONVERSATIONS) - {"turns"}


def with_messages(row: Row) -> Row:
    """The row with its conversation as a list of messages, and what is JSON in text taken out."""
    row = {name: _from_text(name, value) for name, value in row.items()}
    if isinstance(row.get("mapping"), dict):
        row["messages"] = _of_tree(row["mapping"], row.get("current_node"))
    for name in CONVERSATIONS:
        if name in row:
            row[name] = as_messages(name, row[name])
    return row


def _from_text(name: str, value: Any) -> Any:
    """What a text holds, where it is a conversation, a request or a response; else the text."""
    if name not in _IN_TEXT or not isinstance(value, str):
        return value
    text = value.strip()
    if not (text.startswith(("[", "{")) and text.endswith(("]", "}"))):
        return value
    found = _parsed(text)
    if name in CONVERSATIONS or name in ("usage", "tools"):
        return found if isinstance(found, list | dict) else value
    talk = found if isinstance(found, list) else [found]
    if talk and all(isinstance(item, dict) for item in talk):
        if all(_is_message(item) for item in talk):
            return found
        if _is_exchange(talk[0]):
            return found
    return value


def _parsed(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        pass
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # odd escapes are the text's own affair
            return ast.literal_eval(text)  # as Python, and so pandas, prints a cell
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        return None


def _is_message(item: Row) -> bool:
    named = any(role_of(item.get(key)) is not None for key in _ROLE_KEYS)
    return named and any(key in item for key in _CONTENT_KEYS)


def _is_exchange(item: Row) -> bool:
    """Whether an object is a request or a response, or holds one as its body."""
    if any(isinstance(item.get(key), list) for key in _EXCHANGED):
        return True
    bodies = (item.get(key) for key in ("body", "inputBodyJson", "outputBodyJson"))
    return any(isinstance(body, dict) and _is_exchange(body) for body in bodies)


def as_messages(name: str, value: Any) -> Any:
    """A list of messages, of whatever shape it was; what is none stays as it is."""
    if isinstance(value, dict):  # columns instead of rows
        columns = {key: part for key, part in value.items() if isinstance(part, list)}
        if columns and len({len(part) for part in columns.values()}) == 1:
            rows = zip(*columns.values(), strict=True)
            return [dict(zip(columns, row, strict=True)) for row in rows]
        return value
    if not isinstance(value, list):
        return value
    if len(value) == 1 and isinstance(value[0], list):
        value = value[0]
    if name in _ALTERNATE and len(value) > 1 and all(isinstance(text, str) for text in value):
        roles = ("user", "assistant")
        return [{"role": roles[i % 2], "content": text} for i, text in enumerate(value)]
    return [message for item in value for message in _messages_of(item)]


def _messages_of(item: Any) -> list[Any]:
    """One message; of a pair `{"human": .., "assistant": ..}` both."""
    if not isinstance(item, dict):
        return [item]
    if isinstance(inner := item.get("data"), dict) and "type" in item:  # LangChain's
        return [{**inner, "role": item["type"]}]
    if isinstance(inner := item.get("kwargs"), dict) and isinstance(item.get("id"), list):
        kind = str(item["id"][-1]).lower().removesuffix("chunk").removesuffix("message")
        return [{**inner, "role": kind}]
    if any(key in item for key in (*_ROLE_KEYS, "content", "value")):
        return [item]
    roles = [(role_of(key), text) for key, text in item.items() if isinstance(text, str)]
    said = [(role, text) for role, text in roles if role is not None]
    if {"user", "assistant"} <= {role for role, _ in said} and len(said) == len(roles):
        return [{"role": role, "content": text} for role, text in said]
    return [item]


def _of_tree(nodes: Row, last: Any) -> list[Row]:
    """The messages on the way to the last node, as ChatGPT's export keeps them."""
    if not (isinstance(last, str) and last in nodes):
        last = next((name for name, node in nodes.items() if not _member(node, "children")), None)
    path: list[Row] = []
    seen: set[str] = set()  # a node may be its own ancestor
    while isinstance(last, str) and last in nodes and last not in seen:
        seen.add(last)
        node = nodes[last]
        message = _member(node, "message")
        author = _member(_member(message, "author"), "role")
        content = _member(message, "content")
        if isinstance(author, str) and isinstance(content, dict):
            parts = content.get("parts") or content.get("text") or content.get("result")
            parts = parts if isinstance(parts, list) else [parts]
            text = "\n".join(part for part in parts if isinstance(part, str))
            path.append({"role": author, "content": text})
        last = _member(node, "parent")
    # what shows nothing (an empty system message) was not said
    return [message for message in reversed(path) if message["content"].strip()]


def _member(value: Any, name: str) -> Any:
    return value.get(name) if isinstance(value, dict) else None
