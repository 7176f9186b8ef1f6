"""A workspace, the commands given in it, and the server that runs there: an operator's view."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import requests as http

from lengthwise.training.bench.engines.client import BenchError
from lengthwise.training.bench.engines.servers import free_port

START_TIMEOUT_S = 900.0
STOP_TIMEOUT_S = 60.0
POLL_S = 2.0
COMMAND = (sys.executable, "-m", "lengthwise")


@dataclass(frozen=True, slots=True)
class RealSite:
    """Runs `lengthwise` commands; their progress goes where ours does, their document is kept.

    The workspace is `$LENGTHWISE_HOME` of this process.
    """

    root: Path
    say: Callable[[str], None]
    command: Sequence[str] = COMMAND

    def run(self, *arguments: str, refusable: bool = False) -> dict[str, Any]:
        """The document that a command ends in.

        `refusable`: exit status 1 is an answer too.

        Raises:
            BenchError: the command failed.
        """
        self.say("$ lengthwise " + " ".join(arguments))
        done = subprocess.run(
            [*self.command, *arguments], stdout=subprocess.PIPE, text=True, check=False
        )
        if done.returncode and not (refusable and done.returncode == 1):
            raise BenchError(f"`lengthwise {arguments[0]}` ended with status {done.returncode}")
        try:
            return dict(json.loads(done.stdout.strip().splitlines()[-1]))
        except (IndexError, ValueError, TypeError) as error:
            raise BenchError(
                f"`lengthwise {arguments[0]}` ended without a document: {done.stdout[-300:]!r}"
            ) from error

    @contextmanager
    def serving(self, *arguments: str) -> Iterator[RealServer]:
        """`lengthwise serve` with these arguments, up; stopped at the end.

        Raises:
            BenchError: it ended, or did not answer in time.
        """
        port = free_port()
        words = ["serve", *arguments, "--port", str(port)]
        self.say("$ lengthwise " + " ".join(words))
        log = self.root / "server.log"
        with log.open("wb") as output:
            process = subprocess.Popen(
                [*self.command, *words], stdout=output, stderr=subprocess.STDOUT
            )
            try:
                server = RealServer(f"http://127.0.0.1:{port}", process, log)
                server.wait_for(lambda: http.get(f"{server.url}/health", timeout=5).ok,
                                "be up", START_TIMEOUT_S)  # fmt: skip
                yield server
            finally:
                process.terminate()
                try:
                    process.wait(STOP_TIMEOUT_S)
                except subprocess.TimeoutExpired:
                    process.kill()
                    process.wait()


@dataclass(frozen=True, slots=True)
class RealServer:
    """A server that was started, and its log."""

    url: str
    process: subprocess.Popen[bytes]
    log: Path

    def status(self) -> dict[str, Any]:
        """`GET /lengthwise/status`."""
        answer = http.get(f"{self.url}/lengthwise/status", timeout=30)
        answer.raise_for_status()
        return dict(answer.json())

    def wait_for(self, holds: Callable[[], bool], what: str, timeout_s: float) -> float:
        """Seconds until it holds.

        Raises:
            BenchError: the server ended, or it did not hold in time.
        """
        began = time.monotonic()
        while time.monotonic() - began < timeout_s:
            if self.process.poll() is not None:
                raise BenchError(
                    f"the server ended with status {self.process.returncode}: {self.tail()}"
                )
            try:
                if holds():
                    return time.monotonic() - began
            except http.RequestException:
                pass  # not up yet
            time.sleep(0.25)
        raise BenchError(f"the server did not {what} within {timeout_s:g} s: {self.tail()}")

    def wait_for_version(self, label: str, timeout_s: float = 120.0) -> float:
        """Seconds until it predicts with this version."""
        return self.wait_for(
            lambda: self.status().get("predictor_version") == label,
            f"take over {label}", timeout_s,
        )  # fmt: skip

    def tail(self, lines: int = 5) -> str:
        """The end of its log, on one line."""
        return " | ".join(self.log.read_text(errors="replace").splitlines()[-lines:])
