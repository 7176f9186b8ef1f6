"""What a prompt says of the served model's miss: a ridge on the rows that it has answered.

A predictor trained on another model's answers orders this model's requests by that model's habits.
The logarithm of true over predicted length, regressed on the prompt's own features, mends the
order too, from a hundred answers on:

    log(y / q_.5) ~ class, class x log q_.5, log(q_.9 / q_.1), squashed features

Squared errors in units of the predicted spread, beyond 1.5 of them by magnitude (Huber 1964).
Which penalty, and whether any of it is believed, decide the errors on rows left out one at a time:
against the medians by class, which `OnlineCorrection` knows anyway, the mean gain must be a
standard error. So of a predictor of the served model itself next to nothing is changed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lengthwise.data.arrays import njit
from lengthwise.predictor.distribution import Floats

MOST_SHIFT = 2.0  # log-tokens
_PENALTIES = (30.0, 100.0, 300.0, 1000.0, 3000.0)
_OF_LEVEL, _LEAST_OF_LEVEL = 0.03, 3.0  # the penalty on classes and predictions, of the features'
_HUBER = 1.5  # predicted standard deviations
_REWEIGHTINGS = 3
_LEAST_SCALE = 0.2  # log-tokens
_WIDTH_OF_SCALE = 2.563  # .1 to .9 of a normal distribution, in standard deviations
_FARTHEST = 3.0  # standard deviations of a feature
_LEAST_OF_CLASS = 10  # rows
_LEAST_KNOWN = 30  # rows whose length is not only bounded
_LEAST_LEFT = 0.05  # of a row's own weight in its fit


@dataclass(frozen=True, slots=True)
class Misses:
    """Answered requests, oldest first: features (n, f) float32, predicted .1, .5 and .9 quantiles
    (n, 3) and true lengths (n,) in tokens; of ``censored`` ones the answer was at least as long."""

    features: NDArray[np.float32]
    predicted: Floats
    output_tokens: Floats
    censored: NDArray[np.bool_]
    classes: Sequence[str]

    def __len__(self) -> int:
        return len(self.output_tokens)


@dataclass(frozen=True, slots=True)
class Residual:
    """A fitted shift of log-lengths; features as trained on, (f,) each.

    ``of_level`` are the coefficients of 1, log median and log width, the latter two less their
    ``centre``; ``of_class`` of a class's indicator and of that times log median.
    """

    means: Floats
    scales: Floats
    weights: Floats
    centre: tuple[float, float]
    of_level: tuple[float, float, float]
    of_class: Mapping[str, tuple[float, float]]

    def shift(
        self, features: NDArray[np.float32], predicted: Sequence[float], slo_class: str | None
    ) -> float:
        """What to add to the log-length of a prompt, log-tokens.

        `features` (f,) finite; `predicted` are its .1, .5 and .9 quantiles.
        """
        low, middle, high = np.log(predicted).tolist()
        median, width = middle - self.centre[0], high - low - self.centre[1]
        one, by_median, by_width = self.of_level
        own, own_by_median = self.of_class.get(slo_class or "", (0.0, 0.0))
        level = one + own + (by_median + own_by_median) * median + by_width * width
        told = squashed_dot(features, self.means, self.scales, self.weights)
        return min(max(level + told, -MOST_SHIFT), MOST_SHIFT)


def fit_residual(misses: Misses, least_gain: float = 1.0) -> tuple[Residual, Floats] | None:
    """A residual, and the shift (n,) of every row by the others; None where none is believed.

    That is where its mean gain is not above `least_gain` standard errors.
    """
    known = ~misses.censored
    if known.sum() < _LEAST_KNOWN:
        return None
    logs = np.log(misses.predicted)
    widths = logs[:, 2] - logs[:, 0]
    squashed = squash(misses.features)
    means, spreads = squashed.mean(0), squashed.std(0)
    spreads = np.where(spreads > 1e-3 * np.maximum(1.0, np.abs(means)), spreads, np.inf)
    classes = np.asarray(misses.classes, str)
    names = _frequent(classes)
    centre = float(logs[:, 1].mean()), float(widths.mean())
    level = _level_columns(classes, names, logs[:, 1] - centre[0], widths - centre[1])
    columns = np.clip((squashed - means) / spreads, -_FARTHEST, _FARTHEST)
    regression = _Regression(
        np.hstack([level, columns]),
        level.shape[1],
        np.log(misses.output_tokens) - logs[:, 1],
        np.maximum(widths / _WIDTH_OF_SCALE, _LEAST_SCALE),
        known,
    )
    weights = regression.row_weights(_PENALTIES[len(_PENALTIES) // 2])
    fits = [regression.fit(penalty, weights) for penalty in _PENALTIES]
    found, left_out = min(fits, key=lambda fit: regression.errors(fit[1]).mean())
    by_class = _medians(classes, names, regression.ratios, known)
    gains = regression.errors(by_class) - regression.errors(left_out)
    needed = least_gain * gains.std() / np.sqrt(len(gains))
    if not (np.isfinite(found).all() and gains.mean() > needed):
        return None
    of_level, of_features = np.split(found, [level.shape[1]])
    one, by_median, by_width, *of_class = of_level.tolist()
    pairs = zip(of_class[::2], of_class[1::2], strict=True)
    by_name = dict(zip(names, pairs, strict=True))
    fitted = Residual(means, spreads, of_features, centre, (one, by_median, by_width), by_name)
    return fitted, np.clip(left_out, -MOST_SHIFT, MOST_SHIFT)


def squash(features: NDArray[np.floating]) -> Floats:
    """Features of any size, to the size of their logarithm, with their sign."""
    wide = np.asarray(features, np.float64)
    return np.sign(wide) * np.log1p(np.abs(wide))


@njit
def squashed_dot(
    features: NDArray[np.float32], means: Floats, scales: Floats, weights: Floats
) -> float:
    """The weighted sum of one row's columns, as `fit_residual` builds them."""
    total = 0.0
    for i in range(len(weights)):
        value = float(features[i])
        squashed = np.log1p(abs(value))
        column = ((squashed if value >= 0.0 else -squashed) - means[i]) / scales[i]
        total += weights[i] * min(max(column, -_FARTHEST), _FARTHEST)
    return total


