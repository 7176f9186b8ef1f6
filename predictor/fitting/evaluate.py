"""Every metric of a predictor on rows it has not seen, beside baselines."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from lengthwise.predictor.distribution import Floats, LengthDistribution
from lengthwise.predictor.estimators.baselines import BASELINES
from lengthwise.predictor.estimators.rank import LGBMRankRegressor
from lengthwise.predictor.features.columns import PromptFeatures
from lengthwise.predictor.fitting import metrics
from lengthwise.predictor.fitting.fit import logged_features
from lengthwise.predictor.model import LengthPredictor

MIN_CLASS_ROWS = 20
RANKED = "lambdarank"  # the one baseline that reads the prompt
DEFAULT_BASELINES = ("class_quantiles", "class_gaussian", RANKED)
ALL_BASELINES = (*BASELINES, RANKED)


def evaluate(
    predictor: LengthPredictor,
    table_test: pd.DataFrame,
    table_train: pd.DataFrame | None = None,
    baselines: tuple[str, ...] = DEFAULT_BASELINES,
) -> dict[str, Any]:
    """Metrics of `predictor` on `table_test`, flat, and under "baselines" the same of each.

    Baselines are fitted on `table_train`; without it there are none but the oracle. Lengths in
    tokens; `coverage` is of the central 80 % interval; `pinball_gain` is 1 - pinball / pinball of
    the class quantiles.
    """
    result = evaluate_distribution(table_test, predict_table(predictor, table_test))
    others: dict[str, Any] = {}
    if table_train is not None:
        for name in baselines:
            if name == RANKED and table_train["prompt"].isna().all():
                continue
            predicted = baseline_distribution(name, table_train, table_test)
            others[name] = evaluate_distribution(table_test, predicted)
        if "class_quantiles" in others:
            reference = others["class_quantiles"]["pinball"]
            for row in (result, *others.values()):
                row["pinball_gain"] = 1.0 - row["pinball"] / reference
    others["oracle"] = evaluate_distribution(table_test, _oracle(predictor, table_test))
    result["baselines"] = others
    return result


def predict_table(predictor: LengthPredictor, table: pd.DataFrame) -> LengthDistribution:
    """Predictions for a table's rows: from text, or where no row has any from features."""
    classes = table["slo_class"].tolist()
    if "features" in table and table["prompt"].isna().all():
        return predictor.predict_features(logged_features(table), classes)
    return predictor.predict(table["prompt"].tolist(), classes, table["prompt_tokens"].tolist())


def evaluate_distribution(table: pd.DataFrame, predicted: LengthDistribution) -> dict[str, Any]:
    """Metrics of given distributions, (n,), for the rows of a table."""
    y = table["output_tokens"].to_numpy(np.float64)
    median = predicted.median()
    low, high = metrics.interval(predicted)
    taus = metrics.task_taus(y, median, metrics.task_names(table))
    classes = table["slo_class"].astype(str).to_numpy()
    return {
        "rows": len(table),
        "mae": metrics.mae(y, median),
        "within_25": metrics.within_25(y, median),
        "tau": metrics.kendall_tau(y, median),
        "within_task_tau": metrics.mean_tau(taus),
        "task_tau": taus,
        "pinball": metrics.pinball(y, predicted),
        "crps": metrics.crps(y, predicted),
        "coverage": metrics.coverage(y, low, high),
        "width": metrics.width(low, high),
        "by_class": {
            str(name): {
                "rows": int(rows.sum()),
                "mae": metrics.mae(y[rows], median[rows]),
                "coverage": metrics.coverage(y[rows], low[rows], high[rows]),
                "width": metrics.width(low[rows], high[rows]),
            }
            for name in np.unique(classes)
            if (rows := classes == name).sum() >= MIN_CLASS_ROWS
        },
    }


def baseline_columns(table: pd.DataFrame, classes: list[str]) -> NDArray[np.float64]:
    """Class code (-1 if not in `classes`) and prompt tokens, (n, 2)."""
    codes = table["slo_class"].map({name: i for i, name in enumerate(classes)}).fillna(-1)
    return np.column_stack((codes.to_numpy(float), table["prompt_tokens"].to_numpy(float)))


def baseline_distribution(
    name: str, table_train: pd.DataFrame, table_test: pd.DataFrame
) -> LengthDistribution:
    """A baseline of `predictor.baselines` (or "rank") fitted on one table, applied to another."""
    if name == RANKED:
        return _ranked_distribution(table_train, table_test)
    classes = sorted(table_train["slo_class"].astype(str).unique())
    model = BASELINES[name]()
    model.fit(baseline_columns(table_train, classes), table_train["output_tokens"].to_numpy(float))
    return model.predict_distribution(baseline_columns(table_test, classes))


def _ranked_distribution(table_train: pd.DataFrame, table_test: pd.DataFrame) -> LengthDistribution:
    """LambdaRank on what can be counted in a prompt, without its words."""
    with_text = table_train[table_train["prompt"].notna()]
    features = PromptFeatures(blocks=("structure", "request"))
    rows = features.fit_transform(with_text)
    model = LGBMRankRegressor().fit(rows, with_text["output_tokens"].to_numpy(float))
    return model.predict_distribution(features.transform(table_test))


def _oracle(predictor: LengthPredictor, table: pd.DataFrame) -> LengthDistribution:
    truth: Floats = table["output_tokens"].to_numpy(np.float64)
    return LengthDistribution.from_rows(
        predictor.levels, np.repeat(truth[:, None], len(predictor.levels), axis=1)
    )
