"""A server's process, in a session of its own, and the process that ends it with its launcher.

The session takes engine and workers along when it is ended; ``parent_watch`` ends it when the
launcher is gone, however that came.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO

from lengthwise.scheduler.serving.server import parent_watch
from lengthwise.scheduler.serving.server.run_files import RunFiles

# From the first signal to the end of a server with nothing to finish; with --shutdown-timeout
# SECONDS one that serves has these besides.
STOP_GRACE_S = 10.0
ORPHAN_GRACE_S = 25.0  # of a server whose launcher is gone, whatever it has to finish


class ParentWatch:
    """The process that ends a server when this one is gone; see ``parent_watch.py``."""

    def __init__(self, files: RunFiles, grace_s: float) -> None:
        script = str(Path(parent_watch.__file__).absolute())
        arguments = [str(os.getpid()), str(grace_s), str(files.folder)]
        self._process = subprocess.Popen(
            [sys.executable, "-I", "-S", script, *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )

    def over(self, server_pid: int) -> None:
        """The server it watches over."""
        self._say(str(server_pid))

    def done(self) -> None:
        """The server has ended, or was never started. Idempotent."""
        self._say(parent_watch.DONE)
        if self._process.stdin is not None:
            with contextlib.suppress(OSError):
                self._process.stdin.close()
        self._process.wait()

    def _say(self, word: str) -> None:
        if self._process.stdin is not None and not self._process.stdin.closed:
            with contextlib.suppress(OSError):  # it was killed: nobody watches any more
                self._process.stdin.write(f"{word}\n".encode())
                self._process.stdin.flush()


def start_server(
    command: Sequence[str],
    environment: Mapping[str, str],
    files: RunFiles,
    log: IO[bytes] | None = None,
    *,
    orphan_s: float = STOP_GRACE_S,
) -> tuple[subprocess.Popen[bytes], ParentWatch]:
    """Start the server, and what ends it ``orphan_s`` after this process is gone, or sooner;
    output to ``log`` if given.
    """
    watch = ParentWatch(files, min(ORPHAN_GRACE_S, orphan_s))
    try:
        process = subprocess.Popen(
            list(command),
            env=dict(environment),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=None if log is None else subprocess.STDOUT,
            start_new_session=True,
        )
    except BaseException:
        watch.done()
        raise
    watch.over(process.pid)
    return process, watch


def kill_all(process: subprocess.Popen[bytes]) -> None:
    """End the server and everything it started, at once."""
    parent_watch.end_session(process.pid, 0.0)
