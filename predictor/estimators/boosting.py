"""What the LightGBM estimators share: parameters, the booster's trees, and a safe load."""

from __future__ import annotations

from collections.abc import Callable, Mapping
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
_SEED_STEP = 1009  # between the seeds of members

Rows = slice | NDArray[np.intp]


@dataclass(eq=False, repr=False)  # the parameters are what scikit-learn reads off `__init__`
class BoosterRegressor(LengthRegressor):
    """One booster of one or more outputs, or the mean of some, walked as flat trees.

    The members of a mean each leave a fold of the rows out, so that every row is predicted by one
    that has not seen it (`_train`).

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
    unwritten: ClassVar[Mapping[str, Any]] = {"members": 1}

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
        gains = [
            lgb.Booster(model_str=text).feature_importance("gain").astype(np.float64)
            for text in self.texts_
        ]
        gain = np.sum(gains, axis=0)
        return gain / max(gain.sum(), 1e-12)

    def save_files(self, directory: Path) -> None:
        """As in `LengthRegressor`, and a booster's text for each member."""
        super().save_files(directory)
        for k, text in enumerate(self.texts_):
            (directory / _text_name(k)).write_text(text)

    def load_files(self, directory: Path) -> None:
        """As in `LengthRegressor`."""
        super().load_files(directory)
        self._set_boosters([_booster_text(directory / _text_name(k)) for k in range(self.members_)])

    def _train(
        self,
        data: lgb.Dataset,
        shape: tuple[int, ...],
        objective: Callable[[Rows], dict[str, Any]],
        fold: NDArray[np.intp] | None = None,
    ) -> None:
        """Boost on rows of a shape, (n, f); with folds, (n,), once without each of them.

        `objective` says what to lower on the rows it is given.
        """
        parameters = self._booster_parameters(shape)
        members: list[Rows] = [slice(None)]
        if fold is not None:
            data.params = dict(parameters)  # a subset's must be the same
            members = [np.flatnonzero(fold != k) for k in range(fold.max() + 1)]
        texts = []
        for k, rows in enumerate(members):
            part = data if isinstance(rows, slice) else data.subset(rows.tolist()).construct()
            asked = parameters | {"seed": self.random_state + _SEED_STEP * k} | objective(rows)
            texts.append(lgb.train(asked, part, self.n_estimators).model_to_string())
        self._set_boosters(texts)

    def _set_boosters(self, texts: list[str]) -> None:
        self.texts_ = texts
        self.members_ = len(texts)
        self.trees_ = FlatTrees.from_model_texts(texts, self.outputs)

    def _member_trees(self) -> list[FlatTrees]:
        """Each member's own trees, as the mean holds them together."""
        return [FlatTrees.from_model_texts([text], self.outputs) for text in self.texts_]

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


def _text_name(member: int) -> str:
    return f"booster_{member}.txt" if member else "booster.txt"


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
