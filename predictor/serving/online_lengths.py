"""The served model's own lengths, learned while it serves: order first, then level and spread.

`Residual` says by how much this model's answer to a prompt misses the prediction; what is left by
class `OnlineCorrection` follows from one request to the next. A fit of the residual takes a tenth
of a second, so it is done elsewhere:

    misses = lengths.to_fit()              None while there is too little new
    lengths.adopt(refit(misses, lengths.in_force))     once it is done
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lengthwise.predictor.distribution import Floats
from lengthwise.predictor.serving.correction import OnlineCorrection, at_level
from lengthwise.predictor.serving.residual import Misses, Residual, fit_residual

TOLD_LEVELS = (0.1, 0.5, 0.9)  # of a prediction, what is learned from
FIRST_ROWS = 60
_MORE, _LEAST_MORE, _MOST_MORE = 0.25, 20, 500  # rows until the next fit
_CORRECTED_ANEW = 400  # rows that a correction is learned from after a fit
_MOST_LATE = 2_000  # that came while one was made

FeatureRow = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Refit:
    """A fit's outcome: the residual, None where none is believed, and a correction beside it."""

    residual: Residual | None
    correction: OnlineCorrection


@dataclass(frozen=True, slots=True)
class _Told:
    """One finished request; the arguments of `OnlineLengths.update`."""

    predicted: Sequence[float]
    output_tokens: float
    slo_class: str | None
    censored: bool
    features: FeatureRow | None


def refit(misses: Misses, in_force: bool = False) -> Refit:
    """Fit a residual, and learn the correction from shifts that did not know the row's length.

    A residual in force stays as long as it gains anything; a new one has to gain surely.
    """
    found = fit_residual(misses, 0.0 if in_force else 1.0)
    shifts = np.zeros(len(misses)) if found is None else found[1]
    correction = OnlineCorrection()
    for i in range(max(0, len(misses) - _CORRECTED_ANEW), len(misses)):
        correction.update(
            _shifted(misses.predicted[i], shifts[i]).tolist(),
            float(misses.output_tokens[i]),
            misses.classes[i],
            bool(misses.censored[i]),
        )
    if found is None:
        return Refit(None, correction)
    # compiles what the engine's loop will call, where that has not been done on this machine
    found[0].shift(misses.features[-1], misses.predicted[-1].tolist(), None)
    return Refit(found[0], correction)


class OnlineLengths:
    """What finished requests have told of the served model, and predictions mended by it.

    Features are rows (f,) of the one predictor that is served, None where they are not known: such
    a request is corrected in level and spread alone. `window` requests are remembered for a fit.
    """

    def __init__(self, window: int = 4_000) -> None:
        if window < FIRST_ROWS:
            raise ValueError(f"window must be at least {FIRST_ROWS} rows, got {window}")
        self.residual: Residual | None = None
        self.correction = OnlineCorrection()
        self.fits = 0
        self._recent = _Recent(window)
        self._next_fit = FIRST_ROWS
        self._since_asked: deque[_Told] = deque(maxlen=_MOST_LATE)

    def update(
        self,
        predicted: Sequence[float],
        output_tokens: float,
        slo_class: str | None = None,
        censored: bool = False,
        features: FeatureRow | None = None,
    ) -> None:
        """Learn from one finished request; the arguments are `OnlineCorrection.update`'s."""
        told = _Told(predicted, output_tokens, slo_class, censored, features)
        self._correct_by(told)
        if self._recent.add(told):
            self._since_asked.append(told)

    @property
    def in_force(self) -> bool:
        """Whether a residual is believed."""
        return self.residual is not None

    @property
    def answers(self) -> int:
        """How many with features were learned from."""
        return self._recent.rows

    def correct(
        self,
        quantiles: Floats,
        levels: Floats,
        slo_class: str | None,
        features: FeatureRow | None = None,
    ) -> Floats:
        """Mended quantiles of one request, (q,), at least one token."""
        if self.residual is not None and features is not None:
            predicted = [at_level(level, levels, quantiles) for level in TOLD_LEVELS]
            quantiles = _shifted(quantiles, self._shift(predicted, slo_class, features))
        return self.correction.correct(quantiles, levels, slo_class)

    def to_fit(self) -> Misses | None:
        """What a fit learns from, once there is enough that the last one did not know."""
        if self._recent.rows < self._next_fit:
            return None
        more = min(max(int(_MORE * self._recent.rows), _LEAST_MORE), _MOST_MORE)
        self._next_fit = self._recent.rows + more
        self._since_asked.clear()
        return self._recent.misses()

    def adopt(self, found: Refit) -> None:
        """Go by a fit from now on; what came since it was asked for is learned after it."""
        self.fits += 1
        if self.residual is None and found.residual is None:
            return
        self.residual, self.correction = found.residual, found.correction
        for told in self._since_asked:
            self._correct_by(told)

    def _correct_by(self, told: _Told) -> None:
        shift = self._shift(told.predicted, told.slo_class, told.features)
        predicted = _shifted(np.asarray(told.predicted, np.float64), shift).tolist()
        self.correction.update(predicted, told.output_tokens, told.slo_class, told.censored)

    def _shift(
        self, predicted: Sequence[float], slo_class: str | None, features: FeatureRow | None
    ) -> float:
        residual = self.residual
        if residual is None or features is None or len(features) != len(residual.weights):
            return 0.0
        shift = residual.shift(features, predicted, slo_class)
        return shift if math.isfinite(shift) else 0.0


class _Recent:
    """The last requests with features, each written once: a fit reads them as they lie."""

    def __init__(self, window: int) -> None:
        self.rows = 0  # ever
        self._window = window
        self._features: NDArray[np.float32] = np.empty((0, 0), np.float32)
        self._told = np.empty((0, len(TOLD_LEVELS) + 2))
        self._classes: list[str] = []

    def add(self, told: _Told) -> bool:
        """Remember a request; False where its features are none or not as wide as others'."""
        features = told.features
        if features is None or not np.isfinite(features).all():
            return False
        if not self.rows:
            self._features = np.empty((2 * self._window, len(features)), np.float32)
            self._told = np.empty((2 * self._window, self._told.shape[1]))
        if len(features) != self._features.shape[1]:
            return False
        if len(self._classes) == len(self._features):
            # to new arrays, as a fit may still read the old ones
            self._features, self._told = (
                np.concatenate([old[self._window :], np.empty_like(old[: self._window])])
                for old in (self._features, self._told)
            )
            self._classes = self._classes[self._window :]
        row = len(self._classes)
        self._features[row] = features
        self._told[row] = (*told.predicted, told.output_tokens, told.censored)
        self._classes.append(told.slo_class or "")
        self.rows += 1
        return True

    def misses(self) -> Misses:
        """The last of them, without copying."""
        end = len(self._classes)
        last = slice(max(0, end - self._window), end)
        told = self._told[last]
        return Misses(
            self._features[last],
            told[:, :-2],
            told[:, -2],
            told[:, -1].astype(bool),
            self._classes[last],
        )


def _shifted(quantiles: Floats, shift: float) -> Floats:
    return np.maximum(quantiles * float(np.exp(shift)), 1.0)
