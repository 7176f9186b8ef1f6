"""A causal reader as a few columns: components and ridges of its states, where they pay.

Optional (`predictor.reading.CausalReading`). A pass through the reader costs tens of milliseconds
of a core, two hundred times what everything else costs, and it tells nothing of many kinds of
requests; so it is asked only about classes for which its states, out of fold, explain enough of
what the words leave open. A row that it was not asked about, or could not read, has NaN in all its
columns.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.decomposition import PCA
from sklearn.linear_model import Ridge
from sklearn.model_selection import GroupKFold, cross_val_predict
from sklearn.utils.validation import check_is_fitted

from lengthwise.data.errors import InputError
from lengthwise.predictor.distribution import Floats
from lengthwise.predictor.features.ridges import ClassRidges, RidgedText, own_columns

logger = logging.getLogger("lengthwise.reader")

_CLIP = 6.0  # standard deviations
_DENSER = 1.25  # than the densest texts of training: a script that the ridges know nothing of
_LEAST_DENSITY = 0.5  # tokens a character


class CausalReader(RidgedText):
    """Prompt texts to `components` columns and two ridge columns; NaN where nothing was read.

    Parameters
    ----------
    model : str
        "smollm2", a folder, or a name on the hub (`reader_weights.reader_folder`); not trained.
    components : int
        Principal components of the standardised states.
    max_tokens : int
        How much of a prompt is read, the chat template included: its head and its tail.
    least_gain : float
        A class is read if the states explain this share of what the class's text ridge leaves of
        log-length, out of fold.
    sample_rows : int
        So many rows of a class are read to find that out.
    alphas : tuple of float
        Penalties of the ridges to choose from, out of fold.
    min_class_rows, folds, random_state
        As in `RidgedText`; a class with fewer rows is not read.
    """

    def __init__(
        self,
        model: str = "smollm2",
        components: int = 24,
        max_tokens: int = 96,
        least_gain: float = 0.1,
        sample_rows: int = 600,
        alphas: tuple[float, ...] = (30.0, 100.0, 300.0),
        min_class_rows: int = 100,
        folds: int = 5,
        random_state: int = 0,
    ) -> None:
        self.model = model
        self.components = components
        self.max_tokens = max_tokens
        self.least_gain = least_gain
        self.sample_rows = sample_rows
        self.alphas = alphas
        self.min_class_rows = min_class_rows
        self.folds = folds
        self.random_state = random_state

    def fit_transform(
        self,
        X: Sequence[str],
        y: ArrayLike | None = None,
        groups: Sequence[str] | None = None,
        classes: Sequence[str | None] | None = None,
        known: ArrayLike | None = None,
    ) -> Floats:
        """Columns for the training rows, (n, k), out of fold where they are ridges.

        `known` is what is known of their log-length without the reader, (n,), out of fold too.
        Where no class pays there are no columns. InputError without the reader's weights.
        """
        if y is None:
            raise ValueError("CausalReader needs the lengths y")
        log_y = np.log(np.maximum(np.asarray(y, np.float64), 1.0))
        labels = np.array([name or "" for name in (classes or [None] * len(X))])
        keys = np.arange(len(X)) if groups is None else np.unique(groups, return_inverse=True)[1]
        left = log_y if known is None else log_y - np.asarray(known, np.float64)
        from lengthwise.predictor.features.reader_states import causal_states  # torch

        states = causal_states(self.model, self.max_tokens)
        self.digest_, self.layers_, self.fault_ = states.digest, states.layers, None
        self.known_classes_ = sorted(set(labels.tolist()) - {""})
        self.gains_ = {
            name: gain
            for name in self.known_classes_
            if (gain := self._gain(X, left, keys, np.flatnonzero(labels == name))) is not None
        }
        self.read_classes_ = [n for n, gain in self.gains_.items() if gain >= self.least_gain]
        self.mean_ = self.scale_ = np.zeros(states.width)
        self.weights_, self.n_components_ = np.empty((states.width, 0)), 0
        self.center_, self.classes_, self.class_offsets_ = np.zeros(states.width), [], np.zeros(0)
        self.densest_ = np.inf
        asked = np.flatnonzero(np.isin(labels, self.read_classes_))
        if not asked.size:
            return np.empty((len(X), 0))
        read, density = states.read([X[i] for i in asked])
        there = np.isfinite(read).all(1)
        asked, read = asked[there], read[there].astype(np.float64)
        self.densest_ = max(_LEAST_DENSITY, _DENSER * float(np.quantile(density[there], 0.995)))
        self.mean_, self.scale_ = read.mean(0), read.std(0) + 1e-6
        z = self._standard(read)
        pca = PCA(min(self.components, *z.shape), random_state=self.random_state)
        components = pca.fit_transform(z)
        self.center_, self.n_components_ = pca.mean_, components.shape[1]
        ridges, held_out = self._ridges(z - self.center_, log_y[asked], keys[asked], labels[asked])
        self.classes_, self.class_offsets_ = ridges.classes, ridges.offsets
        self.weights_ = np.column_stack((pca.components_.T, ridges.coefficients))
        columns = np.full((len(X), self.n_components_ + 2), np.nan)
        columns[asked] = np.column_stack((components, held_out))
        return columns

    def transform(self, X: Sequence[str], classes: Sequence[str | None] | None = None) -> Floats:
        """Columns for any texts, (n, k); all NaN, and once a line in the log, without a reader."""
        check_is_fitted(self, "weights_")
        names = classes or [None] * len(X)
        out = self.unread(len(X))
        asked = [i for i, name in enumerate(names) if self.reads(name)]
        states = self.states() if asked and out.shape[1] else None
        if states is None:
            return out
        read, density = states.read([X[i] for i in asked])
        good = np.isfinite(read).all(1) & (density <= self.densest_)
        rows = np.array(asked)[good]
        if rows.size:
            sums = (self._standard(read[good].astype(np.float64)) - self.center_) @ self.weights_
            split = self.n_components_
            own = own_columns(
                sums[:, split:], self.classes_, self.class_offsets_, [names[i] for i in rows]
            )
            out[rows] = np.column_stack((sums[:, :split], own))
        return out

    def unread(self, n: int) -> Floats:
        """The columns of rows that nobody read, (n, k): NaN."""
        return np.full((n, self.n_components_ + 2 * (self.n_components_ > 0)), np.nan)

    def reads(self, slo_class: str | None) -> bool:
        """Whether requests of a class are read: those that pay, and those nobody has seen."""
        return slo_class in self.read_classes_ or slo_class not in self.known_classes_

    def states(self, *, fetch: bool = False):  # type: ignore[no-untyped-def]  # torch's
        """The loaded reader (`reader_states.CausalStates`), or None where it cannot be had.

        Why not stands in `fault_`, and once in the log. With `fetch` it may be downloaded.
        """
        if self.fault_ is not None:
            return None
        try:
            from lengthwise.predictor.features.reader_states import causal_states

            states = causal_states(self.model, self.max_tokens, fetch)
            if states.digest != self.digest_:
                raise InputError(
                    f"reader {self.model!r} has the weights {states.digest}, the predictor was "
                    f"trained with {self.digest_}: truncated, or another model"
                )
        except (InputError, ImportError) as error:
            self.fault_ = str(error)
            logger.warning("predicting without the reader: %s", error)
            return None
        return states

    def get_feature_names_out(self, input_features: object = None) -> NDArray[np.str_]:
        """Column names: reader_0 ..., reader_ridge, reader_class_ridge; none where nobody reads."""
        check_is_fitted(self, "weights_")
        if not self.n_components_:
            return np.zeros(0, np.str_)
        names = [f"reader_{i}" for i in range(self.n_components_)]
        return np.array([*names, "reader_ridge", "reader_class_ridge"])

    def _standard(self, states: Floats) -> Floats:
        """States in standard deviations, of a length that does not grow with their number."""
        z = np.clip((states - self.mean_) / self.scale_, -_CLIP, _CLIP)
        return z * (10.0 / np.sqrt(z.shape[1]))

    def _ridges(
        self, z: Floats, log_y: Floats, groups: NDArray[np.intp], labels: NDArray[np.str_]
    ) -> tuple[ClassRidges, Floats]:
        """The ridges of the penalty that is best out of fold, and the rows' own columns, (n, 2)."""
        found = []
        for alpha in self.alphas:
            ridges, held_out = ClassRidges.fit(
                z,
                np.exp(log_y),
                labels.tolist(),
                groups.astype(str).tolist(),
                alpha=alpha,
                min_class_rows=self.min_class_rows,
                folds=self.folds,
                seed=self.random_state,
            )
            error = float(np.square(log_y - log_y.mean() - held_out[:, 1]).mean())
            found.append((error, ridges, held_out))
        _, best, held_out = min(found, key=lambda one: one[0])
        return best, held_out

    def _gain(
        self, X: Sequence[str], left: Floats, groups: NDArray[np.intp], rows: NDArray[np.intp]
    ) -> float | None:
        """The share of what is left of a class's log-length that the states explain, out of fold.

        None where it has too few rows, or groups, to tell.
        """
        rows = np.array(sorted(rows, key=lambda i: _lot(X[i]))[: self.sample_rows], np.intp)
        if rows.size < self.min_class_rows:
            return None
        states = self.states(fetch=True)
        read, _ = states.read([X[i] for i in rows])
        there = np.isfinite(read).all(1)
        rows, read = rows[there], read[there].astype(np.float64)
        folds = min(self.folds, np.unique(groups[rows]).size)
        if rows.size < self.min_class_rows or folds < 2:
            return None
        z = np.clip((read - read.mean(0)) / (read.std(0) + 1e-6), -_CLIP, _CLIP)
        z *= 10.0 / np.sqrt(z.shape[1])
        said = cross_val_predict(
            Ridge(alpha=self.alphas[len(self.alphas) // 2], solver="cholesky"),
            z, left[rows], groups=groups[rows], cv=GroupKFold(folds),
        )  # fmt: skip
        return float(1.0 - np.var(left[rows] - said) / max(np.var(left[rows]), 1e-12))


def _lot(text: str) -> bytes:
    """A text's place in a draw: the same in every split, so that nothing is read twice for it."""
    return hashlib.blake2b(text.encode("utf-8", "replace"), digest_size=8).digest()
