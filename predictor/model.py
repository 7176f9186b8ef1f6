"""The predictor a server loads: prompts to length distributions, with priors for unknown text."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from data.errors import InputError
from predictor.base import LengthRegressor
from predictor.conformal import CalibratedLevels
from predictor.distribution import CAP_FACTOR, Floats, LengthDistribution
from predictor.features import PromptFeatures

ANY_CLASS = "*"  # the key of the prior over all classes
_MAX_LOG_TOKENS = float(np.log(86_400_000.0))


class LengthPredictor:
    """Features, estimator, calibration and class priors as one object.

    `card` says where it comes from: levels, data hash, metrics, priors. `version` is the label
    a registry gives it. Build one with `predictor.fit.fit_predictor` or `LengthPredictor.load`.
    """

    def __init__(
        self,
        features: PromptFeatures,
        estimator: LengthRegressor,
        calibration: CalibratedLevels,
        card: dict[str, Any],
    ) -> None:
        self.prompt_features = features
        self.estimator = estimator
        self.calibration = calibration
        self.card = card
        self.version = str(card.get("version", "unversioned"))
        self._levels = np.asarray(card["levels"], np.float64)
        self._columns = len(features.get_feature_names_out())

    @property
    def levels(self) -> tuple[float, ...]:
        """The grid of every distribution this predictor returns."""
        return tuple(float(level) for level in self.card["levels"])

    @property
    def feature_names(self) -> list[str]:
        """Names of the feature columns."""
        return [str(name) for name in self.prompt_features.get_feature_names_out()]

    @property
    def feature_contract(self) -> str:
        """Which feature rows this predictor can read; logged rows carry it."""
        return str(self.card["feature_contract"])

    @property
    def classes(self) -> list[str]:
        """Classes with a prior of their own."""
        return [name for name in self.card["class_priors"] if name != ANY_CLASS]

    def features(
        self,
        prompts: Sequence[str | None],
        slo_class: Sequence[str | None] | None = None,
        prompt_tokens: Sequence[int | None] | None = None,
    ) -> NDArray[np.float32]:
        """Feature rows, (n, f); NaN where the prompt is not text."""
        classes, tokens = self._known(len(prompts), slo_class, prompt_tokens)
        rows = self.prompt_features.rows([p or "" for p in prompts], classes, tokens)
        for i, prompt in enumerate(prompts):
            if prompt is None:
                rows[i] = np.nan
        return rows

    def predict(
        self,
        prompts: Sequence[str | None],
        slo_class: Sequence[str | None] | None = None,
        prompt_tokens: Sequence[int | None] | None = None,
        max_tokens: ArrayLike | None = None,
    ) -> LengthDistribution:
        """Length distributions of n prompts; a prompt that is not text gets its class's prior.

        `max_tokens`, a number or (n,), caps the lengths.
        """
        classes, tokens = self._known(len(prompts), slo_class, prompt_tokens)
        rows = self.prompt_features.rows([p or "" for p in prompts], classes, tokens)
        logs = self._log_quantiles(rows, classes)
        for i, prompt in enumerate(prompts):
            if prompt is None:
                logs[i] = np.log(self.class_prior(classes[i]))
        return self._distribution(logs, max_tokens)

    def predict_features(
        self,
        rows: NDArray[np.floating],
        slo_class: Sequence[str | None] | None = None,
        max_tokens: ArrayLike | None = None,
    ) -> LengthDistribution:
        """Length distributions from feature rows, (n, f), of this predictor's contract."""
        rows = np.asarray(rows, np.float32)
        if rows.ndim != 2 or rows.shape[1] != self._columns:
            raise InputError(f"feature rows must be (n, {self._columns}), got {rows.shape}")
        classes, _ = self._known(len(rows), slo_class, None)
        return self._distribution(self._log_quantiles(rows, classes), max_tokens)

    def class_prior(self, slo_class: str | None) -> Floats:
        """Quantiles of the class's answers in training, (q,); of all answers if unknown."""
        return self._prior("class_priors", slo_class)

    def class_gaussian(self, slo_class: str | None) -> Floats:
        """Quantiles of the paper's Gaussian a class, (q,), at least one token."""
        return self._prior("class_gaussian", slo_class)

    def save(self, directory: str | Path) -> None:
        """Write the artifact directory (see `predictor.artifact`)."""
        from predictor.artifact import save_predictor

        save_predictor(self, Path(directory))

    @classmethod
    def load(cls, directory: str | Path) -> LengthPredictor:
        """Read an artifact directory; InputError if anything is missing, truncated or foreign."""
        from predictor.artifact import load_predictor

        return load_predictor(Path(directory))

    def _log_quantiles(self, rows: NDArray[np.float32], classes: Sequence[str | None]) -> Floats:
        out = np.empty((len(rows), self._levels.size))
        if len(set(classes)) == 1:
            out[:] = self.estimator.predict_log_quantiles(rows, self.calibration.of(classes[0]))
            return out
        labels = np.array([name or "" for name in classes])
        for name in set(labels.tolist()):
            members = labels == name
            levels = self.calibration.of(name)
            out[members] = self.estimator.predict_log_quantiles(rows[members], levels)
        return out

    def _distribution(self, logs: Floats, max_tokens: ArrayLike | None) -> LengthDistribution:
        quantiles = np.exp(np.minimum(np.maximum(logs, 0.0), _MAX_LOG_TOKENS))
        np.maximum.accumulate(quantiles, axis=1, out=quantiles)
        if max_tokens is None:
            cap = CAP_FACTOR * quantiles[:, -1]
        else:
            cap = np.broadcast_to(np.maximum(np.asarray(max_tokens, np.float64), 1.0), len(logs))
            quantiles = np.minimum(quantiles, cap[:, None])
        return LengthDistribution.from_valid(self._levels, quantiles, cap)

    def _prior(self, table: str, slo_class: str | None) -> Floats:
        rows = self.card[table]
        return np.asarray(rows.get(slo_class or ANY_CLASS, rows[ANY_CLASS]), np.float64)

    @staticmethod
    def _known(
        n: int,
        slo_class: Sequence[str | None] | None,
        prompt_tokens: Sequence[int | None] | None,
    ) -> tuple[Sequence[str | None], Sequence[int | None]]:
        classes = [None] * n if slo_class is None else slo_class
        tokens = [None] * n if prompt_tokens is None else prompt_tokens
        if len(classes) != n or len(tokens) != n:
            raise InputError(
                f"slo_class and prompt_tokens must have {n} rows like prompts, "
                f"got {len(classes)} and {len(tokens)}"
            )
        return classes, tokens
