"""What became of each request: metrics, running tallies, and its row in the request log."""

from __future__ import annotations

import hashlib
from collections import Counter
from typing import Any

import numpy as np

from lengthwise.data.arrays import FloatArray
from lengthwise.data.request_log import RequestLogWriter
from lengthwise.scheduler.serving.engine.engine_metrics import EngineMetrics, series
from lengthwise.scheduler.serving.engine.observed.sequence_outcome import (
    ANSWERED,
    TELLS_LENGTH,
    Outcome,
)
from lengthwise.scheduler.serving.engine.observed.wholes import Parts, Wholes, together
from lengthwise.scheduler.serving.engine.requests.request_table import Tracked
from lengthwise.scheduler.serving.engine.requests.tenants import TenantTallies

_LONGEST_ID = 256


class OutcomeRecorder:
    """Takes each ended request once; the log is optional, and features in it."""

    def __init__(
        self,
        levels: FloatArray,
        metrics: EngineMetrics,
        log: RequestLogWriter | None,
        logs_features: bool = True,
    ) -> None:
        self._levels = levels
        self._level_names = [f"{level:g}" for level in levels]
        self._median = int(np.argmin(np.abs(levels - 0.5)))
        self._metrics = metrics
        self._log = log
        self._logs_features = logs_features
        self._counted_dropped = 0
        self.tallies: Counter[tuple[str, str]] = Counter()
        self.tenants = TenantTallies(metrics)
        self.wholes = Wholes()
        self._rows: dict[str, dict[str, Any]] = {}  # of parts whose request goes on

    def reset(self) -> None:
        """Start the tallies afresh."""
        self.tallies.clear()
        self.tenants.reset()

    def record(
        self,
        tracked: Tracked,
        outcome: Outcome,
        policy: str,
        lengths: str,
        policy_version: str | None = None,
    ) -> None:
        """Count the outcome and write its row; once for all parts of a request."""
        self._count_lengths(tracked, outcome)
        if self._log is not None:
            row = self._rows[tracked.request_id] = self._row(tracked, outcome, policy, lengths)
            row["policy_version"] = policy_version
            row.update(self._shadow(tracked))
        self._book(self.wholes.ended(tracked, outcome))

    def began(self, tracked: Tracked) -> None:
        """A sequence arrived."""
        self._book(self.wholes.began(tracked))

    def whole_ended(self, whole_id: str) -> None:
        """The client's request starts no further sequences."""
        self._book(self.wholes.closed(whole_id))

    def _book(self, parts: Parts) -> None:
        """Count a request of which all parts ended; its verdict stands in one of their rows."""
        if not parts:
            return
        tracked, outcome = together(parts)
        slo_class = self._metrics.class_label(tracked.slo.slo_class)
        met = outcome.met(tracked)
        self.tallies[slo_class, outcome.status] += 1
        if met is not None:
            self.tallies[slo_class, "met" if met else "missed"] += 1
            whole = self._metrics.requests_attained if met else self._metrics.requests_missed
            series(whole, slo_class).inc()
        self._count(tracked, outcome, slo_class)
        served_s = sum(one.e2e_s - one.queue_s for _, one in parts if one.queue_s is not None)
        self.tenants.note(tracked.tenant, met, served_s, tracked.arrival_s + outcome.e2e_s)
        for part, _ in parts:
            row = self._rows.pop(part.request_id, None)
            if self._log is not None and row is not None:
                row["met"] = met if part is tracked else None
                self._log.write(row)

    def by_class(self) -> dict[str, dict[str, int]]:
        """Tallies as ``{class: {"finished": 3, "met": 2, ...}}``."""
        table: dict[str, dict[str, int]] = {}
        for (slo_class, name), count in sorted(self.tallies.items()):
            table.setdefault(slo_class, {})[name] = count
        return table

    @property
    def dropped_rows(self) -> int:
        """Log rows lost to a full queue or a failing disk."""
        return 0 if self._log is None else self._log.dropped

    def count_dropped(self) -> None:
        """Bring the metric of lost rows up to date."""
        lost = self.dropped_rows
        self._metrics.log_rows_dropped.inc(lost - self._counted_dropped)
        self._counted_dropped = lost

    def close(self) -> None:
        """Write what is queued and close the log."""
        if self._log is not None:
            self._log.close()

    def _count(self, tracked: Tracked, outcome: Outcome, slo_class: str) -> None:
        metrics = self._metrics
        series(metrics.requests, slo_class, outcome.status).inc()
        if outcome.status not in ANSWERED:
            return
        series(metrics.e2e, slo_class).observe(outcome.e2e_s)
        if outcome.ttft_s is not None:
            series(metrics.ttft, slo_class).observe(outcome.ttft_s)
        slo = tracked.slo
        for objective, limit, measured in (
            ("ttft", slo.ttft_s, outcome.ttft_s),
            ("tpot", slo.tpot_s, outcome.tpot_s),
            ("e2e", slo.e2e_s, outcome.e2e_s),
        ):
            if limit is not None:
                held = measured is not None and measured <= limit
                counter = metrics.attained if held else metrics.missed
                series(counter, slo_class, objective).inc()

    def _count_lengths(self, tracked: Tracked, outcome: Outcome) -> None:
        """Of each sequence: what was expected of it, and what came."""
        metrics = self._metrics
        if outcome.status not in TELLS_LENGTH or outcome.output_tokens <= 0:
            return
        slo_class = metrics.class_label(tracked.slo.slo_class)
        expected = min(float(tracked.predicted[self._median]), tracked.max_tokens)
        error = abs(expected - outcome.output_tokens)
        series(metrics.length_error, tracked.length_source).observe(error)
        series(metrics.predicted_tokens, slo_class).observe(expected)
        series(metrics.output_tokens, slo_class).observe(outcome.output_tokens)
        ratio = expected / outcome.output_tokens
        series(metrics.length_ratio, tracked.length_source).observe(ratio)
        if tracked.shadow_quantiles is not None:
            shadow_ratio = tracked.shadow_quantiles[self._median] / outcome.output_tokens
            series(metrics.length_ratio, "shadow").observe(shadow_ratio)

    def _shadow(self, tracked: Tracked) -> dict[str, Any]:
        """What the shadow said, as keys of the row."""
        said = tracked.shadow_quantiles
        return {
            "shadow": tracked.shadow,
            "shadow_tokens": None if said is None else float(said[self._median]),
            "shadow_quantiles": None
            if said is None
            else dict(zip(self._level_names, said.tolist(), strict=True)),
        }

    def _row(self, tracked: Tracked, outcome: Outcome, policy: str, lengths: str) -> dict[str, Any]:
        slo = tracked.slo
        predicted = tracked.length_source in ("learned", "oracle")
        return {
            "request_id": _bounded(tracked.request_id),
            "arrival_unix_s": tracked.arrival_unix_s,
            "slo_class": slo.slo_class,
            "slo_ttft_ms": _ms(slo.ttft_s),
            "slo_tpot_ms": _ms(slo.tpot_s),
            "slo_e2e_ms": _ms(slo.e2e_s),
            "prompt_tokens": tracked.prompt_tokens,
            "max_tokens": tracked.max_tokens,
            "output_tokens": outcome.output_tokens,
            "status": outcome.status,
            "ttft_s": outcome.ttft_s,
            "tpot_s": outcome.tpot_s,
            "e2e_s": outcome.e2e_s,
            "queue_s": outcome.queue_s,
            "predicted_tokens": float(tracked.predicted[self._median]) if predicted else None,
            "quantiles": dict(zip(self._level_names, tracked.predicted.tolist(), strict=True))
            if predicted
            else None,
            "predictor": tracked.predictor,
            "policy": policy,
            "lengths": lengths,
            "feature_contract": tracked.feature_contract if self._logs_features else None,
            "features": tracked.features if self._logs_features else None,
            "text_id": tracked.text_id,
            "whole_id": None if tracked.whole is None else tracked.whole.whole_id,
            "tenant": tracked.tenant,
            "admission": tracked.admission,
        }


def _bounded(request_id: str) -> str:
    """A client may name its request with a whole text; of what is longer than names are, the
    log keeps a beginning and a hash."""
    if len(request_id) <= _LONGEST_ID:
        return request_id
    digest = hashlib.blake2b(request_id.encode("utf-8", "replace"), digest_size=16).hexdigest()
    return f"{request_id[:64]}...{digest}"


def _ms(seconds: float | None) -> float | None:
    return None if seconds is None else seconds * 1000.0
