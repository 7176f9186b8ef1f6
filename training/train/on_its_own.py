"""`lengthwise serve --learn`: train on the server's own log as it grows, promote what is no worse.

The commands are those an operator would type, in processes of lowest priority beside the server:

    lengthwise train --from-log LOG --alias challenger --no-decision
    lengthwise promote --from-log LOG

after 1,000 answered requests and then whenever their number has doubled, or grown by 20,000. Who
follows the champion's alias then serves with the new version. From the first request on until then
the residual (`predictor.serving.residual`) mends what a foreign predictor says.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from lengthwise.data.errors import InputError
from lengthwise.data.files import read_object, write_whole
from lengthwise.data.request_log import FILE_PATTERN
from lengthwise.training.registry.model_names import CHALLENGER

FIRST_ROWS = 1_000
MOST_MORE_ROWS = 20_000
STATE_FILE = "learned.json"  # in the log's folder
_PIECE_BYTES = 1 << 20
_PROMOTE_REFUSED = 1

Say = Callable[[str], None]


class Child(Protocol):
    """A started command."""

    def poll(self) -> int | None:
        """Its exit code; None while it runs."""

    def terminate(self) -> None:
        """End it."""


Start = Callable[[Sequence[str]], Child]
"""Starts `lengthwise` with these arguments."""


@dataclass(slots=True)
class LogGrowth:
    """How many rows a log has had, those of files that went since included.

    ``trained`` is their number when a training last began; it is kept in the log's folder, as a
    server that starts again goes on with the same log.
    """

    folder: Path
    rows: int = 0
    trained: int = 0
    _read: dict[str, int] = field(default_factory=dict)  # bytes by file

    @classmethod
    def of(cls, folder: Path) -> LogGrowth:
        """As it was left; from nothing where that cannot be read."""
        with suppress(InputError, OSError, KeyError, TypeError, ValueError):
            document = read_object(folder / STATE_FILE, "learned rows")
            read = {str(name): int(size) for name, size in document["read"].items()}
            return cls(folder, int(document["rows"]), int(document["trained"]), read)
        return cls(folder)

    def count(self) -> int:
        """Rows until now, those that were written since the last look among them."""
        read: dict[str, int] = {}
        for path in sorted(self.folder.glob(FILE_PATTERN)):
            with suppress(OSError), path.open("rb") as file:  # the server may remove it meanwhile
                size = self._read.get(path.name, 0)
                file.seek(size)
                while piece := file.read(_PIECE_BYTES):
                    self.rows += piece.count(b"\n")
                    size += len(piece)
                read[path.name] = size
        self._read = read
        return self.rows

    def due(self, first_rows: int) -> bool:
        """Whether so much has come since the last training that another is worth it."""
        more = min(max(first_rows, self.trained), MOST_MORE_ROWS)
        return self.rows >= self.trained + more

    def begun(self) -> None:
        """A training of these rows begins."""
        self.trained = self.rows
        document = {"rows": self.rows, "trained": self.trained, "read": self._read}
        with suppress(OSError):  # a full disk only costs a training too many after the next start
            write_whole(self.folder / STATE_FILE, json.dumps(document))


class SelfTraining:
    """Looked at now and then; one command at a time, and what became of it is said."""

    def __init__(self, log: Path, say: Say, start: Start, first_rows: int = FIRST_ROWS) -> None:
        self._growth = LogGrowth.of(log)
        self._say = say
        self._start = start
        self._first_rows = first_rows
        self._child: Child | None = None
        self._promoting = False
        self._log = str(log)

    def look(self) -> None:
        """Begin what is due, go on with what has ended."""
        if self._child is not None:
            code = self._child.poll()
            if code is not None:
                self._child = None
                self._ended(code)
            return
        rows = self._growth.count()
        if self._growth.due(self._first_rows):
            self._growth.begun()
            self._say(f"learning: training on {rows:,} requests of {self._log}")
            self._promoting = False
            alias = ("--alias", CHALLENGER)
            self._child = self._start(["train", "--from-log", self._log, *alias, "--no-decision"])

    def close(self) -> None:
        """End what runs."""
        if self._child is not None:
            self._child.terminate()

    def _ended(self, code: int) -> None:
        if not self._promoting and code == 0:
            self._promoting = True
            self._child = self._start(["promote", "--from-log", self._log])
        elif not self._promoting:
            self._say(f"learning: the training failed (exit {code}); the next one after more rows")
        elif code == 0:
            self._say("learning: the new version is champion")
        elif code == _PROMOTE_REFUSED:
            self._say("learning: the new version is no better for the SLOs; the old one stays")
        else:
            self._say(f"learning: the promotion failed (exit {code}); the old version stays")


def starter(output: Path) -> Start:
    """Starts commands of lowest priority on one thread, without a GPU; their output is appended."""
    nice = ["nice", "-n", "19"] if shutil.which("nice") else []
    few = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}

    def start(arguments: Sequence[str]) -> Child:
        output.parent.mkdir(parents=True, exist_ok=True)
        with output.open("ab") as file:
            return subprocess.Popen(
                [*nice, sys.executable, "-m", "lengthwise", *arguments],
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
                env=os.environ | few,
                start_new_session=True,
            )

    return start
