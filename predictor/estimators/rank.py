"""Lengths by ranking: LambdaRank orders the requests, a table turns scores into lengths.

What vllm-ltr (arXiv 2408.15792) does with a ranking loss, on our features. A score has no unit,
so rows that the ranker has not seen tell which lengths go with which score:

    score -> its place among the held-out scores -> quantiles of the lengths seen around there
"""

from __future__ import annotations

from dataclasses import dataclass

import lightgbm as lgb
import numpy as np
from numpy.typing import NDArray

from lengthwise.predictor.distribution import Floats
from lengthwise.predictor.estimators.boosting import BoosterRegressor, check_rows

_GRADES = 16
_FINE = np.linspace(0.005, 0.995, 199)


@dataclass(eq=False, repr=False)
class LGBMRankRegressor(BoosterRegressor):
    """LambdaRank on grades of length; longer answers rank higher.

    Cut answers count as ended where they were cut: their place among longer ones is not known.

    Parameters
    ----------
    query_rows : int
        Rows compared with one another; drawn at random, as a queue would hold them.
    steps : int
        Rows of the table from scores to lengths.

    The others as in `BoosterRegressor`.
    """

    learned = ("at", "rows", "members")

    n_estimators: int = 200
    feature_fraction: float = 0.5
    query_rows: int = 200
    steps: int = 25

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
        objective = {
            "objective": "lambdarank",
            "label_gain": list(range(_GRADES)),
            "lambdarank_truncation_level": self.query_rows,
        }
        self._train(data, X[ranked].shape, lambda _: objective)
        self._tabulate(self._scores(X[told]), log_y[told])

    def _tabulate(self, scores: Floats, log_y: Floats) -> None:
        """Quantiles of log-length in bands of scores, made to rise with the score."""
        order = np.argsort(scores, kind="stable")
        bands = np.array_split(order, max(1, min(self.steps, scores.size // 10)))
        self.at_ = np.array([scores[band].mean() for band in bands])
        rows = np.stack([np.quantile(log_y[band], _FINE) for band in bands])
        self.rows_ = np.sort(rows, axis=0)

    def _scores(self, X: NDArray[np.floating]) -> Floats:
        return self.trees_.predict(X)[:, 0]

    def predict_log_quantiles(self, X: NDArray[np.floating], levels: Floats) -> Floats:
        """Between two bands the quantiles are linear in the score."""
        scores = self._scores(X)
        fine = np.stack([np.interp(scores, self.at_, column) for column in self.rows_.T], axis=1)
        return np.stack([np.interp(levels, _FINE, row) for row in fine])
