"""A LightGBM booster for each quantile of log-length, sorted so that they do not cross."""

from __future__ import annotations

import json
from pathlib import Path

import lightgbm as lgb
import numpy as np
from numpy.typing import NDArray

from lengthwise.predictor.distribution import DEFAULT_LEVELS, Floats
from lengthwise.predictor.estimators.base import LengthRegressor
from lengthwise.predictor.estimators.boosting import booster_parameters, check_rows, load_booster
from lengthwise.predictor.estimators.trees import FlatTrees

GRID = DEFAULT_LEVELS


class LGBMQuantileRegressor(LengthRegressor):
    """Pinball loss, one model per level of the default grid; other levels are interpolated.

    The pinball loss has no word for "at least": cut answers count as ended where they were cut.
    Parameters as in `LGBMLengthRegressor`.
    """

    def __init__(
        self,
        n_estimators: int = 300,
        learning_rate: float = 0.05,
        num_leaves: int = 15,
        min_child_samples: int = 20,
        feature_fraction: float = 0.3,
        bagging_fraction: float = 0.8,
        reg_lambda: float = 1.0,
        random_state: int = 0,
        n_jobs: int = 1,
    ) -> None:
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
        data = lgb.Dataset(X, log_y, weight=weight, params=booster_parameters(self, X.shape))
        boosters = [
            lgb.train(
                booster_parameters(self, X.shape) | {"objective": "quantile", "alpha": level},
                data,
                self.n_estimators,
            )
            for level in GRID
        ]
        self._set([booster.model_to_string() for booster in boosters])

    def _set(self, texts: list[str]) -> None:
        self.texts_ = texts
        self.trees_ = [FlatTrees.from_model_text(text, outputs=1) for text in texts]

    def predict_log_quantiles(self, X: NDArray[np.floating], levels: Floats) -> Floats:
        """Sorted predictions, interpolated where `levels` is another grid."""
        rows = np.sort(np.hstack([trees.predict(X) for trees in self.trees_]), axis=1)
        if np.array_equal(levels, GRID):
            return rows
        return np.stack([np.interp(levels, GRID, row) for row in rows])

    def save_files(self, directory: Path) -> None:
        """booster_0.txt ... in the order of the grid, and estimator.json."""
        for i, text in enumerate(self.texts_):
            (directory / f"booster_{i}.txt").write_text(text)
        (directory / "estimator.json").write_text(json.dumps({"n_features": self.n_features_in_}))

    def load_files(self, directory: Path) -> None:
        """Read them back; InputError where a file is missing or truncated."""
        paths = [directory / f"booster_{i}.txt" for i in range(len(GRID))]
        self._set([load_booster(path).model_to_string() for path in paths])
        numbers = json.loads((directory / "estimator.json").read_text())
        self.n_features_in_ = int(numbers["n_features"])