def warm_up() -> None:
    """Compile what a residual tells a prompt by."""
    squashed_dot(np.zeros(1, np.float32), np.zeros(1), np.ones(1), np.zeros(1))


@dataclass(frozen=True, slots=True)
class _Regression:
    """Log-ratios (n,) on columns (n, p), the first ``level_columns`` of them penalised less.

    ``scales`` (n,) are predicted standard deviations; rows not ``known`` are lower bounds.
    """

    columns: Floats
    level_columns: int
    ratios: Floats
    scales: Floats
    known: NDArray[np.bool_]

    def row_weights(self, penalty: float) -> Floats:
        """Weights (n,): by predicted spread, less for outliers, none for bounds that hold."""
        by_spread = self.scales**-2.0
        by_spread /= by_spread.mean()
        weights = by_spread * self.known
        for _ in range(_REWEIGHTINGS):
            weighted = self.columns * weights[:, None]
            normal = weighted.T @ self.columns + self._penalties(penalty)
            errors = self.ratios - self.columns @ np.linalg.solve(normal, weighted.T @ self.ratios)
            tame = np.minimum(1.0, _HUBER * self.scales / np.maximum(np.abs(errors), 1e-9))
            weights = by_spread * tame * (self.known | (errors > 0.0))
        return weights

    def fit(self, penalty: float, weights: Floats) -> tuple[Floats, Floats]:
        """Coefficients (p,), and what each row is told (n,) by a fit to the others."""
        weighted = self.columns * weights[:, None]
        inverse = np.linalg.inv(weighted.T @ self.columns + self._penalties(penalty))
        found = inverse @ (weighted.T @ self.ratios)
        own = np.einsum("ij,ij->i", self.columns @ inverse, weighted)
        errors = (self.ratios - self.columns @ found) / np.maximum(1.0 - own, _LEAST_LEFT)
        return found, self.ratios - errors

    def errors(self, shifts: Floats) -> Floats:
        """Of the known rows, in predicted standard deviations."""
        errors: Floats = np.abs(self.ratios - shifts)[self.known] / self.scales[self.known]
        return errors

    def _penalties(self, penalty: float) -> Floats:
        diagonal = np.full(self.columns.shape[1], penalty)
        diagonal[: self.level_columns] = max(_OF_LEVEL * penalty, _LEAST_OF_LEVEL)
        return np.diag(diagonal)


def _frequent(classes: NDArray[np.str_]) -> list[str]:
    names, counts = np.unique(classes, return_counts=True)
    return [str(name) for name in names[counts >= _LEAST_OF_CLASS]]


def _level_columns(
    classes: NDArray[np.str_], names: Sequence[str], median: Floats, width: Floats
) -> Floats:
    """1, log median, log width, and of each class an indicator and that times log median."""
    columns = [np.ones(len(median)), median, width]
    for name in names:
        is_it = classes == name
        columns += [is_it.astype(float), is_it * median]
    return np.column_stack(columns)


def _medians(
    classes: NDArray[np.str_], names: Sequence[str], ratios: Floats, known: NDArray[np.bool_]
) -> Floats:
    """The median ratio of each row's class, (n,); of all rows where the class has few."""
    out = np.full(len(ratios), np.median(ratios[known]))
    for name in names:
        of_class = classes == name
        if (of_class & known).any():
            out[of_class] = np.median(ratios[of_class & known])
    return out
