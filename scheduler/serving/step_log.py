"""The step log: a JSON-lines file, one engine step a line, written while serving.

A line is ``[unix_s, prefill_tokens, decode_seqs, context_tokens, duration_s, running, waiting]``.
"""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import IO

import numpy as np

from lengthwise.data.arrays import FloatArray
from lengthwise.scheduler.serving.settings import LOGGER_NAME

logger = logging.getLogger(LOGGER_NAME)

_FLUSH_EVERY = 100
_COLUMNS = 7


class StepLog:
    """Appends to ``path``, made with its folders; OSError when it cannot be opened."""

    def __init__(self, path: str) -> None:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        self._file: IO[str] | None = Path(path).open("a", encoding="utf-8")  # noqa: SIM115
        self._pending = 0

    def write(self, row: list[float]) -> None:
        """Append a line; a failing disk ends the log, not the serving."""
        if self._file is None:
            return
        try:
            self._file.write(json.dumps(row) + "\n")
            self._pending += 1
            if self._pending >= _FLUSH_EVERY:
                self._file.flush()
                self._pending = 0
        except OSError as error:
            logger.warning("step log stopped: %s", error)
            self._file = None

    def close(self) -> None:
        """Flush and close."""
        if self._file is not None:
            self._file.close()
            self._file = None


def read_step_log(path: Path | str) -> FloatArray:
    """The steps of a log as ``(k, 7)``: unix_s, prefill, decodes, context, s, running, waiting."""
    with Path(path).open(encoding="utf-8") as lines:
        rows = [json.loads(line) for line in lines if line.strip()]
    return np.asarray(rows, dtype=np.float64).reshape(len(rows), _COLUMNS)
