"""What the LightGBM estimators share: parameters, the booster's trees, and a safe load."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import lightgbm as lgb
import numpy as np
from numpy.typing import NDArray

from lengthwise.data.errors import InputError
from lengthwise.predictor.distribution import Floats
from lengthwise.predictor.estimators.regressor import LengthRegressor
from lengthwise.predictor.estimators.trees import FlatTrees

_MIN_COLUMNS = 8
_FEW_ROWS = 100
_ENOUGH_ROWS = 200_000


@dataclass(eq=False, repr=False)  # the parameters are what scikit-learn reads off `__init__`
class BoosterRegressor(LengthRegressor):
    """One booster of one or more outputs, walked as flat trees.

    Parameters
    ----------
    n_estimators, learning_rate, num_leaves, min_child_samples, feature_fraction,
    bagging_fraction, reg_lambda
        As in LightGBM, made safe for few rows and columns.
    random_state : int
    n_jobs : int
        Threads for training; prediction uses one.
    """

    outputs: ClassVar[int] = 1

    n_estimators: int = 300
    learning_rate: float = 0.05
    num_leaves: int = 15
    min_child_samples: int = 20
    feature_fraction: float = 0.3
    bagging_fraction: float = 0.8
    reg_lambda: float = 1.0
    random_state: int = 0
    n_jobs: int = 1

    def importances(self) -> Floats:
        """As in `LengthRegressor`."""
        gain = lgb.Booster(model_str=self.text_).feature_importance("gain")
        return gain / max(gain.sum(), 1e-12)

    def save_files(self, directory: Path) -> None:
        """As in `LengthRegressor`, and booster.txt."""
        super().save_files(directory)
        (directory / "booster.txt").write_text(self.text_)

    def load_files(self, directory: Path) -> None:
        """As in `LengthRegressor`."""
        super().load_files(directory)
        self._set_booster(_booster_text(directory / "booster.txt"))

    def _train(self, data: lgb.Dataset, shape: tuple[int, ...], objective: dict[str, Any]) -> None:
        """Boost on rows of a shape, (n, f)."""
        booster = lgb.train(self._booster_parameters(shape) | objective, data, self.n_estimators)
        self._set_booster(booster.model_to_string())

    def _set_booster(self, text: str) -> None:
        self.text_ = text
        self.trees_ = FlatTrees.from_model_text(text, self.outputs)

    def _booster_parameters(self, shape: tuple[int, ...]) -> dict[str, Any]:
        n, columns = shape
        return {
            "learning_rate": self.learning_rate,
            "num_leaves": self.num_leaves,
            "min_data_in_leaf": max(1, min(self.min_child_samples, n // 10)),
            "min_data_in_bin": 3 if n >= _FEW_ROWS else 1,
            # a fraction of few columns would hide the telling one from most trees
            "feature_fraction": min(1.0, max(self.feature_fraction, _MIN_COLUMNS / columns)),
            "bagging_fraction": _bagged(self.bagging_fraction, n),
            "max_bin": 63,  # as accurate here as 255
            "bagging_freq": 1,
            "lambda_l2": self.reg_lambda,
            "seed": self.random_state,
            "num_threads": self.n_jobs,
            "deterministic": True,
            "force_row_wise": True,
            "verbose": -1,
        }


def _bagged(fraction: float, n: int) -> float:
    """Every row where they are few; of very many a tree sees enough."""
    return 1.0 if n < _FEW_ROWS else min(fraction, _ENOUGH_ROWS / n)


def check_rows(X: NDArray[np.floating]) -> None:
    """ValueError where there is nothing to split."""
    if len(X) < 2:
        raise ValueError(f"a booster needs at least 2 rows, got {len(X)} sample")
    if not (np.nanmax(X, axis=0) > np.nanmin(X, axis=0)).any():
        raise ValueError("a booster needs a feature that varies, all columns are constant")


def _booster_text(path: Path) -> str:
    """A booster's text file, which must be whole."""
    try:
        text = path.read_text()
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}") from error
    if "\nend of trees" not in text or "\nend of parameters" not in text:
        raise InputError(f"{path}: the booster file is truncated")
    try:
        lgb.Booster(model_str=text)
    except lgb.basic.LightGBMError as error:
        raise InputError(f"{path}: not a LightGBM model: {error}") from error
    return text
