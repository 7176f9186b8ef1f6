"""Options that contradict one another, or of which one would do nothing: refused before anything
runs, in one line."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Protocol

from lengthwise.data.errors import InputError

MOST_SEED = 2**31 - 1
"""The largest seed: every library that draws takes it, with so many repeats behind it."""

NO_PREDICTOR = "none"
_OF_A_PREDICTOR = ("learned", "class")


class ArmLike(Protocol):
    """What of an arm says whether it needs a predictor."""

    @property
    def lengths(self) -> str:
        """Where its lengths come from."""
        ...

    @property
    def kind(self) -> str:
        """As written on the command line."""
        ...


def refuse(ctx: Any, names: Iterable[str], why: str) -> None:
    """InputError for the first of these options (by parameter name) that was given."""
    for name in names:
        if was_given(ctx, name):
            raise InputError(f"{as_given(ctx, name)}: {why}")


def refuse_empty(command: Any, words: Sequence[str]) -> None:
    """InputError for an empty word, which a shell leaves of a variable that is not set.

    Taken for a value it would be the current folder, or nothing. What a command hands on is the
    affair of whom it is handed to.
    """
    if words and (inner := getattr(command, "commands", {}).get(words[0])) is not None:
        refuse_empty(inner, words[1:])
        return
    own = {name for p in command.params if not getattr(p, "is_flag", False) for name in p.opts}
    hands_on = bool(command.context_settings.get("ignore_unknown_options"))
    for before, word in zip(("", *words), words, strict=False):
        if (word == "" and before in own) or (word.endswith("=") and word[:-1] in own):
            raise InputError(f"{before if word == '' else word[:-1]} needs a value, got ''")
        if word == "" and not hands_on:
            raise InputError(f"an argument must not be empty, got '' after {before or 'nothing'}")


def was_given(ctx: Any, name: str) -> bool:
    """Whether the option stands on the command line, whatever its value."""
    source = ctx.get_parameter_source(name)
    return source is not None and source.name == "COMMANDLINE"


def as_given(ctx: Any, name: str) -> str:
    """The option with its value, as somebody would write it."""
    parameter = next(p for p in ctx.command.params if p.name == name)
    value = ctx.params[name]
    if value is True or value is False:
        names = parameter.opts if value else parameter.secondary_opts or parameter.opts
        return str(names[0])
    return f"{parameter.opts[0]} {value}"


def check_predictor_of(arms: Iterable[ArmLike], predictor: str | None, option: str) -> str | None:
    """The predictor, None where it is "none"; InputError for an arm that then has no lengths."""
    if predictor != NO_PREDICTOR:
        return predictor
    for arm in arms:
        if arm.lengths in _OF_A_PREDICTOR:
            raise InputError(
                f"{arm.kind} takes its lengths from a predictor, got {option} {NO_PREDICTOR}: "
                "name one, or take lengths oracle or none"
            )
    return None
