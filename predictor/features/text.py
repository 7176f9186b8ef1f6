"""The words of a prompt as a few dense columns: hashed TF-IDF, its SVD, and ridges on log-length.

Serving needs one matrix: row b holds what bucket b of the hash adds to every column, so a
prompt costs one gathered sum over its n-grams and no scikit-learn object.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import scipy.sparse as sp
from numpy.typing import ArrayLike, NDArray
from sklearn.decomposition import TruncatedSVD
from sklearn.utils.validation import check_is_fitted

from lengthwise.data.arrays import njit
from lengthwise.predictor.distribution import Floats
from lengthwise.predictor.features.ngrams import count_ngrams
from lengthwise.predictor.features.ridges import RidgedText, own_columns
from lengthwise.predictor.features.scan import encode, scan


@njit
def project(
    buckets: np.ndarray,
    counts: np.ndarray,
    row_of: np.ndarray,
    weights: np.ndarray,
    out: np.ndarray,
) -> None:
    """Columns of one prompt into `out`, (k,): sum over buckets of (1 + log count) idf, length 1.

    weights : (kept, k + 1) float32; the last column is idf, the others are already times idf.
    """
    out[:] = 0.0
    norm = 0.0
    columns = out.size
    rows = np.empty(buckets.size, np.int64)
    factors = np.empty(buckets.size, np.float64)
    used = 0
    # first which rows: their scattered memory is fetched side by side, not one after another
    for i in range(buckets.size):
        row = row_of[buckets[i]]
        if row < 0:
            continue
        tf = 1.0 + np.log(counts[i]) if counts[i] > 1.0 else 1.0  # most occur once
        norm += (tf * weights[row, columns]) ** 2
        rows[used] = row
        factors[used] = tf
        used += 1
    for i in range(used):
        row, tf = rows[i], factors[i]
        for column in range(columns):
            out[column] += tf * weights[row, column]
    if norm > 0.0:
        out /= np.sqrt(norm)


@njit
def project_tokens(
    text: np.ndarray,
    kinds: np.ndarray,
    hashes: np.ndarray,
    starts: np.ndarray,
    stops: np.ndarray,
    char_max: int,
    row_of: np.ndarray,
    weights: np.ndarray,
    out: np.ndarray,
) -> None:
    """Columns of one scanned prompt into `out`, (k,); see `project`."""
    buckets, counts = count_ngrams(text, kinds, hashes, starts, stops, char_max, row_of.size)
    project(buckets, counts, row_of, weights, out)


class HashedText(RidgedText):
    """Prompt texts to `components` SVD columns and, when fitted with lengths, two ridge columns.

    One ridge sees every row, the other is that of the row's class (`predictor.features.ridges`).

    Parameters
    ----------
    bits : int
        The hash has 2**bits buckets.
    char_max : int
        Longest run of characters counted; 0 for whole words only.
    components : int
        Columns of the truncated SVD of the TF-IDF matrix.
    min_prompts : int
        Buckets seen in fewer training prompts are ignored.
    alpha, min_class_rows, folds, random_state
        As in `RidgedText`.
    """

    def __init__(
        self,
        bits: int = 16,
        char_max: int = 0,
        components: int = 48,
        min_prompts: int = 2,
        alpha: float = 1.0,
        min_class_rows: int = 100,
        folds: int = 5,
        random_state: int = 0,
    ) -> None:
        self.bits = bits
        self.char_max = char_max
        self.components = components
        self.min_prompts = min_prompts
        self.alpha = alpha
        self.min_class_rows = min_class_rows
        self.folds = folds
        self.random_state = random_state

    def fit_transform(
        self,
        X: Sequence[str],
        y: ArrayLike | None = None,
        groups: Sequence[str] | None = None,
        classes: Sequence[str | None] | None = None,
    ) -> Floats:
        """Columns for the training rows, (n, k); the ridge columns are out of fold."""
        if len(X) == 0:
            raise ValueError("HashedText needs at least one text, got 0 samples")
        counts = self._count(X)
        n = counts.shape[0]
        frequency = np.asarray((counts > 0).sum(axis=0)).ravel()
        kept = np.flatnonzero(frequency >= min(self.min_prompts, n))
        self.row_of_ = np.full(1 << self.bits, -1, np.int32)
        self.row_of_[kept] = np.arange(kept.size, dtype=np.int32)
        idf = np.log((1.0 + n) / (1.0 + frequency[kept])) + 1.0
        tfidf = _unit_tfidf(counts[:, kept].astype(np.float64), idf)

        self.n_svd_ = int(min(self.components, n - 1, kept.size - 1)) if n > 1 else 0
        columns, directions = np.empty((n, 0)), np.empty((kept.size, 0))
        if self.n_svd_ > 0:
            svd = TruncatedSVD(self.n_svd_, random_state=self.random_state).fit(tfidf)
            # single precision is what serving holds, so the booster is trained on it too
            directions = svd.components_.T.astype(np.float32).astype(np.float64)
            columns = tfidf @ directions
        coefficients, held_out = self._fit_ridges(tfidf, y, groups, classes)
        directions = np.column_stack((directions, coefficients))
        self.weights_ = np.column_stack((directions * idf[:, None], idf)).astype(np.float32)
        return np.column_stack((columns, held_out))

    def transform(self, X: Sequence[str], classes: Sequence[str | None] | None = None) -> Floats:
        """Columns for any texts, (n, k)."""
        check_is_fitted(self, "weights_")
        sums = np.zeros((len(X), self.n_sums))
        for i, prompt in enumerate(X):
            text = encode(prompt)
            kinds, hashes, _, starts, stops = scan(text)
            project_tokens(
                text, kinds, hashes, starts, stops,
                self.char_max, self.row_of_, self.weights_, sums[i],
            )  # fmt: skip
        return self.columns(sums, classes or [None] * len(X))

    def read_nothing(self, n: int) -> Floats:
        """Be fitted without having looked at a text: n rows of no columns."""
        self.n_svd_, self.classes_, self.class_offsets_ = 0, [], np.zeros(0)
        self.weights_ = np.zeros((0, 1), np.float32)
        self.row_of_ = np.full(1 << self.bits, -1, np.int32)
        return np.empty((n, 0))

    def get_feature_names_out(self, input_features: object = None) -> NDArray[np.str_]:
        """Column names: text_svd_0 ..., text_ridge, text_class_ridge."""
        check_is_fitted(self, "weights_")
        names = [f"text_svd_{i}" for i in range(self.n_svd_)]
        return np.array(names + (["text_ridge", "text_class_ridge"] if self.has_ridge else []))

    @property
    def n_sums(self) -> int:
        """How many sums `project_tokens` fills: SVD, common ridge, one ridge a class."""
        return self.weights_.shape[1] - 1

    @property
    def n_columns(self) -> int:
        """How many feature columns they become."""
        return self.n_svd_ + 2 * self.has_ridge

    @property
    def has_ridge(self) -> bool:
        """Whether lengths were given at fit."""
        return self.n_sums > self.n_svd_

    def columns(self, sums: Floats, classes: Sequence[str | None]) -> Floats:
        """Sums, (n, n_sums), to feature columns, (n, k): each row's own class ridge is picked."""
        if not self.has_ridge:
            return sums
        split = self.n_svd_
        columns = np.empty((len(sums), self.n_columns))
        columns[:, :split] = sums[:, :split]
        columns[:, split:] = own_columns(
            sums[:, split:], self.classes_, self.class_offsets_, classes
        )
        return columns

    def _count(self, prompts: Sequence[str]) -> sp.csr_matrix:
        indptr, indices, values = [0], [], []
        for prompt in prompts:
            text = encode(prompt)
            kinds, hashes, _, starts, stops = scan(text)
            buckets, counts = count_ngrams(
                text, kinds, hashes, starts, stops, self.char_max, 1 << self.bits
            )
            order = np.argsort(buckets)
            indices.append(buckets[order])
            values.append(counts[order])
            indptr.append(indptr[-1] + len(buckets))
        return sp.csr_matrix(
            (np.concatenate(values), np.concatenate(indices), indptr),
            shape=(len(prompts), 1 << self.bits),
        )


def _unit_tfidf(counts: sp.csr_matrix, idf: Floats) -> sp.csr_matrix:
    """(1 + log count) idf, rows of length 1."""
    counts.data = 1.0 + np.log(counts.data)
    tfidf = (counts @ sp.diags_array(idf)).tocsr()
    norms = np.sqrt(np.asarray(tfidf.multiply(tfidf).sum(axis=1)).ravel())
    return (sp.diags_array(1.0 / np.where(norms > 0, norms, 1.0)) @ tfidf).tocsr()
