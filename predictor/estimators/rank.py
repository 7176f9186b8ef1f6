"""Lengths by ranking: LambdaRank orders the requests, a table turns scores into lengths.

What vllm-ltr (arXiv 2408.15792) does with a ranking loss, on our features. A score has no unit,
so rows that the ranker has not seen tell which lengths go with which score:

    score -> its place among the held-out scores -> quantiles of the lengths seen around there
"""

from __future__ import annotations

import json
from pathlib import Path

import lightgbm as lgb
import numpy as np
from numpy.typing import NDArray

from lengthwise.predictor.distribution import Floats
from lengthwise.predictor.estimators.base import LengthRegressor
from lengthwise.predictor.estimators.boosting import booster_parameters, check_rows, load_booster
from lengthwise.predictor.estimators.trees import FlatTrees

_GRADES = 16
_FINE = np.linspace(0.005, 0.995, 199)


class LGBMRankRegressor(LengthRegressor):
    """LambdaRank on grades of length; longer answers rank higher.

    Cut answers count as ended where they were cut: their place among longer ones is not known.

    Parameters
    ----------
    query_rows : int
        Rows compared with one another; drawn at random, as a queue would hold them.
    steps : int
        Rows of the table from scores to lengths.
    n_estimators, learning_rate, num_leaves, min_child_samples, feature_fraction,
    bagging_fraction, reg_lambda, random_state, n_jobs
        As in `LGBMLengthRegressor`.
    """

    def __init__(
        self,
        query_rows: int = 200,
        steps: int = 25,
        n_estimators: int = 200,
        learning_rate: float = 0.05,
        num_leaves: int = 15,
        min_child_samples: int = 20,
        feature_fraction: float = 0.5,
        bagging_fraction: float = 0.8,
        reg_lambda: float = 1.0,
        random_state: int = 0,
        n_jobs: int = 1,
    ) -> None:
        self.query_rows = query_rows
        self.steps = steps
        self.n_estimators = n_estimators
        self.learning_rate = learning_rate
        self.num_leaves = num_leaves
        self.min_child_samples = min_child_samples
        self.feature_fraction = feature_fraction
        self.bagging_fraction = bagging_fraction
        self.reg_lambda = reg_lambda
        self.random_state = random_state
        self.n_jobs = n_jobs

    def _fit(self, X: Floats, log_y: Floats, weight: Floats, censored: NDArray[np.bool_]) -> None:
        check_rows(X)
        order = np.random.default_rng(self.random_state).permutation(len(X))
        held_out = max(1, len(X) // 5)
        ranked, told = order[held_out:], order[:held_out]
        edges = np.quantile(log_y, np.arange(1, _GRADES) / _GRADES)
        queries = [len(part) for part in np.array_split(ranked, -(-ranked.size // self.query_rows))]
        data = lgb.Dataset(
            X[ranked], np.searchsorted(edges, log_y[ranked]), weight=weight[ranked], group=queries
        )
        parameters = booster_parameters(self, X[ranked].shape) | {
            "objective": "lambdarank",
            "label_gain": list(range(_GRADES)),
            "lambdarank_truncation_level": self.query_rows,
        }
        self._set_booster(lgb.train(parameters, data, self.n_estimators))
        self._tabulate(self._scores(X[told]), log_y[told])

    def _tabulate(self, scores: Floats, log_y: Floats) -> None:
        """Quantiles of log-length in bands of scores, made to rise with the score."""
        order = np.argsort(scores, kind="stable")
        bands = np.array_split(order, max(1, min(self.steps, scores.size // 10)))
        self.at_ = np.array([scores[band].mean() for band in bands])
        rows = np.stack([np.quantile(log_y[band], _FINE) for band in bands])
        self.rows_ = np.sort(rows, axis=0)

    def _set_booster(self, booster: lgb.Booster) -> None:
        self.booster_ = booster
        self.trees_ = FlatTrees.from_model_text(booster.model_to_string(), outputs=1)

    def _scores(self, X: NDArray[np.floating]) -> Floats:
        return self.trees_.predict(X)[:, 0]

    def predict_log_quantiles(self, X: NDArray[np.floating], levels: Floats) -> Floats:
        """Between two bands the quantiles are linear in the score."""
        scores = self._scores(X)
        fine = np.stack([np.interp(scores, self.at_, column) for column in self.rows_.T], axis=1)
        return np.stack([np.interp(levels, _FINE, row) for row in fine])

    def save_files(self, directory: Path) -> None:
        """booster.txt and estimator.json."""
        self.booster_.save_model(str(directory / "booster.txt"))
        numbers = {"at": self.at_.tolist(), "rows": self.rows_.tolist()}
        (directory / "estimator.json").write_text(
            json.dumps(numbers | {"n_features": self.n_features_in_})
        )

    def load_files(self, directory: Path) -> None:
        """Read them back; InputError where a file is missing or truncated."""
        self._set_booster(load_booster(directory / "booster.txt"))
        numbers = json.loads((directory / "estimator.json").read_text())
        self.at_, self.rows_ = np.array(numbers["at"]), np.array(numbers["rows"])
        self.n_features_in_ = int(numbers["n_features"])
