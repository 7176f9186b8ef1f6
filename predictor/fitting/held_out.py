"""What is learned from rows the estimators have not seen: calibration, and weights of parts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from lengthwise.predictor.conformal import (
    SCORE_GRID,
    ConformalLevels,
    read_levels,
    scores_of,
)
from lengthwise.predictor.distribution import DEFAULT_LEVELS, Floats, LengthDistribution
from lengthwise.predictor.estimators.blend import LGBMBlendRegressor
from lengthwise.predictor.estimators.regressor import LengthRegressor
from lengthwise.predictor.fitting.metrics import pinball
from lengthwise.predictor.model import LengthPredictor
from lengthwise.predictor.reading import Reading, TextReader

_SHARES = tuple(float(share) for share in np.linspace(0.0, 1.0, 11))
_MOST_ROWS = 20_000


@dataclass(frozen=True)
class HeldOut:
    """Rows that who predicts them has not seen: their texts, log-lengths, (n,), and classes."""

    texts: list[str]
    log_y: Floats
    classes: NDArray[np.str_]

    @classmethod
    def of(cls, table: pd.DataFrame) -> HeldOut:
        """From a prompt table."""
        log_y = np.log(np.maximum(table["output_tokens"].to_numpy(np.float64), 1.0))
        return cls(table["prompt"].tolist(), log_y, table["slo_class"].fillna("").to_numpy(str))

    def conformal_levels(self, log_quantiles: Floats) -> ConformalLevels:
        """Which levels to ask for, given what was predicted on SCORE_GRID."""
        return ConformalLevels.fit(
            scores_of(log_quantiles, self.log_y), self.classes.tolist(), DEFAULT_LEVELS
        )

    def best_share(self, first: Floats, second: Floats) -> float:
        """Weight of the first in the mean of two log-quantile tables with least pinball loss.

        The loss is that of what would be served: in tokens, after calibration.
        """
        return min(_SHARES, key=lambda share: self._loss(share * first + (1.0 - share) * second))

    def _loss(self, log_quantiles: Floats) -> float:
        levels, y = self.conformal_levels(log_quantiles), np.exp(self.log_y)
        served = np.empty((y.size, len(DEFAULT_LEVELS)))
        for name in np.unique(self.classes):
            rows = self.classes == name
            served[rows] = read_levels(log_quantiles[rows], levels.of(str(name)))
        return pinball(y, LengthDistribution.from_rows(DEFAULT_LEVELS, np.exp(served)))


def conformal_levels(
    model: LengthRegressor,
    rows: NDArray[np.float32],
    held_out: HeldOut,
    params: dict[str, Any],
) -> ConformalLevels:
    """Calibration of an estimator on rows, (n, f), that it has not seen.

    A blend's shares are fitted first, unless they were given.
    """
    if isinstance(model, LGBMBlendRegressor):
        parts = {name: p.predict_log_quantiles(rows, SCORE_GRID) for name, p in model.fitted()}
        return _shared(model, parts, held_out, params)
    return held_out.conformal_levels(model.predict_log_quantiles(rows, SCORE_GRID))


def crossed_levels(
    model: LGBMBlendRegressor, table: pd.DataFrame, params: dict[str, Any], seed: int
) -> ConformalLevels:
    """Shares and calibration of a blend on its own training rows, each predicted out of fold.

    Of very many rows an even sample is enough.
    """
    rows: NDArray[np.intp] | slice = slice(None)
    if len(table) > _MOST_ROWS:
        rows = np.sort(np.random.default_rng(seed).choice(len(table), _MOST_ROWS, replace=False))
    parts = model.held_out_quantiles(SCORE_GRID, rows)
    levels = _shared(model, parts, HeldOut.of(table.iloc[rows]), params)
    model.forget_held_out()
    return levels


def _shared(
    model: LGBMBlendRegressor,
    parts: dict[str, Floats],
    held_out: HeldOut,
    params: dict[str, Any],
) -> ConformalLevels:
    """Sets the shares that were not given, and calibrates what they make of the parts."""
    others = {"hazard": "hazard_share", "nets": "net_share"}
    mean = parts["student"]
    for name, setting in others.items():
        if name not in parts:
            continue
        if setting not in params:
            model.set_params(**{setting: held_out.best_share(parts[name], mean)})
        share = getattr(model, setting)
        mean = (1.0 - share) * mean + share * parts[name]
        if share == 0.0:
            model.drop(name)
    return held_out.conformal_levels(mean)


def reweighed(
    predictor: LengthPredictor, table_calibration: pd.DataFrame, share: float
) -> LengthPredictor:
    """The same parts with another share of the reader, calibrated anew."""
    assert predictor.reading is not None, "only a predictor with a reader has a share"
    rows = predictor.prompt_features.transform(table_calibration)
    held_out = HeldOut.of(table_calibration)
    reading = weigh(predictor.reading.reader, predictor.estimator, rows, held_out, share=share)
    card = predictor.card | {"reader": predictor.card["reader"] | {"share": share}}
    return LengthPredictor(
        predictor.prompt_features, predictor.estimator, predictor.conformal, card, reading
    )


def weigh(
    reader: TextReader,
    model: LengthRegressor,
    rows: NDArray[np.float32],
    held_out: HeldOut | None,
    share: float | None,
) -> Reading:
    """The reader's weight: fixed, or the best on rows held out, (n, f) in features."""
    if held_out is None:
        return Reading(
            reader, 0.5 if share is None else share, ConformalLevels.none(DEFAULT_LEVELS)
        )
    read = reader.log_quantiles(held_out.texts, SCORE_GRID)
    boosted = model.predict_log_quantiles(rows, SCORE_GRID)
    if share is None:
        share = held_out.best_share(read, boosted)
    return Reading(reader, share, held_out.conformal_levels(share * read + (1.0 - share) * boosted))
