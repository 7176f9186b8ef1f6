"""Train a `LengthPredictor` from tables: features, estimator, calibration, priors."""

from __future__ import annotations

import datetime
from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.stats import norm

from data.errors import InputError
from predictor.artifact import estimator_class
from predictor.conformal import SCORE_GRID, CalibratedLevels, scores_of
from predictor.distribution import DEFAULT_LEVELS, Floats
from predictor.features import PromptFeatures
from predictor.model import ANY_CLASS, LengthPredictor
from predictor.text import HashedText

Progress = Callable[[str, float], None]  # what is being done, share done
_MIN_ROWS = 20
_MIN_CALIBRATION_ROWS = 30


def fit_predictor(
    table_train: pd.DataFrame,
    table_calibration: pd.DataFrame,
    *,
    estimator: str = "lightgbm",
    seed: int = 0,
    progress: Progress | None = None,
    blocks: tuple[str, ...] = ("structure", "text", "request"),
    text_params: dict[str, Any] | None = None,
    refit: bool = False,
    **params: Any,
) -> LengthPredictor:
    """Fit on `table_train` and calibrate on `table_calibration` (prompt tables of `data.table`).

    `params` go to the estimator. Rows without prompt text are left out. InputError where too few
    rows are left; with under 30 calibration rows the quantiles stay as the estimator gives them.
    With `refit` the final model sees the calibration rows too: its calibration, learned by a
    model that had not seen them, is then slightly on the wide side.
    """
    report = progress or (lambda _what, _share: None)
    train = table_train[table_train["prompt"].notna()]
    calibration = table_calibration[table_calibration["prompt"].notna()]
    if len(train) < _MIN_ROWS:
        raise InputError(f"training needs at least {_MIN_ROWS} rows with text, got {len(train)}")

    def fit(table: pd.DataFrame, start: float, stop: float) -> tuple[PromptFeatures, Any]:
        report("reading prompts", start)
        y = table["output_tokens"].to_numpy(np.float64)
        features = PromptFeatures(HashedText(random_state=seed, **(text_params or {})), blocks)
        rows = features.fit_transform(table, y, table["group"].astype(str).tolist())
        report("boosting", start + 0.4 * (stop - start))
        model = estimator_class(estimator)(**_with_seed(estimator, seed, params))
        return features, model.fit(rows, y, censored=censored_rows(table))

    levels = CalibratedLevels.none(DEFAULT_LEVELS)
    if len(calibration) < _MIN_CALIBRATION_ROWS:
        features, model = fit(train, 0.0, 1.0)
    else:
        features, model = fit(train, 0.0, 0.45 if refit else 0.95)
        report("calibrating", 0.45 if refit else 0.95)
        predicted = model.predict_log_quantiles(features.transform(calibration), SCORE_GRID)
        log_y = np.log(np.maximum(calibration["output_tokens"].to_numpy(np.float64), 1.0))
        levels = CalibratedLevels.fit(
            scores_of(predicted, log_y), calibration["slo_class"].tolist(), DEFAULT_LEVELS
        )
        if refit:
            train = pd.concat([train, calibration])
            train.attrs = table_train.attrs
            features, model = fit(train, 0.5, 1.0)
    card = make_card(train, estimator, model.get_params(), features.contract)
    report("done", 1.0)
    return LengthPredictor(features, model, levels, card)


def make_card(
    table: pd.DataFrame, estimator: str, params: dict[str, Any], contract: str
) -> dict[str, Any]:
    """Provenance and priors of a training table."""
    lengths = {ANY_CLASS: table["output_tokens"].to_numpy(np.float64)} | {
        str(name): part.to_numpy(np.float64)
        for name, part in table.groupby("slo_class")["output_tokens"]
    }
    return {
        "levels": list(DEFAULT_LEVELS),
        "feature_contract": contract,
        "estimator": {"name": estimator, "params": params},
        "tokenizer": table.attrs.get("tokenizer"),
        "served_model": sorted({str(model) for model in table["model"].unique()}),
        "source_label": table.attrs.get("source_label"),
        "data_sha256": table.attrs.get("data_sha256"),
        "train_rows": len(table),
        "class_priors": {name: _empirical(values) for name, values in lengths.items()},
        "class_gaussian": {name: _gaussian(values) for name, values in lengths.items()},
        "metrics": {},
        "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }


def censored_rows(table: pd.DataFrame) -> NDArray[np.bool_]:
    """Which answers were cut off, so that their length is a lower bound."""
    if "censored" not in table:
        return np.zeros(len(table), bool)
    return table["censored"].fillna(False).to_numpy(bool)


def _with_seed(estimator: str, seed: int, params: dict[str, Any]) -> dict[str, Any]:
    accepted = estimator_class(estimator)().get_params()
    unknown = sorted(set(params) - set(accepted))
    if unknown:
        raise InputError(
            f"unknown parameter {unknown[0]!r} of {estimator}; known: {sorted(accepted)}"
        )
    return ({"random_state": seed} if "random_state" in accepted else {}) | params


def _empirical(values: Floats) -> list[float]:
    return np.maximum(np.quantile(values, DEFAULT_LEVELS), 1.0).tolist()


def _gaussian(values: Floats) -> list[float]:
    return np.maximum(
        norm.ppf(DEFAULT_LEVELS, values.mean(), max(values.std(), 1e-6)), 1.0
    ).tolist()
