"""Whether a `lengthwise` command line that a document shows would be understood."""

import shlex

import typer

from lengthwise.training.cli.app import app


def unknown_in(command):
    """What of the words after `lengthwise` the command line does not know."""
    words = shlex.split(command.replace("...", ""), comments=True)
    known = typer.main.get_command(app)
    while words and hasattr(known, "commands") and not words[0].startswith("-"):
        if words[0] not in known.commands:
            return words[0]
        known = known.commands[words.pop(0)]
    if known.context_settings.get("ignore_unknown_options"):
        return None  # vLLM's own follow
    options = {name for param in known.params for name in (*param.opts, *param.secondary_opts)}
    options |= {"--help", "-h"}
    wrong = [w for w in words if w.startswith("--") and w.split("=")[0] not in options]
    return wrong[0] if wrong else None
