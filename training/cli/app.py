"""The command ``lengthwise``: one Typer app, to which each ``cli_*`` module adds its commands.

Nothing heavy is imported until a command runs, so that ``--help`` answers at once.
"""

from __future__ import annotations

import os
import sys
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from lengthwise.data.errors import InputError
from lengthwise.training.cli import bench, data, predictors, promote, serve

DEBUG_VARIABLE = "LENGTHWISE_DEBUG"


class LengthwiseGroup(TyperGroup):
    """Turns bad input and refused files into one line on stderr and exit status 2."""

    def invoke(self, ctx: Any) -> Any:
        """Run the command; a traceback only with --debug."""
        try:
            return super().invoke(ctx)
        except (InputError, OSError) as error:
            # a reader that went away (`| head`) is click's to handle
            if os.environ.get(DEBUG_VARIABLE) == "1" or isinstance(error, BrokenPipeError):
                raise
            print(f"lengthwise: error: {_one_line(error)}", file=sys.stderr)
            raise typer.Exit(2) from error


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__


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


for module in (data, predictors, promote, bench, serve):
    module.register(app)
