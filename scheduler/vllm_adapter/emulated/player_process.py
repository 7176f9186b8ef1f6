"""The caller's end of a player: start the process, hand it jobs, read what came of them."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from types import TracebackType

from lengthwise.scheduler.vllm_adapter.emulated.player import Job, JobOutcome

_MODULE = "lengthwise.scheduler.vllm_adapter.emulated.player"
_STOP_GRACE_S = 10.0
_LOG_TAIL_LINES = 15
_ENVIRONMENT = {
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_LOGGING_LEVEL": "WARNING",
    "HF_HUB_OFFLINE": "1",
    "PYTHONHASHSEED": "0",
    "OMP_NUM_THREADS": "1",
}


class PlayerError(RuntimeError):
    """A job that could not be played."""


class PlayerProcess:
    """A player, started at once and stopped on leaving; ``run`` may be called many times."""

    def __init__(self, log_path: Path | str | None = None) -> None:
        self._scratch = Path(tempfile.mkdtemp(prefix="lengthwise-jobs-"))
        self._log_path = Path(log_path) if log_path else self._scratch / "player.log"
        self._jobs = 0
        self._log_path.parent.mkdir(parents=True, exist_ok=True)
        with self._log_path.open("ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", _MODULE],
                env=_ENVIRONMENT | dict(os.environ),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                start_new_session=True,
            )

    def __enter__(self) -> PlayerProcess:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def run(self, job: Job) -> JobOutcome:
        """Play a job and wait for its outcome.

        Raises:
            PlayerError: the job failed, or the process ended; with the message or the log's end.
        """
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._jobs += 1
        path = job.write(self._scratch / f"job-{self._jobs}.json")
        try:
            self._process.stdin.write(f"{path}\n")
            self._process.stdin.flush()
            line = self._process.stdout.readline()
        except BrokenPipeError:
            line = ""
        if not line:
            raise PlayerError(f"the emulated engines' process ended:\n{self.log_tail()}")
        answer = json.loads(line)
        if "error" in answer:
            raise PlayerError(f"emulated engines: {answer['error']}")
        outcome = JobOutcome.read(Path(answer["outcome"]))
        for done in (path, Path(answer["outcome"])):
            done.unlink()
        return outcome

    def log_tail(self) -> str:
        """The last lines of the process's log."""
        lines = self._log_path.read_text(errors="replace").splitlines()
        return "\n".join(lines[-_LOG_TAIL_LINES:])

    def close(self) -> None:
        """End the process: ask first, force after some seconds. Idempotent."""
        if self._process.stdin is not None:
            with contextlib.suppress(BrokenPipeError):
                self._process.stdin.close()
        try:
            self._process.wait(_STOP_GRACE_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        if self._process.stdout is not None:
            self._process.stdout.close()
        shutil.rmtree(self._scratch, ignore_errors=True)
