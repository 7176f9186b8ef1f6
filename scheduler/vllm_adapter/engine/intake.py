"""From an engine request to a tracked one: its SLO, its length quantiles, its arrival.

Nothing a client sends may stop the engine, so whatever is malformed here (the middleware has
already refused what it saw) is counted and replaced: a bad SLO by best effort, a bad or absent
prediction by its class's prior.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any

import numpy as np

from lengthwise.data.arrays import FloatArray
from lengthwise.data.errors import InputError
from lengthwise.data.slo import Slo, SloTable, parse_slo
from lengthwise.predictor.serving.correction import OnlineCorrection
from lengthwise.scheduler.vllm_adapter.engine.table import Tracked
from lengthwise.scheduler.vllm_adapter.priors import LengthPriors
from lengthwise.scheduler.vllm_adapter.wire import (
    CLIENT_LENGTH,
    DOWNGRADED,
    check_quantiles,
    clip_to_max_tokens,
    is_tenant,
)

# An arrival stamped by the API process more than this ago, or in the future, is a clock's fault.
_LONGEST_TRANSIT_S = 60.0

ON_FALLBACK = Callable[[str, object], None]


class Intake:
    """Builds ``Tracked`` rows; ``lengths`` and ``priors`` may be switched while serving.

    Learned lengths pass through ``correction``, which follows a served model that talks more or
    less than the one its predictor was trained on.
    """

    def __init__(
        self, table: SloTable, priors: LengthPriors, lengths: str, on_fallback: ON_FALLBACK
    ) -> None:
        self.table = table
        self.priors = priors
        self.version: str | None = None  # of the predictor, once it was switched
        self._table_before = table
        self.lengths = lengths
        self.correction = OnlineCorrection()
        self._on_fallback = on_fallback

    def switch_table(self, table: SloTable) -> None:
        """Read SLOs by another table; requests on their way still know the classes of the last."""
        self._table_before, self.table = self.table, table

    def switch_predictor(self, priors: LengthPriors, version: str | None) -> None:
        """Follow another predictor: its priors, and a correction that starts afresh."""
        self.priors, self.version = priors, version
        self.correction = OnlineCorrection()

    def note_length(self, tracked: Tracked, output_tokens: int, cut: bool) -> None:
        """Learn from a finished answer; one cut at ``max_tokens`` was at least that long."""
        if self._corrigible(tracked.length_source, tracked.predictor) and output_tokens > 0:
            quantiles = np.interp((0.1, 0.5, 0.9), self.priors.levels, tracked.predicted)
            self.correction.update(quantiles, output_tokens, tracked.slo.slo_class, cut)

    def track(self, request: Any, now_s: float, unix_s: float) -> Tracked:
        """The request as it arrives at ``now_s`` (monotonic) and ``unix_s`` (wall clock)."""
        params = request.sampling_params
        extra = (params.extra_args if params is not None else None) or {}
        if not isinstance(extra, Mapping):
            extra = {}
        slo = self._slo(extra)
        admission = _text(extra.get("lw_admission"))
        if admission == DOWNGRADED:
            slo = Slo(slo_class=slo.slo_class)
        predicted, source = self._quantiles(extra, slo.slo_class)
        quantiles = predicted
        version = _text(extra.get("pred_version"))
        if self._corrigible(source, version):
            quantiles = self.correction.correct(predicted, self.priors.levels, slo.slo_class)
        transit_s = unix_s - float(request.arrival_time)
        if not 0.0 <= transit_s <= _LONGEST_TRANSIT_S:
            transit_s = 0.0
        features = extra.get("lw_features")
        shadow = check_quantiles(extra.get("lw_shadow"), len(self.priors.levels))
        return Tracked(
            request_id=request.request_id,
            arrival_s=now_s - transit_s,
            arrival_unix_s=unix_s - transit_s,
            slo=slo,
            weight=self.table.weight(slo.slo_class),
            prompt_tokens=int(request.num_prompt_tokens),
            max_tokens=int(request.max_tokens),
            quantiles=clip_to_max_tokens(quantiles, request.max_tokens),
            predicted=predicted,
            length_source=source,
            predictor=version,
            tenant=extra["tenant"] if is_tenant(extra.get("tenant")) else None,
            admission=admission,
            feature_contract=_text(extra.get("lw_contract")),
            features=features if isinstance(features, list) else None,
            prompt=_text(extra.get("lw_prompt")),
            shadow=_text(extra.get("lw_shadow_version")) if shadow is not None else None,
            shadow_quantiles=shadow,
        )

    def _slo(self, extra: Mapping[str, Any]) -> Slo:
        try:
            return parse_slo(extra, {}, self.table)
        except InputError as error:
            with suppress(InputError):
                return parse_slo(extra, {}, self._table_before)
            self._on_fallback("slo", error)
            return Slo()

    def _quantiles(self, extra: Mapping[str, Any], slo_class: str) -> tuple[FloatArray, str]:
        if self.lengths == "none":
            return self.priors.pooled(), "none"
        given = extra.get("pred_quantiles")
        if given is not None:
            row = check_quantiles(given, len(self.priors.levels))
            if row is not None:
                return row, self.lengths
            self._on_fallback("bad-prediction", given)
        if self.lengths == "class":
            return self.priors.gaussian(slo_class), "class"
        self._on_fallback("no-prediction", None)
        return self.priors.prior(slo_class), "prior"

    def _corrigible(self, source: str, version: str | None) -> bool:
        """Whether a length came from the predictor served now, not from a client (``osl``)."""
        if source != "learned" or version == CLIENT_LENGTH:
            return False
        return self.version is None or version == self.version


def _text(value: Any) -> str | None:
    return value if isinstance(value, str) else None
