"""What the words that an answer has begun with say of its length, beside what its prompt said."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lengthwise.predictor.conformal import ConformalLevels
from lengthwise.predictor.distribution import Floats
from lengthwise.predictor.estimators.regressor import LengthRegressor
from lengthwise.predictor.features.columns import PromptFeatures
from lengthwise.predictor.reading import by_levels

OPENING_BLOCKS = ("structure", "text")
KNOWN_LEVELS = np.array((0.1, 0.3, 0.5, 0.7, 0.9))  # of what the prompt said


@dataclass(frozen=True)
class OpeningReading:
    """An estimator of answers that have reached ``tokens`` tokens; its levels are its own.

    It knows the prompt's columns, the quantiles said of the prompt, and columns of the opening
    (``features``).
    """

    tokens: int
    features: PromptFeatures
    estimator: LengthRegressor
    conformal: ConformalLevels

    def log_quantiles(
        self,
        openings: Sequence[str],
        rows: NDArray[np.floating],
        known: Floats,
        classes: Sequence[str | None],
    ) -> Floats:
        """Log-tokens of the whole answers, (n, q).

        ``rows`` are the prompts' features, (n, f), ``known`` the log-quantiles at KNOWN_LEVELS
        that the estimator of prompts says of them, (n, 5).
        """
        read = self.features.rows(openings, classes, [None] * len(openings))
        columns = columns_of(rows, known, read)
        out = np.empty((len(columns), len(self.conformal.levels)))
        for levels, members in by_levels(self.conformal, classes):
            out[members] = self.estimator.predict_log_quantiles(columns[members], levels)
        return out


def columns_of(
    rows: NDArray[np.floating], known: Floats, read: NDArray[np.floating]
) -> NDArray[np.float32]:
    """What is learned from: the prompt's features, what was said of it, the opening's columns."""
    return np.column_stack((rows, known, read)).astype(np.float32)
