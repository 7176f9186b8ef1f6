"""The one error that bad input raises, whatever its source."""

from __future__ import annotations


class InputError(ValueError):
    """Input that breaks a rule; the message is one line: place, value, rule."""


def shown(value: object, limit: int = 60) -> str:
    """`repr` of a value on one line, cut to `limit` characters, for error messages."""
    try:
        text = repr(value)
    except (ValueError, RecursionError):  # integers beyond Python's digit limit, deep nests
        text = f"<{type(value).__name__} too large to print>"
    return text if len(text) <= limit else text[: limit - 3] + "..."
