"""How long engine steps take, measured where they end, and the model refitted from them.

A step's duration is the time between the ends of two consecutive steps: with asynchronous
scheduling a step is planned while the one before still runs, so the span from its own planning
to its own end would cover two. After an idle time there is no such predecessor; then the step is
timed from its planning.
"""

from __future__ import annotations

import json
import logging
from collections import deque
from pathlib import Path
from typing import IO

import numpy as np

from lengthwise.data.arrays import FloatArray
from lengthwise.scheduler.vllm_adapter.settings import LOGGER_NAME

logger = logging.getLogger(LOGGER_NAME)

# Between two steps a busy engine takes in new requests; more than this is an idle gap.
_IDLE_GAP_S = 0.005
_FLUSH_EVERY = 100

StepFeatures = tuple[int, int, int]  # prefill tokens, decoding sequences, their context tokens


class StepTimer:
    """Keeps the last ``window`` steps as rows (prefill, decodes, context, duration in s).

    ``log_path`` adds each step to a JSON-lines file, one array ``[unix_s, prefill_tokens,
    decode_seqs, context_tokens, duration_s, running, waiting]`` a line.
    """

    def __init__(self, window: int = 2048, log_path: str | None = None) -> None:
        self.steps = 0
        self._rows = np.zeros((window, 4))
        self._in_flight: deque[tuple[StepFeatures, float]] = deque()
        self._last_end_s: float | None = None
        self._log: IO[str] | None = None
        self._log_pending = 0
        self.set_log(log_path)

    def begin(self, features: StepFeatures, now_s: float) -> None:
        """A step with this work was planned."""
        self._in_flight.append((features, now_s))

    def end(self, now_s: float, unix_s: float, running: int, waiting: int) -> float | None:
        """The oldest planned step ended; returns its duration, None when none was planned."""
        if not self._in_flight:
            return None
        features, planned_s = self._in_flight.popleft()
        began_s = planned_s
        if self._last_end_s is not None and planned_s - self._last_end_s < _IDLE_GAP_S:
            began_s = self._last_end_s
        duration_s = now_s - began_s
        self._last_end_s = now_s
        self._rows[self.steps % len(self._rows)] = (*features, duration_s)
        self.steps += 1
        if self._log is not None:
            self._write([round(unix_s, 6), *features, round(duration_s, 7), running, waiting])
        return duration_s

    def samples(self) -> FloatArray:
        """The kept steps, ``(k, 4)``; a copy."""
        return self._rows[: min(self.steps, len(self._rows))].copy()

    def forget_in_flight(self) -> None:
        """Drop planned steps whose end will not come (an engine reset)."""
        self._in_flight.clear()
        self._last_end_s = None

    def set_log(self, path: str | None) -> None:
        """Log steps to ``path`` from now on; None stops it. OSError when it cannot be opened."""
        opened = None
        if path:
            Path(path).parent.mkdir(parents=True, exist_ok=True)
            opened = Path(path).open("a", encoding="utf-8")  # noqa: SIM115 (kept while serving)
        self.close()
        self._log = opened

    def close(self) -> None:
        """Flush and close the step log."""
        if self._log is not None:
            self._log.close()
            self._log = None

    def _write(self, row: list[float]) -> None:
        assert self._log is not None
        try:
            self._log.write(json.dumps(row) + "\n")
            self._log_pending += 1
            if self._log_pending >= _FLUSH_EVERY:
                self._log.flush()
                self._log_pending = 0
        except OSError as error:
            logger.warning("step log stopped: %s", error)
            self._log = None


def read_step_log(path: Path | str) -> FloatArray:
    """The steps of a log as ``(k, 7)``: unix_s, prefill, decodes, context, s, running, waiting."""
    with Path(path).open(encoding="utf-8") as lines:
        rows = [json.loads(line) for line in lines if line.strip()]
    return np.asarray(rows, dtype=np.float64).reshape(len(rows), 7)
