"""How long engine steps take, measured where they end, and the model refitted from them.

A step's duration is the time between the ends of two consecutive steps: with asynchronous
scheduling a step is planned while the one before still runs, so the span from its own planning
to its own end would cover two. After an idle time there is no such predecessor; then the step is
timed from its planning.
"""

from __future__ import annotations

import math
from collections import deque

import numpy as np

from lengthwise.data.arrays import FloatArray
from lengthwise.scheduler.serving.step_log import StepLog
from lengthwise.scheduler.step_time import StepTimeModel

# Between two steps a busy engine takes in new requests; more than this is an idle gap.
_IDLE_GAP_S = 0.005

_MEAN_OVER_SEQUENCES = 4096.0
_MOST_AHEAD = 4  # steps that are planned before the first of them has ended

StepFeatures = tuple[int, int, int]  # prefill tokens, decoding sequences, their context tokens


class StepTimer:
    """Keeps the last ``window`` steps as rows (prefill, decodes, context, duration in s).

    ``log_path`` adds each step to a step log.
    """

    def __init__(self, window: int = 2048, log_path: str | None = None) -> None:
        self.steps = 0
        self.rested_steps = math.inf  # planned since the last one with prompt tokens
        self._rows = np.zeros((window, 4))
        self.last_features: StepFeatures = (0, 0, 0)  # of the step planned last
        self.ended_features: StepFeatures = (0, 0, 0)  # of the step that ended last
        self._in_flight: deque[tuple[StepFeatures, float]] = deque()
        self._last_end_s: float | None = None
        self._log: StepLog | None = None
        self.set_log(log_path)

    def begin(self, features: StepFeatures, now_s: float) -> None:
        """A step with this work was planned."""
        self.last_features = features
        self.rested_steps = 0.0 if features[0] else self.rested_steps + 1.0
        self._in_flight.append((features, now_s))

    def end(self, now_s: float, unix_s: float, running: int, waiting: int) -> float | None:
        """The oldest planned step ended; returns its duration, None when none was planned."""
        if not self._in_flight:
            return None
        features, planned_s = self._in_flight.popleft()
        self.ended_features = features
        began_s = planned_s
        if self._last_end_s is not None and planned_s - self._last_end_s < _IDLE_GAP_S:
            began_s = self._last_end_s
        duration_s = now_s - began_s
        self._last_end_s = now_s
        self._rows[self.steps % len(self._rows)] = (*features, duration_s)
        self.steps += 1
        if self._log is not None:
            row = [round(unix_s, 6), *features, round(duration_s, 7), running, waiting]
            self._log.write(row)
        return duration_s

    def ends_s(self, model: StepTimeModel, now_s: float) -> FloatArray:
        """When the steps planned for the device will have ended, by the step-time model.

        None of them before now. Only the newest few count, in case one was never said to have
        ended.
        """
        steps = list(self._in_flight)[-_MOST_AHEAD:]
        if not steps:
            return np.zeros(0)
        began_s = steps[0][1]
        if self._last_end_s is not None:
            began_s = max(began_s, self._last_end_s)
        take_s = [model.step_s(*features) for features, _ in steps]
        return np.maximum(now_s, began_s + np.cumsum(take_s))

    def samples(self) -> FloatArray:
        """The kept steps in the order they were taken, ``(k, 4)``; a copy."""
        kept = len(self._rows)
        if self.steps <= kept:
            return self._rows[: self.steps].copy()
        return np.roll(self._rows, -(self.steps % kept), axis=0)

    def set_log(self, path: str | None) -> None:
        """Log steps to ``path`` from now on; None stops it. OSError when it cannot be opened."""
        opened = StepLog(path) if path else None
        self.close()
        self._log = opened

    def close(self) -> None:
        """Flush and close the step log."""
        if self._log is not None:
            self._log.close()
            self._log = None


class TokensPerStep:
    """Tokens that a decoding sequence gets a step, on the recent mean: more than 1 of speculation.

    ``draft_tokens`` are proposed a step; without any the mean is 1.
    """

    def __init__(self, draft_tokens: int = 0) -> None:
        self.draft_tokens = draft_tokens
        self._tokens = self._sequences = 0.0

    def note(self, tokens: int, sequences: int) -> None:
        """A step gave so many decoding sequences so many tokens."""
        if sequences > 0:
            kept = 1.0 - min(1.0, sequences / _MEAN_OVER_SEQUENCES)
            self._tokens = kept * self._tokens + tokens
            self._sequences = kept * self._sequences + sequences

    @property
    def mean(self) -> float:
        """The mean, from 1 to all drafts and the sampled one; 1 before anything is known."""
        if self._sequences <= 0:
            return 1.0
        return min(max(self._tokens / self._sequences, 1.0), 1.0 + self.draft_tokens)
