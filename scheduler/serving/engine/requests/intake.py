"""From an engine request to a tracked one: its SLO, its length quantiles, its arrival.

Nothing a client sends may stop the engine, so whatever is malformed here (the middleware has
already refused what it saw) is counted and replaced: a bad SLO by best effort, a bad or absent
prediction by its class's prior.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from lengthwise.data.arrays import FloatArray
from lengthwise.data.slo import SloTable
from lengthwise.predictor.serving.correction import at_level
from lengthwise.predictor.serving.online_lengths import TOLD_LEVELS, FeatureRow, OnlineLengths
from lengthwise.scheduler.serving.engine.requests.request_table import Tracked
from lengthwise.scheduler.serving.priors import LengthPriors
from lengthwise.scheduler.serving.wire.answer_length import TOLD_LENGTHS, clip_to_max_tokens
from lengthwise.scheduler.serving.wire.hints import DOWNGRADED, Hints, OnFault

# An arrival stamped by the API process more than this ago, or in the future, is a clock's fault.
_LONGEST_TRANSIT_S = 60.0


@dataclass(frozen=True, slots=True)
class Arrival:
    """A request as the engine gives it; ``unix_s`` is the API process's stamp of its arrival.

    ``block_hashes`` are chained hashes of the prompt's full blocks, where the engine has them; no
    answer ends before ``min_tokens``.
    """

    request_id: str
    unix_s: float
    prompt_tokens: int
    max_tokens: int
    block_hashes: Sequence[Hashable] = ()
    min_tokens: int = 0


class Intake:
    """Builds ``Tracked`` rows; ``lengths`` and ``priors`` may be switched while serving.

    Learned lengths pass through ``online``, which follows a served model that answers otherwise
    than the one its predictor was trained on, in order too where it ``reads_features``.
    """

    def __init__(
        self,
        table: SloTable,
        priors: LengthPriors,
        lengths: str,
        on_fallback: OnFault,
        reads_features: bool = True,
    ) -> None:
        self.table = table
        self.priors = priors
        self.predictor_dir: str | None = None
        self.version: str | None = None  # of the predictor, once it was switched
        self._table_before = table
        self.lengths = lengths
        self.online = OnlineLengths()
        self.without_text = 0  # requests that gave nothing to predict on, which is nobody's fault
        self._on_fallback = on_fallback
        self._reads_features = reads_features

    def switch_table(self, table: SloTable) -> None:
        """Read SLOs by another table; requests on their way still know the classes of the last."""
        self._table_before, self.table = self.table, table

    def switch_predictor(self, priors: LengthPriors, directory: str, version: str | None) -> None:
        """Follow another predictor: its priors, and what answers tell of it, afresh."""
        self.priors, self.predictor_dir, self.version = priors, directory, version
        self.forget_lengths()

    def forget_lengths(self) -> None:
        """Learn the served model's lengths anew."""
        self.online = OnlineLengths()

    def note_length(self, tracked: Tracked, output_tokens: int, cut: bool) -> None:
        """Learn from a finished answer; one cut at ``max_tokens`` was at least that long."""
        if self._corrigible(tracked.length_source, tracked.predictor) and output_tokens > 0:
            levels = self.priors.levels
            quantiles = [at_level(level, levels, tracked.predicted) for level in TOLD_LEVELS]
            self.online.update(
                quantiles, output_tokens, tracked.slo.slo_class, cut, self._features(tracked)
            )

    def long_answer(self, tracked: Tracked) -> float:
        """The length that one answer in ten was expected to exceed, tokens."""
        return at_level(0.9, self.priors.levels, tracked.quantiles)

    def hints(self, xargs: Any) -> Hints:
        """What came with a request; faults are counted and count as not said."""
        tables = (self.table, self._table_before)
        return Hints.from_xargs(xargs, tables, len(self.priors.levels), self._on_fallback)

    def track(self, arrival: Arrival, hints: Hints, now_s: float, unix_s: float) -> Tracked:
        """The request as it arrives at ``now_s`` (monotonic) and ``unix_s`` (wall clock)."""
        slo = hints.promised
        predicted, source = self._quantiles(hints, slo.slo_class)
        transit_s = unix_s - arrival.unix_s
        if not 0.0 <= transit_s <= _LONGEST_TRANSIT_S:
            transit_s = 0.0
        tracked = Tracked(
            request_id=arrival.request_id,
            arrival_s=now_s - transit_s,
            arrival_unix_s=unix_s - transit_s,
            slo=slo,
            weight=self.table.weight(slo.slo_class),
            prompt_tokens=arrival.prompt_tokens,
            max_tokens=arrival.max_tokens,
            quantiles=predicted,
            predicted=predicted,
            length_source=source,
            predictor=hints.version,
            tenant=hints.tenant,
            admission=DOWNGRADED if hints.downgraded else None,
            feature_contract=hints.contract,
            features=hints.features,
            text_id=hints.text_id,
            whole=hints.whole,
            fleet_key=hints.fleet_key,
            min_tokens=arrival.min_tokens,
            reestimate_key=hints.reestimate_key,
            may_stop=hints.may_stop,
            shadow=hints.shadow_version,
            shadow_quantiles=None if hints.shadow is None else np.array(hints.shadow),
        )
        tracked.quantiles = self._planned_with(tracked, predicted)
        return tracked

    def reestimated(
        self, tracked: Tracked, quantiles: Sequence[float], version: str | None
    ) -> bool:
        """Take a better prediction, (q,) tokens, for a request; False where it is not wanted.

        That is where lengths are not learned, where the client's own is known, and where the
        prediction is of another predictor than the one that said the first.
        """
        if not self._wants(tracked, version):
            return False
        tracked.predicted, tracked.predictor = np.array(quantiles), version
        tracked.length_source = "learned"
        tracked.quantiles = self._planned_with(tracked, tracked.predicted)
        return True

    def opened(self, tracked: Tracked, quantiles: Sequence[float], version: str | None) -> bool:
        """Plan with lengths, (q,) tokens, that an answer's opening tells; False as above.

        What was predicted of the prompt stays: the log, the correction and drift go by that.
        """
        if tracked.length_source != "learned" or not self._wants(tracked, version):
            return False
        tracked.quantiles = self._planned_with(tracked, np.array(quantiles))
        return True

    def _wants(self, tracked: Tracked, version: str | None) -> bool:
        if self.lengths != "learned" or tracked.length_source not in ("learned", "prior"):
            return False
        if tracked.length_source == "learned" and tracked.predictor != version:
            return False
        return self._corrigible("learned", version)

    def _planned_with(self, tracked: Tracked, quantiles: FloatArray) -> FloatArray:
        """These lengths, corrected and within what the request allows."""
        if self._corrigible(tracked.length_source, tracked.predictor):
            levels, slo_class = self.priors.levels, tracked.slo.slo_class
            features = self._features(tracked) if self.online.in_force else None
            quantiles = self.online.correct(quantiles, levels, slo_class, features)
        quantiles = clip_to_max_tokens(quantiles, tracked.max_tokens)
        if tracked.min_tokens > 1:
            quantiles = np.maximum(quantiles, float(tracked.min_tokens))
        return quantiles

    def _quantiles(self, hints: Hints, slo_class: str) -> tuple[FloatArray, str]:
        if self.lengths == "none":
            return self.priors.pooled(), "none"
        if hints.quantiles is not None:
            return np.array(hints.quantiles), self.lengths
        if self.lengths == "class":
            return self.priors.gaussian(slo_class), "class"
        if hints.textless:
            self.without_text += 1
        else:
            self._on_fallback("no-prediction", None)
        return self.priors.prior(slo_class), "prior"

    def _features(self, tracked: Tracked) -> FeatureRow | None:
        """What the predictor read of the prompt, (f,); None where that is not known, or wanted."""
        if tracked.features is None or not self._reads_features:
            return None
        try:
            return np.array(tracked.features, np.float32)
        except (TypeError, ValueError, OverflowError):
            return None

    def _corrigible(self, source: str, version: str | None) -> bool:
        """Whether a length came from the predictor served now, not from a client."""
        if source != "learned" or version in TOLD_LENGTHS:
            return False
        return self.version is None or version == self.version
