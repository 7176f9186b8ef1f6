"""The one normalising step that every row goes through before anything is asked of it.

Null is absent, text is valid UTF-8, names of members have no case and no space around them. What a
row still lacks after it, it lacks; what is wrong with it then, is wrong.
"""

from __future__ import annotations

from typing import Any

from lengthwise.data.chat import valid_text
from lengthwise.data.errors import InputError

_MOST_DEPTH = 60

Row = dict[str, Any]


def normal_row(row: Row) -> Row:
    """The row in normal form; InputError where it is nested deeper than any conversation."""
    members: Row = {}
    for name, value in row.items():
        kept = _normal(value, _MOST_DEPTH)
        if kept is not None:
            members.setdefault(valid_text(str(name)).strip().lower(), kept)
    # the viewer of the Hugging Face hub hands rows out in an envelope
    inner = members.get("row")
    return normal_row(inner) if isinstance(inner, dict) and "row_idx" in members else members


def _normal(value: Any, depth: int) -> Any:
    if isinstance(value, str):
        return valid_text(value)
    if value is None or isinstance(value, bool | int):
        return value
    if isinstance(value, float):
        return value if value == value else None
    if depth == 0:
        raise InputError(f"nested deeper than {_MOST_DEPTH}")
    if isinstance(value, dict):
        members = ((str(key), _normal(item, depth - 1)) for key, item in value.items())
        return {valid_text(key): item for key, item in members if item is not None}
    if isinstance(value, list | tuple):
        items = (_normal(item, depth - 1) for item in value)
        return [item for item in items if item is not None]
    if isinstance(value, bytes):  # a column of text that Parquet was not told is text
        try:
            return value.decode("utf-8")
        except UnicodeDecodeError:
            return value
    if hasattr(value, "tolist"):  # an array or scalar of numpy's
        return _normal(value.tolist(), depth - 1)
    return value
