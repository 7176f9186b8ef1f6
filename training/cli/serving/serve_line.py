"""The command line of ``lengthwise serve``: our options, and vLLM's as they are."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

from typer.core import TyperCommand

from lengthwise.data.errors import InputError

DEFAULT_PORT = 8000  # vLLM's own


class ServeCommand(TyperCommand):
    """Keeps to its own options; every other word is vLLM's and stays as it is in ``ctx.args``.

    click would take vLLM's ``-dph`` for ``-d -p -h`` and answer with help.
    """

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Parse our part of the line."""
        arity = {"-h": 0, "--help": 0}
        for parameter in self.get_params(ctx):
            if parameter.param_type_name == "option":
                flag = getattr(parameter, "is_flag", False)
                names = [*parameter.opts, *parameter.secondary_opts]
                arity |= dict.fromkeys(names, 0 if flag else 1)
        ours, theirs = split_arguments(args, arity)
        super().parse_args(ctx, ours)
        ctx.args = theirs
        return theirs


def split_arguments(args: Sequence[str], arity: Mapping[str, int]) -> tuple[list[str], list[str]]:
    """Our words of a command line, and vLLM's, each in their order.

    Ours are the options of ``arity`` (option to the number of its values) and the first word that
    is no option, the model. InputError when an option of vLLM's comes before that.
    """
    ours: list[str] = []
    theirs: list[str] = []
    has_model = False
    words = iter(args)
    for word in words:
        name, equals, _ = word.partition("=")
        if name in arity:
            ours.append(word)
            values = 0 if equals else arity[name]
            ours += itertools.islice(words, values)
        elif has_model:
            theirs.append(word)
        elif word.startswith("-") and word != "--":
            theirs.append(word)
            break
        elif word != "--":
            ours.append(word)
            has_model = True
    if not has_model and theirs and not {"-h", "--help"} & {*ours, *words}:
        raise InputError(f"MODEL comes before vLLM's options, got {theirs[0]!r}")
    return ours, theirs
