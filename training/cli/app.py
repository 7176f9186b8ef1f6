"""The command ``lengthwise``: one Typer app, to which each module of commands adds its own.

Nothing heavy is imported until a command runs, so that ``--help`` answers at once.
"""

from __future__ import annotations

import os
import sys
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from lengthwise.data.errors import InputError
from lengthwise.training import console
from lengthwise.training.cli import data, predictors, promote
from lengthwise.training.cli.benching import bench, demo_real
from lengthwise.training.cli.pairs import refuse_empty
from lengthwise.training.cli.serving import serve

DEBUG_VARIABLE = "LENGTHWISE_DEBUG"


class LengthwiseGroup(TyperGroup):
    """Turns whatever goes wrong into one line on stderr and exit status 2."""

    def main(self, *args: Any, **kwargs: Any) -> Any:
        """Run a command line; a traceback only with --debug."""
        console.standard_streams()
        try:
            try:
                return super().main(*args, **kwargs)
            finally:
                console.flush_stdout()
        except Exception as error:
            if os.environ.get(DEBUG_VARIABLE) == "1":
                raise
            # a reader that went away (`| head`) needs no telling
            if not isinstance(error, BrokenPipeError):
                print(f"lengthwise: error: {one_line(error)}", file=sys.stderr)
            sys.exit(1 if isinstance(error, BrokenPipeError) else 2)

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """The command of a line, once none of its words is empty."""
        name, command, rest = super().resolve_command(ctx, args)
        if command is not None:
            refuse_empty(command, rest)
        return name, command, rest


def one_line(error: BaseException) -> str:
    """What went wrong, on one line; what nobody foresaw with its kind and where to see more."""
    said = " ".join(str(error).split())
    if isinstance(error, InputError):
        return said or type(error).__name__
    what = said if isinstance(error, OSError) and said else f"{type(error).__name__}: {said}"
    return f"{what.rstrip(': ')} (lengthwise --debug ... shows where)"


app = typer.Typer(
    name="lengthwise",
    cls=LengthwiseGroup,
    no_args_is_help=True,
    rich_markup_mode=None,  # plain help: rich alone would take half of the time it may
    pretty_exceptions_enable=False,
    add_completion=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        print(f"lengthwise {version('lengthwise')}")
        raise typer.Exit


@app.callback()
def main(
    debug: Annotated[
        bool, typer.Option("--debug", help="Show tracebacks (also LENGTHWISE_DEBUG=1).")
    ] = False,
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Learn how long answers will be; order requests in vLLM so that they meet their SLOs."""
    if debug:
        os.environ[DEBUG_VARIABLE] = "1"


for module in (data, predictors, promote, bench, demo_real, serve):
    module.register(app)
