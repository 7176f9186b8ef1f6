"""What reads a prompt's text itself, beside the booster that reads its features."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from lengthwise.predictor.conformal import ConformalLevels
from lengthwise.predictor.distribution import Floats
from lengthwise.predictor.estimators.regressor import LengthRegressor


class TextReader(Protocol):
    """A reader, such as `predictor.estimators.encoder.BertReader`."""

    def log_quantiles(self, prompts: Sequence[str], levels: Floats) -> Floats:
        """Log-tokens at the levels, (n, q)."""
        ...

    def save(self, directory: Path) -> None:
        """Write its own files."""
        ...


@dataclass(frozen=True)
class Reading:
    """A reader, its weight in the average, and the conformal levels of both together."""

    reader: TextReader
    share: float
    conformal: ConformalLevels

    def log_quantiles(
        self,
        estimator: LengthRegressor,
        rows: NDArray[np.floating],
        texts: Sequence[str],
        levels: Floats,
    ) -> Floats:
        """Weighted mean of the reader's and the booster's log-quantiles, (n, q)."""
        read = self.reader.log_quantiles(texts, levels)
        if self.share >= 1.0:
            return read
        boosted = estimator.predict_log_quantiles(rows, levels)
        return self.share * read + (1.0 - self.share) * boosted
