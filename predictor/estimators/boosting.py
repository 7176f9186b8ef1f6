"""What the LightGBM estimators share: parameters, checks, and a safe load."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightgbm as lgb
import numpy as np
from numpy.typing import NDArray

from lengthwise.data.errors import InputError

_MIN_COLUMNS = 8
_FEW_ROWS = 100
_ENOUGH_ROWS = 200_000


def booster_parameters(estimator: Any, shape: tuple[int, ...]) -> dict[str, Any]:
    """LightGBM parameters from an estimator's own, made safe for few rows and columns."""
    n, columns = shape
    return {
        "learning_rate": estimator.learning_rate,
        "num_leaves": estimator.num_leaves,
        "min_data_in_leaf": max(1, min(estimator.min_child_samples, n // 10)),
        "min_data_in_bin": 3 if n >= _FEW_ROWS else 1,
        # a fraction of few columns would hide the telling one from most trees
        "feature_fraction": min(1.0, max(estimator.feature_fraction, _MIN_COLUMNS / columns)),
        "bagging_fraction": _bagged(estimator.bagging_fraction, n),
        "max_bin": 63,  # as accurate here as 255
        "bagging_freq": 1,
        "lambda_l2": estimator.reg_lambda,
        "seed": estimator.random_state,
        "num_threads": estimator.n_jobs,
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


def gain_shares(booster: lgb.Booster) -> NDArray[np.float64]:
    """Each column's share of the booster's total gain, (f,)."""
    gain = booster.feature_importance("gain")
    return gain / max(gain.sum(), 1e-12)


def load_booster(path: Path) -> lgb.Booster:
    """A booster from its text file, which must be whole."""
    try:
        text = path.read_text()
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}") from error
    if "\nend of trees" not in text or "\nend of parameters" not in text:
        raise InputError(f"{path}: the booster file is truncated")
    try:
        return lgb.Booster(model_str=text)
    except lgb.basic.LightGBMError as error:
        raise InputError(f"{path}: not a LightGBM model: {error}") from error
