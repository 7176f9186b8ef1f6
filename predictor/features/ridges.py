"""Ridges on log-length over a text representation: one over all rows, one for each class.

The same word ("example", "return") asks for more in one kind of request and for nothing in
another, so a class with enough rows gets a ridge of its own. Columns for the training rows
themselves are out of fold, with whole groups held out, as in scikit-learn's TargetEncoder: a
booster would otherwise trust them too much.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
import scipy.sparse as sp
from numpy.typing import ArrayLike, NDArray
from sklearn.linear_model import Ridge

from lengthwise.data.arrays import njit
from lengthwise.predictor.distribution import Floats
from lengthwise.predictor.estimators.regressor import TextTransformer
from lengthwise.predictor.folds import grouped_folds

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
        fold = grouped_folds(log_y.size, groups, folds, seed)
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


class RidgedText(TextTransformer):
    """What transformers of texts with ridge columns share; a subclass says how texts are read.

    Parameters
    ----------
    alpha : float
        Penalty of the ridges on log-length.
    min_class_rows : int
        A class with fewer training rows has no ridge of its own and borrows the common one.
    folds : int
        The ridge columns of the training rows themselves are out of fold: so
        `fit_transform(X, y)` differs from `fit(X, y).transform(X)` and is the one to train on.
    random_state : int
    """

    alpha: float
    min_class_rows: int
    folds: int
    random_state: int

    def fit(
        self,
        X: Sequence[str],
        y: ArrayLike | None = None,
        groups: Sequence[str] | None = None,
        classes: Sequence[str | None] | None = None,
    ) -> Self:
        """Learn the columns and, if lengths `y` (tokens, (n,)) are given, the ridges."""
        self.fit_transform(X, y, groups, classes)
        return self

    @abstractmethod
    def fit_transform(
        self,
        X: Sequence[str],
        y: ArrayLike | None = None,
        groups: Sequence[str] | None = None,
        classes: Sequence[str | None] | None = None,
    ) -> Floats:
        """Columns for the training rows, (n, k); the ridge columns are out of fold."""

    def _fit_ridges(
        self,
        matrix: Matrix,
        y: ArrayLike | None,
        groups: Sequence[str] | None,
        classes: Sequence[str | None] | None,
    ) -> tuple[Floats, Floats]:
        """Coefficients of rows (n, k), (k, 1 + classes), and the rows' own columns (n, 2)."""
        n, k = matrix.shape
        self.classes_: list[str] = []
        self.class_offsets_ = np.zeros(0)
        if y is None:
            return np.empty((k, 0)), np.empty((n, 0))
        ridges, held_out = ClassRidges.fit(
            matrix,
            y,
            classes or [None] * n,
            groups,
            alpha=self.alpha,
            min_class_rows=self.min_class_rows,
            folds=self.folds,
            seed=self.random_state,
        )
        self.classes_, self.class_offsets_ = ridges.classes, ridges.offsets
        return ridges.coefficients, held_out


def ridge_of(
    slo_class: str | None, ridge_classes: Sequence[str], offsets: Floats
) -> tuple[int, float]:
    """Which ridge is a class's own, and what its mean adds; -1 and 0 where it has none."""
    if slo_class not in ridge_classes:
        return -1, 0.0
    k = ridge_classes.index(slo_class)
    return k, float(offsets[k])


@njit
def fill_own(sums: np.ndarray, ridge: int, offset: float, out: np.ndarray) -> None:
    """What the ridges say of a row, (1 + classes,), as its two columns: the common one, its own.

    Without a ridge of its own (-1) a row borrows the common one.
    """
    out[0] = sums[0]
    out[1] = offset + sums[1 + ridge] if ridge >= 0 else sums[0]


def own_columns(
    sums: Floats, ridge_classes: Sequence[str], offsets: Floats, classes: Sequence[str | None]
) -> Floats:
    """The two columns of each row, (n, 1 + classes) to (n, 2)."""
    out = np.empty((len(sums), 2))
    for i, name in enumerate(classes):
        fill_own(sums[i], *ridge_of(name, ridge_classes, offsets), out[i])
    return out


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
