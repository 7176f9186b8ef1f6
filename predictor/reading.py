"""What reads a prompt's text itself, beside the booster that reads its features."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from lengthwise.predictor.conformal import ConformalLevels
from lengthwise.predictor.distribution import Floats
from lengthwise.predictor.estimators.regressor import LengthRegressor
from lengthwise.predictor.features.reader_columns import CausalReader


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


@dataclass(frozen=True)
class CausalReading:
    """A causal reader, an estimator that knows its columns too, and the levels of both together.

    It says the lengths of the prompts that were read; all others are the estimator's that knows
    nothing of a reader.
    """

    reader: CausalReader
    estimator: LengthRegressor
    conformal: ConformalLevels

    def log_quantiles(
        self,
        texts: Sequence[str],
        rows: NDArray[np.floating],
        classes: Sequence[str | None],
    ) -> tuple[NDArray[np.intp], Floats]:
        """Which of the prompts were read, (m,), and their log-quantiles, (m, q).

        `rows` are all prompts' features without the reader, (n, f).
        """
        columns = self.reader.transform(texts, classes)
        read = np.flatnonzero(np.isfinite(columns).all(1))
        out = np.empty((read.size, len(self.conformal.levels)))
        if read.size:
            known = joined(rows, columns)[read]
            for levels, members in by_levels(self.conformal, [classes[i] for i in read]):
                out[members] = self.estimator.predict_log_quantiles(known[members], levels)
        return read, out


def joined(rows: NDArray[np.floating], columns: Floats) -> NDArray[np.float32]:
    """Features, (n, f), and the reader's columns, (n, k), side by side as they are learned."""
    return np.column_stack((rows, columns)).astype(np.float32)


def by_levels(
    conformal: ConformalLevels, classes: Sequence[str | None]
) -> Iterator[tuple[Floats, slice | NDArray[np.intp]]]:
    """The levels to ask for, and the rows to ask them of, a class at a time."""
    if len(set(classes)) == 1:
        yield conformal.of(classes[0]), slice(None)
        return
    labels = np.array([name or "" for name in classes])
    for name in sorted(set(labels.tolist())):
        yield conformal.of(name), np.flatnonzero(labels == name)
