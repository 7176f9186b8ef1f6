"""What is learned from rows the estimators have not seen: calibration, and weights of parts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from lengthwise.predictor.conformal import SCORE_GRID, ConformalLevels, scores_of
from lengthwise.predictor.distribution import DEFAULT_LEVELS, Floats, LengthDistribution
from lengthwise.predictor.estimators.blend import LGBMBlendRegressor
from lengthwise.predictor.estimators.regressor import LengthRegressor
from lengthwise.predictor.fitting.metrics import pinball
from lengthwise.predictor.model import LengthPredictor
from lengthwise.predictor.reading import Reading, TextReader

_SHARES = tuple(float(share) for share in np.linspace(0.0, 1.0, 11))


@dataclass(frozen=True)
class HeldOut:
    """The calibration rows as the estimators see them."""

    texts: list[str]
    rows: NDArray[np.float32]
    log_y: Floats
    classes: list[str]

    @classmethod
    def of(cls, table: pd.DataFrame, rows: NDArray[np.float32]) -> HeldOut:
        """From a prompt table and its feature rows, (n, f)."""
        log_y = np.log(np.maximum(table["output_tokens"].to_numpy(np.float64), 1.0))
        texts, classes = table["prompt"].tolist(), table["slo_class"].tolist()
        return cls(texts, rows, log_y, classes)

    def conformal_levels(self, log_quantiles: Floats) -> ConformalLevels:
        """Which levels to ask for, given what was predicted on SCORE_GRID."""
        return ConformalLevels.fit(
            scores_of(log_quantiles, self.log_y), self.classes, DEFAULT_LEVELS
        )

    def best_share(self, first: Floats, second: Floats) -> float:
        """Weight of the first in the mean of two log-quantile tables with least pinball loss.

        The loss is that of what would be served: in tokens, after calibration.
        """
        return min(_SHARES, key=lambda share: self._loss(share * first + (1.0 - share) * second))

    def _loss(self, log_quantiles: Floats) -> float:
        levels, y = self.conformal_levels(log_quantiles), np.exp(self.log_y)
        served = np.stack(
            [
                np.interp(levels.of(name), SCORE_GRID, row)
                for name, row in zip(self.classes, log_quantiles, strict=True)
            ]
        )
        return pinball(y, LengthDistribution.from_rows(DEFAULT_LEVELS, np.exp(served)))


def conformal_levels(
    model: LengthRegressor, held_out: HeldOut, params: dict[str, Any]
) -> ConformalLevels:
    """Calibration of an estimator; a blend's share is fitted first, unless it was given."""
    if isinstance(model, LGBMBlendRegressor) and "hazard_share" not in params:
        hazard, student = (
            part.predict_log_quantiles(held_out.rows, SCORE_GRID)
            for part in (model.hazard_, model.student_)
        )
        model.set_params(hazard_share=held_out.best_share(hazard, student))
    return held_out.conformal_levels(model.predict_log_quantiles(held_out.rows, SCORE_GRID))


def reweighed(
    predictor: LengthPredictor, table_calibration: pd.DataFrame, share: float
) -> LengthPredictor:
    """The same parts with another share of the reader, calibrated anew."""
    assert predictor.reading is not None, "only a predictor with a reader has a share"
    held_out = HeldOut.of(table_calibration, predictor.prompt_features.transform(table_calibration))
    reading = weigh(predictor.reading.reader, predictor.estimator, held_out, share=share)
    card = predictor.card | {"reader": predictor.card["reader"] | {"share": share}}
    return LengthPredictor(
        predictor.prompt_features, predictor.estimator, predictor.conformal, card, reading
    )


def weigh(
    reader: TextReader, model: LengthRegressor, held_out: HeldOut | None, share: float | None
) -> Reading:
    """The reader's weight: fixed, or the best on rows held out."""
    if held_out is None:
        return Reading(
            reader, 0.5 if share is None else share, ConformalLevels.none(DEFAULT_LEVELS)
        )
    read = reader.log_quantiles(held_out.texts, SCORE_GRID)
    boosted = model.predict_log_quantiles(held_out.rows, SCORE_GRID)
    if share is None:
        share = held_out.best_share(read, boosted)
    return Reading(reader, share, held_out.conformal_levels(share * read + (1.0 - share) * boosted))
