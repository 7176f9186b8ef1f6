"""`lengthwise serve --learn`: train on the server's own log as it grows, promote what is no worse.

The commands are those an operator would type, in processes of lowest priority beside the server:

    lengthwise train --from-log LOG --alias challenger --no-decision
    lengthwise promote --from-log LOG --requests N

The first after 1,000 requests and then whenever their number has doubled, or grown by 20,000; the
second on the N requests that came since, a quarter of those at least: none of them was learned
from. Until then the residual (`predictor.serving.residual`) mends what a foreign predictor says.
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
from lengthwise.training.bench.judge import LEAST_REQUESTS, MOST_REQUESTS
from lengthwise.training.registry.model_names import CHALLENGER

FIRST_ROWS = 1_000
MOST_MORE_ROWS = 20_000
STATE_FILE = "learned.json"  # in the log's folder
_PIECE_BYTES = 1 << 20
_PROMOTE_REFUSED = 1
_JUDGED_SHARE = 0.25  # of as many requests as were learned from

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

    ``trained`` is their number when a training last began, ``unjudged`` whether its version waits
    to be judged. All of it is kept in the log's folder, as a server that starts again goes on with
    the same log.
    """

    folder: Path
    rows: int = 0
    trained: int = 0
    unjudged: bool = False
    _read: dict[str, int] = field(default_factory=dict)  # bytes by file

    @classmethod
    def of(cls, folder: Path) -> LogGrowth:
        """As it was left; from nothing where that cannot be read."""
        with suppress(InputError, OSError, AttributeError, KeyError, TypeError, ValueError):
            document = read_object(folder / STATE_FILE, "learned rows")
            read = {str(name): int(size) for name, size in document["read"].items()}
            rows, trained = int(document["rows"]), int(document["trained"])
            return cls(folder, rows, trained, document["unjudged"] is True, read)
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

    @property
    def since_training(self) -> int:
        """Rows that no training knows."""
        return self.rows - self.trained

    def due(self, first_rows: int) -> bool:
        """Whether so much has come since the last training that another is worth it."""
        return self.since_training >= min(max(first_rows, self.trained), MOST_MORE_ROWS)

    def begun(self) -> None:
        """A training of these rows begins."""
        self.trained = self.rows
        self.note(unjudged=False)

    def note(self, *, unjudged: bool) -> None:
        """Keep how far this has come."""
        self.unjudged = unjudged
        document = {
            "rows": self.rows, "trained": self.trained, "unjudged": unjudged, "read": self._read
        }  # fmt: skip
        with suppress(OSError):  # a full disk only costs a training too many after the next start
            write_whole(self.folder / STATE_FILE, json.dumps(document))


class SelfTraining:
    """Looked at now and then; one command at a time, and what became of it is said."""

    def __init__(self, log: Path, say: Say, start: Start, first_rows: int = FIRST_ROWS) -> None:
        self._growth = LogGrowth.of(log)
        self._say = say
        self._start = start
        self._first_rows = first_rows
        self._running: tuple[Child, Callable[[int], None]] | None = None
        self._log = str(log)

    def look(self) -> None:
        """Go on with what has ended, begin what is due."""
        if self._running is not None:
            child, ended = self._running
            code = child.poll()
            if code is None:
                return
            self._running = None
            ended(code)
        growth = self._growth
        growth.count()
        if growth.unjudged and growth.since_training >= self._needed_to_judge:
            self._promote()
        elif not growth.unjudged and growth.due(self._first_rows):
            self._train()

    def close(self) -> None:
        """End what runs."""
        if self._running is not None:
            self._running[0].terminate()

    @property
    def _needed_to_judge(self) -> int:
        return min(max(int(_JUDGED_SHARE * self._growth.trained), LEAST_REQUESTS), MOST_REQUESTS)

    def _train(self) -> None:
        self._growth.begun()
        self._say(f"learning: training on the {self._growth.trained:,} requests of {self._log}")
        alias = ("--alias", CHALLENGER)
        command = ["train", "--from-log", self._log, *alias, "--no-decision"]
        self._running = self._start(command), self._trained

    def _trained(self, code: int) -> None:
        if code == 0:
            self._growth.note(unjudged=True)
            more = self._needed_to_judge
            self._say(f"learning: trained; judged by the next {more:,} requests")
        else:
            self._say(f"learning: the training failed (exit {code}); the next one after more rows")

    def _promote(self) -> None:
        self._growth.note(unjudged=False)
        fresh = min(self._growth.since_training, MOST_REQUESTS)
        command = ["promote", "--from-log", self._log, "--requests", str(fresh)]
        self._running = self._start(command), self._judged

    def _judged(self, code: int) -> None:
        if code == 0:
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
