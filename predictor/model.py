"""The predictor a server loads: prompts to length distributions, with priors for unknown text.

A booster reads the feature row; where the predictor has a reader (a fine-tuned encoder), that
reads the text, and the log-quantiles of the two are averaged before the conformal levels. Where it
has a causal reader, what that says of a prompt replaces the rest. Once an answer has begun, its
opening says more (`reestimate`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from lengthwise.data.errors import InputError
from lengthwise.predictor import artifact
from lengthwise.predictor.conformal import ConformalLevels
from lengthwise.predictor.distribution import Floats, LengthDistribution
from lengthwise.predictor.estimators.regressor import LengthRegressor
from lengthwise.predictor.features.columns import PromptFeatures
from lengthwise.predictor.opening_reading import KNOWN_LEVELS, OpeningReading
from lengthwise.predictor.reading import CausalReading, Reading, by_levels

ANY_CLASS = "*"  # the key of the prior over all classes
_LONGEST_VERSION = 1024
_MAX_LOG_TOKENS = float(np.log(86_400_000.0))


class LengthPredictor:
    """Features, estimator, conformal levels and class priors as one object.

    `card` says where it comes from: levels, data hash, metrics, priors. `version` is the label
    a registry gives it. Build one with `lengthwise.fit_predictor` or `LengthPredictor.load`.
    """

    def __init__(
        self,
        features: PromptFeatures,
        estimator: LengthRegressor,
        conformal: ConformalLevels,
        card: dict[str, Any],
        reading: Reading | None = None,
        causal: CausalReading | None = None,
        openings: Sequence[OpeningReading] = (),
    ) -> None:
        self.prompt_features = features
        self.estimator = estimator
        self.conformal = conformal
        self.reading = reading
        self.causal = causal
        self.openings = {opening.tokens: opening for opening in openings}
        self.full: LengthPredictor | None = None
        self.card = card
        label = str(card.get("version", "unversioned"))[:_LONGEST_VERSION]
        self.version = label.encode("utf-8", "replace").decode()
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
        rows: NDArray[np.floating] | None = None,
    ) -> LengthDistribution:
        """Length distributions of n prompts; a prompt that is not text gets its class's prior.

        `max_tokens`, a number or (n,), caps the lengths; `rows` are the prompts' features where
        they have been computed already.
        """
        return self.read(prompts, slo_class, prompt_tokens, max_tokens, rows)[0]

    def read(
        self,
        prompts: Sequence[str | None],
        slo_class: Sequence[str | None] | None = None,
        prompt_tokens: Sequence[int | None] | None = None,
        max_tokens: ArrayLike | None = None,
        rows: NDArray[np.floating] | None = None,
    ) -> tuple[LengthDistribution, NDArray[np.bool_]]:
        """As `predict`, and which prompts the causal reader has read, (n,)."""
        classes, tokens = self._known(len(prompts), slo_class, prompt_tokens)
        texts = [p or "" for p in prompts]
        if rows is None:
            rows = self.prompt_features.rows(texts, classes, tokens)
        if self.reading is None:
            logs = self._log_quantiles(rows, classes)
        else:
            logs = self._read(self.reading, texts, rows, classes)
        was_read = np.zeros(len(texts), bool)
        if self.causal is not None:
            members, said = self.causal.log_quantiles(texts, rows, classes)
            logs[members], was_read[members] = said, True
        for i, prompt in enumerate(prompts):
            if prompt is None:
                logs[i] = np.log(self.class_prior(classes[i]))
        return self._distribution(logs, max_tokens), was_read

    def predict_features(
        self,
        rows: NDArray[np.floating],
        slo_class: Sequence[str | None] | None = None,
        max_tokens: ArrayLike | None = None,
    ) -> LengthDistribution:
        """Length distributions from feature rows, (n, f), of this predictor's contract.

        All that is left of a request whose text was not kept: a reader has no say here.
        """
        rows = np.asarray(rows, np.float32)
        if rows.ndim != 2 or rows.shape[1] != self._columns:
            raise InputError(f"feature rows must be (n, {self._columns}), got {rows.shape}")
        classes, _ = self._known(len(rows), slo_class, None)
        return self._distribution(self._log_quantiles(rows, classes), max_tokens)

    @property
    def opening_tokens(self) -> tuple[int, ...]:
        """After how many tokens of an answer `reestimate` can say more of it; ascending."""
        return tuple(sorted(self.openings))

    def reestimate(
        self,
        openings: Sequence[str],
        tokens: int,
        prompts: Sequence[str],
        slo_class: Sequence[str | None] | None = None,
        prompt_tokens: Sequence[int | None] | None = None,
    ) -> LengthDistribution:
        """Lengths of n whole answers, of which `openings` are the first `tokens` tokens.

        InputError where that is none of `opening_tokens`.
        """
        if tokens not in self.openings:
            known = ", ".join(map(str, self.opening_tokens)) or "none"
            raise InputError(f"tokens must be one of {known}, got {tokens}")
        if len(openings) != len(prompts):
            raise InputError(f"openings must have {len(prompts)} rows, got {len(openings)}")
        classes, counts = self._known(len(prompts), slo_class, prompt_tokens)
        rows = self.prompt_features.rows(prompts, classes, counts)
        said = self.estimator.predict_log_quantiles(rows, KNOWN_LEVELS)
        logs = self.openings[tokens].log_quantiles(openings, rows, said, classes)
        return self._distribution(logs, None)

    def class_prior(self, slo_class: str | None) -> Floats:
        """Quantiles of the class's answers in training, (q,); of all answers if unknown."""
        return self._prior("class_priors", slo_class)

    def class_gaussian(self, slo_class: str | None) -> Floats:
        """Quantiles of the paper's Gaussian a class, (q,), at least one token."""
        return self._prior("class_gaussian", slo_class)

    def without_conformal(self) -> LengthPredictor:
        """The same predictor without its conformal levels, to see what that changed."""
        none = ConformalLevels.none(self.levels)
        reading = self.reading and replace(self.reading, conformal=none)
        causal = self.causal and replace(self.causal, conformal=none)
        openings = [replace(one, conformal=none) for one in self.openings.values()]
        return LengthPredictor(
            self.prompt_features, self.estimator, none, self.card, reading, causal, openings
        )

    def without_reader(self) -> LengthPredictor:
        """The same predictor, which answers at once: its causal reader is not asked.

        `full` of it is this one.
        """
        parts = (self.prompt_features, self.estimator, self.conformal, self.card, self.reading)
        quick = LengthPredictor(*parts, openings=tuple(self.openings.values()))
        quick.full = self
        return quick

    def save(self, directory: str | Path) -> None:
        """Write the artifact directory (see `lengthwise.predictor.artifact`)."""
        card = self.card | {"version": self.version}
        parts = artifact.Parts(
            self.prompt_features,
            self.estimator,
            self.conformal,
            card,
            self.reading,
            self.causal,
            tuple(self.openings.values()),
        )
        artifact.write(Path(directory), parts)

    @classmethod
    def load(cls, directory: str | Path) -> LengthPredictor:
        """Read an artifact directory; InputError if anything is missing, truncated or foreign."""
        return cls(*artifact.read(Path(directory)))

    def _log_quantiles(self, rows: NDArray[np.floating], classes: Sequence[str | None]) -> Floats:
        if len(set(classes)) == 1:
            return self.estimator.predict_log_quantiles(rows, self.conformal.of(classes[0]))
        out = np.empty((len(rows), self._levels.size))
        for levels, members in by_levels(self.conformal, classes):
            out[members] = self.estimator.predict_log_quantiles(rows[members], levels)
        return out

    def _read(
        self,
        reading: Reading,
        texts: Sequence[str],
        rows: NDArray[np.floating],
        classes: Sequence[str | None],
    ) -> Floats:
        out = np.empty((len(rows), self._levels.size))
        for levels, members in by_levels(reading.conformal, classes):
            chosen = texts[members] if isinstance(members, slice) else [texts[i] for i in members]
            out[members] = reading.log_quantiles(self.estimator, rows[members], chosen, levels)
        return out

    def _distribution(self, logs: Floats, max_tokens: ArrayLike | None) -> LengthDistribution:
        quantiles = np.exp(np.minimum(np.maximum(logs, 0.0), _MAX_LOG_TOKENS))
        np.maximum.accumulate(quantiles, axis=1, out=quantiles)
        if max_tokens is None:
            return LengthDistribution.from_valid(self._levels, quantiles)
        cap = np.broadcast_to(np.maximum(np.asarray(max_tokens, np.float64), 1.0), len(logs))
        return LengthDistribution.from_valid(self._levels, np.minimum(quantiles, cap[:, None]), cap)

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
