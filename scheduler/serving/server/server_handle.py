"""A started server as its launcher holds it: until it is ready, while it runs, to its end."""

from __future__ import annotations

import subprocess
import time
import urllib.error
import urllib.request
from pathlib import Path
from types import TracebackType

from lengthwise.scheduler.serving.server import parent_watch
from lengthwise.scheduler.serving.server.run_files import RunFiles
from lengthwise.scheduler.serving.server.server_process import ParentWatch, kill_all

_HANDLE_GRACE_S = 20.0
_LOG_TAIL_LINES = 25


class ServerStartError(RuntimeError):
    """A server that did not become ready; the message holds the end of its log."""


class ServerHandle:
    """A started server. A context manager: leaving it stops the server and everything it started.

    ``url`` is ready for requests after ``wait_ready``.
    """

    def __init__(
        self,
        process: subprocess.Popen[bytes],
        url: str,
        log_path: Path,
        files: RunFiles,
        watch: ParentWatch,
    ) -> None:
        self.process = process
        self.url = url
        self.log_path = log_path
        self.files = files
        self._watch = watch

    def __enter__(self) -> ServerHandle:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.terminate()

    @property
    def is_running(self) -> bool:
        """Whether the API process lives."""
        return self.process.poll() is None

    def wait_ready(self, timeout_s: float = 300.0) -> ServerHandle:
        """Wait for ``/health``; ServerStartError with the log's tail when it does not come."""
        deadline = time.monotonic() + timeout_s
        while time.monotonic() < deadline:
            if not self.is_running:
                code = self.process.returncode
                raise ServerStartError(f"it ended with exit code {code}:\n{self.log_tail()}")
            if _is_healthy(self.url):
                return self
            time.sleep(0.25)
        raise ServerStartError(f"not ready after {timeout_s:g} s:\n{self.log_tail()}")

    def log_tail(self, lines: int = _LOG_TAIL_LINES) -> str:
        """The last lines of the server's log."""
        if not self.log_path.is_file():
            return "(no log)"
        return "\n".join(self.log_path.read_text(errors="replace").splitlines()[-lines:])

    def terminate(self, grace_s: float = _HANDLE_GRACE_S) -> None:
        """Ask the server's first process to stop, kill all after ``grace_s``. Idempotent."""
        if self.is_running:
            self.process.terminate()
            try:
                self.process.wait(grace_s)
            except subprocess.TimeoutExpired:
                kill_all(self.process)
                self.process.wait()
        # children may outlive the API process
        parent_watch.end_session(self.process.pid, parent_watch.LAST_WORDS_S)
        self._watch.done()
        self.files.remove()


def _is_healthy(url: str) -> bool:
    try:
        with urllib.request.urlopen(f"{url}/health", timeout=5) as response:
            return bool(response.status == 200)
    except (urllib.error.URLError, OSError):
        return False
