"""Ridges on log-length over a text representation: one over all rows, one for each class.

The same word ("example", "return") asks for more in one kind of request and for nothing in
another, so a class with enough rows gets a ridge of its own. Columns for the training rows
themselves are out of fold, with whole groups held out, as in scikit-learn's TargetEncoder: a
booster would otherwise trust them too much.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import scipy.sparse as sp
from numpy.typing import ArrayLike, NDArray
from sklearn.linear_model import Ridge

from lengthwise.predictor.distribution import Floats

Matrix = sp.csr_matrix | Floats


@dataclass(frozen=True, eq=False)
class ClassRidges:
    """Coefficients, (k, 1 + classes), and what each class's mean adds to the common one."""

    coefficients: Floats
    classes: list[str]
    offsets: Floats

    @classmethod
    def fit(
        cls,
        matrix: Matrix,
        y: ArrayLike,
        classes: Sequence[str | None],
        groups: Sequence[str] | None,
        *,
        alpha: float,
        min_class_rows: int,
        folds: int,
        seed: int,
    ) -> tuple[ClassRidges, Floats]:
        """Ridges of lengths `y` (tokens, (n,)) on rows (n, k), and the rows' own columns (n, 2)."""
        log_y = np.log(np.maximum(np.asarray(y, np.float64), 1.0))
        labels = np.array([name or "" for name in classes])
        fold = _folds(log_y.size, groups, folds, seed)
        mean = log_y.mean()
        everyone = np.ones(log_y.size, bool)
        coefficients, common = _ridge(matrix, log_y - mean, fold, everyone, alpha)
        all_coefficients, own = [coefficients], common.copy()
        names, offsets = [], []
        for name in np.unique(labels):
            rows = labels == name
            if name and rows.sum() >= min_class_rows:
                center = log_y[rows].mean()
                coefficients, held_out = _ridge(matrix, log_y - center, fold, rows, alpha)
                names.append(str(name))
                offsets.append(center - mean)
                all_coefficients.append(coefficients)
                own[rows] = center - mean + held_out[rows]
        fitted = cls(np.column_stack(all_coefficients), names, np.array(offsets))
        return fitted, np.column_stack((common, own))


def own_columns(
    sums: Floats, ridge_classes: Sequence[str], offsets: Floats, classes: Sequence[str | None]
) -> Floats:
    """What the ridges say, (n, 1 + classes), as columns (n, 2): the common one and the row's own.

    A class without a ridge borrows the common one.
    """
    common = sums[:, 0]
    own = common.copy()
    at = {name: i for i, name in enumerate(ridge_classes)}
    for i, name in enumerate(classes):
        k = at.get(name, -1) if name is not None else -1
        if k >= 0:
            own[i] = offsets[k] + sums[i, 1 + k]
    return np.column_stack((common, own))


def _ridge(
    matrix: Matrix, target: Floats, folds: NDArray[np.intp], rows: NDArray[np.bool_], alpha: float
) -> tuple[Floats, Floats]:
    """Coefficients fitted on `rows`, and each of these rows predicted without its fold."""

    def fit(used: NDArray[np.bool_]) -> Floats:
        ridge = Ridge(alpha=alpha, fit_intercept=False, solver="lsqr", tol=1e-3)
        return ridge.fit(matrix[used], target[used]).coef_

    held_out = np.zeros(target.size)
    for fold in np.unique(folds):
        inside, outside = rows & (folds == fold), rows & (folds != fold)
        if inside.any() and outside.any():
            held_out[inside] = matrix[inside] @ fit(outside)
    return fit(rows), held_out


def _folds(n: int, groups: Sequence[str] | None, folds: int, seed: int) -> NDArray[np.intp]:
    """A fold for each row, the same for all rows of a group."""
    labels = np.arange(n) if groups is None else np.unique(groups, return_inverse=True)[1]
    rng = np.random.default_rng(seed)
    count = labels.max() + 1
    return rng.permutation(np.arange(count) % min(folds, count))[labels]
