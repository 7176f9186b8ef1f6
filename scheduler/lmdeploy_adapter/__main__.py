"""In LMDeploy's environment: ``play`` tasks, ``check`` what the adapter leans on, or ``serve``.

``play`` reads stdin; ``serve`` and ``stock`` take a device, a model and LMDeploy's own arguments.
Answers go to the stdout this process was given; what LMDeploy prints goes to stderr.
"""

from __future__ import annotations

import json
import logging
import os
import sys
import traceback
from dataclasses import asdict
from importlib import metadata
from typing import TextIO

from lengthwise.data.errors import InputError


def main() -> None:
    """Run the command that stands as the first argument."""
    out = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    sys.stdout = sys.stderr
    command = sys.argv[1]
    if command == "check":
        from lengthwise.scheduler.lmdeploy_adapter.lmdeploy_contract import probe

        print(json.dumps([asdict(check) for check in probe()]), file=out, flush=True)
    elif command == "play":
        print(json.dumps({"version": metadata.version("lmdeploy")}), file=out, flush=True)
        play_all(sys.stdin, out)
    elif command in ("serve", "stock"):
        from lengthwise.scheduler.lmdeploy_adapter.inside.serve_command import serve_command

        device, model, *arguments = sys.argv[2:]
        serve_command(model, arguments, device, planned=command == "serve")
    else:
        raise SystemExit(f"unknown command {command!r}: play, check, serve or stock")


def play_all(tasks: TextIO, out: TextIO) -> None:
    """Answer every line of ``tasks`` with one line."""
    from lengthwise.scheduler.lmdeploy_adapter.inside.virtual_engine import play
    from lengthwise.scheduler.lmdeploy_adapter.play_messages import read_task, result_line

    logging.getLogger("lmdeploy").setLevel(logging.ERROR)
    for line in tasks:
        try:
            answer = result_line(play(read_task(line)))
        except InputError as error:
            answer = json.dumps({"refused": str(error)})
        except Exception as error:
            traceback.print_exc()
            answer = json.dumps({"failed": f"{type(error).__name__}: {error}"})
        print(answer, file=out, flush=True)


if __name__ == "__main__":
    main()
