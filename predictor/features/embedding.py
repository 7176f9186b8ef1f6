"""A frozen sentence encoder as a few columns: principal components and ridges on log-length.

Optional (block "embedding" of `PromptFeatures`): it costs a pass through the encoder for every
prompt, tens of milliseconds on a CPU, where all other features cost a twentieth of one.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.decomposition import PCA
from sklearn.utils.validation import check_is_fitted

from lengthwise.predictor.distribution import Floats
from lengthwise.predictor.features.ridges import RidgedText, own_columns


class SentenceEmbedding(RidgedText):
    """Prompt texts to `components` columns and, when fitted with lengths, two ridge columns.

    Parameters
    ----------
    encoder : str
        The packaged MiniLM, or any encoder transformers knows; it is not trained.
    components : int
        Principal components of the unit-length embeddings.
    alpha, min_class_rows, folds, random_state
        As in `RidgedText`.
    """

    def __init__(
        self,
        encoder: str = "packaged-minilm",
        components: int = 32,
        alpha: float = 1.0,
        min_class_rows: int = 100,
        folds: int = 5,
        random_state: int = 0,
    ) -> None:
        self.encoder = encoder
        self.components = components
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
            raise ValueError("SentenceEmbedding needs at least one text, got 0 samples")
        embedded = self._embed(X)
        pca = PCA(min(self.components, *embedded.shape), random_state=self.random_state)
        columns = pca.fit_transform(embedded)
        self.mean_, self.n_components_ = pca.mean_, columns.shape[1]
        coefficients, held_out = self._fit_ridges(embedded - self.mean_, y, groups, classes)
        self.weights_ = np.column_stack((pca.components_.T, coefficients))
        return np.column_stack((columns, held_out))

    def transform(self, X: Sequence[str], classes: Sequence[str | None] | None = None) -> Floats:
        """Columns for any texts, (n, k)."""
        check_is_fitted(self, "weights_")
        sums = (self._embed(X) - self.mean_) @ self.weights_
        split = self.n_components_
        if sums.shape[1] == split:
            return sums
        own = own_columns(
            sums[:, split:], self.classes_, self.class_offsets_, classes or [None] * len(X)
        )
        return np.column_stack((sums[:, :split], own))

    def get_feature_names_out(self, input_features: object = None) -> NDArray[np.str_]:
        """Column names: embedding_0 ..., embedding_ridge, embedding_class_ridge."""
        check_is_fitted(self, "weights_")
        names = [f"embedding_{i}" for i in range(self.n_components_)]
        ridges = ["embedding_ridge", "embedding_class_ridge"]
        return np.array(names + (ridges if self.weights_.shape[1] > len(names) else []))

    def _embed(self, texts: Sequence[str]) -> Floats:
        from lengthwise.predictor.estimators.encoder import (
            frozen_encoder,  # torch: only where the block is asked for
        )

        rows = frozen_encoder(self.encoder).embed(list(texts)).astype(np.float64)
        return rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)
