"""What a command line for vLLM says, as far as we must know it before vLLM reads it."""

from __future__ import annotations

from collections.abc import Sequence


def given_options(args: Sequence[str]) -> dict[str, str | None]:
    """Options by name, dashes for underscores, with the last value of each; None without one.

    A short option stands as it was given (``-tp``), ``--name.part`` under ``--name``.
    """
    found: dict[str, str | None] = {}
    for place, word in enumerate(args):
        if not word.startswith("-") or _is_number(word):
            continue
        name, equals, value = word.partition("=")
        if equals:
            found[_plain(name)] = value
        else:
            after = args[place + 1] if place + 1 < len(args) else "-"
            found[_plain(name)] = after if _is_value(after) else None
    return found


def without_given(defaults: Sequence[tuple[str, str | None]], args: Sequence[str]) -> list[str]:
    """Our defaults, flattened, less those that ``args`` set themselves."""
    named = given_options(args)
    kept = (pair for pair in defaults if pair[0] not in named)
    return [part for pair in kept for part in pair if part is not None]


def _plain(name: str) -> str:
    if not name.startswith("--"):
        return name
    return "--" + name[2:].partition(".")[0].replace("_", "-")


def _is_value(word: str) -> bool:
    return not word.startswith("-") or _is_number(word)


def _is_number(word: str) -> bool:
    try:
        float(word)
    except ValueError:
        return False
    return True
