"""Prometheus metrics of the engine process, under ``lengthwise_``.

It shares ``PROMETHEUS_MULTIPROC_DIR`` (set by ``launch``) with the API process, so vLLM's
``/metrics`` shows the engine's numbers too. ``prometheus_client`` reads that variable when it is
imported.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

from prometheus_client import Counter, Gauge, Histogram

from lengthwise.predictor.serving.drift import ALL_CLASSES, CAUSES

_SECONDS = (0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 20.0, 30.0, 60.0, 120.0, 300.0)
_PLAN_SECONDS = (1e-4, 2.5e-4, 5e-4, 1e-3, 2e-3, 5e-3, 1e-2, 2.5e-2, 0.1, 0.5)
_TOKENS = (1, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384)
_RATIO = (0.1, 0.2, 0.33, 0.5, 0.67, 0.8, 0.9, 1.0, 1.1, 1.25, 1.5, 2.0, 3.0, 5.0, 10.0)

# Class names come from clients when the SLO table is empty; each is a time series.
_MOST_CLASSES = 32
_OTHER_CLASS = "other"
# Reasons of degraded plans are a policy's own words, numbers taken out.
_MOST_REASONS = 8


class EngineMetrics:
    """What the scheduler process counts; ``engine`` labels the version of what serves."""

    def __init__(self, engine: str = "vllm") -> None:
        self._classes: set[str] = set()
        self._reasons: set[str] = set()
        self.requests = Counter(
            "lengthwise_requests",
            "Requests that ended, by class and outcome.",
            ["slo_class", "status"],
        )
        self.attained = Counter(
            "lengthwise_slo_attained", "Objectives met, by class.", ["slo_class", "objective"]
        )
        self.missed = Counter(
            "lengthwise_slo_missed", "Objectives missed, by class.", ["slo_class", "objective"]
        )
        self.requests_attained = Counter(
            "lengthwise_requests_attained", "Requests that met all objectives.", ["slo_class"]
        )
        self.requests_missed = Counter(
            "lengthwise_requests_missed", "Requests that missed an objective.", ["slo_class"]
        )
        self.ttft = Histogram(
            "lengthwise_ttft_seconds", "Arrival to first token.", ["slo_class"], buckets=_SECONDS
        )
        self.e2e = Histogram(
            "lengthwise_e2e_seconds", "Arrival to last token.", ["slo_class"], buckets=_SECONDS
        )
        self.wait = Histogram("lengthwise_wait_seconds", "Arrival to admission.", buckets=_SECONDS)
        self.length_ratio = Histogram(
            "lengthwise_predicted_over_actual",
            "Predicted median length over the actual one.",
            ["source"],
            buckets=_RATIO,
        )
        self.predicted_tokens = Histogram(
            "lengthwise_predicted_tokens",
            "Predicted median length of finished requests, tokens, cut at max_tokens.",
            ["slo_class"],
            buckets=_TOKENS,
        )
        self.output_tokens = Histogram(
            "lengthwise_output_tokens",
            "Actual length of the same requests, tokens.",
            ["slo_class"],
            buckets=_TOKENS,
        )
        self.length_error = Histogram(
            "lengthwise_length_error_tokens",
            "Distance of the predicted median from the actual length, tokens.",
            ["source"],
            buckets=_TOKENS,
        )
        self.length_factor = Gauge(
            "lengthwise_length_correction",
            "Factor on learned lengths, from finished requests.",
            ["slo_class"],
            multiprocess_mode="livemax",
        )
        self.length_residual = Gauge(
            "lengthwise_length_residual_in_force",
            "1 while learned lengths are mended by what answers told of prompts' features.",
            multiprocess_mode="livemax",
        )
        self.coverage = Gauge(
            "lengthwise_interval_coverage",
            "Share of the last answers inside their predicted 80 % interval.",
            ["slo_class"],
            multiprocess_mode="livemin",
        )
        self.drift_ratio = Gauge(
            "lengthwise_actual_over_predicted",
            "Median actual over predicted length of the last answers, before correction.",
            ["slo_class"],
            multiprocess_mode="livemostrecent",
        )
        self.drift_alarm = Gauge(
            "lengthwise_drift_alarm",
            "1 while the predictor's lengths (change, level) or intervals (coverage) are off.",
            ["slo_class", "cause"],
            multiprocess_mode="livemax",
        )
        self.drift_alarms = Counter(
            "lengthwise_drift_alarms", "Drift alarms raised.", ["slo_class", "cause"]
        )
        self.plan = Histogram("lengthwise_plan_seconds", "Time of a plan.", buckets=_PLAN_SECONDS)
        self.plan_budget = Gauge(
            "lengthwise_plan_budget_seconds",
            "The configured budget of a plan.",
            multiprocess_mode="livemax",
        )
        self.degraded = Counter(
            "lengthwise_plans_degraded", "Plans simpler than asked for, by reason.", ["reason"]
        )
        self.plans_adopted = Counter(
            "lengthwise_plans_adopted", "Plans whose order and limits the engine took."
        )
        self.plans_dropped = Counter(
            "lengthwise_plans_dropped", "Plans made and not adopted, by reason.", ["reason"]
        )
        self.plan_age = Gauge(
            "lengthwise_plan_age_seconds",
            "Age of the picture that the plan in force was made of; 0 without a plan.",
            multiprocess_mode="livemax",
        )
        self.plan_share = Gauge(
            "lengthwise_plan_processor_share",
            "Processor time of plans over the last half minute, in cores.",
            multiprocess_mode="livemax",
        )
        self.plan_trust = Gauge(
            "lengthwise_plan_trust",
            "1 while plans may have this part, 0 while it is withdrawn for promises not kept.",
            ["part"],
            multiprocess_mode="livemin",
        )
        self.plan_promise = Gauge(
            "lengthwise_plan_promise",
            "Share of the last requests that plans with this part promised to meet, and met.",
            ["part", "of"],
            multiprocess_mode="livemostrecent",
        )
        self.without_text = Counter(
            "lengthwise_without_text",
            "Requests with nothing to predict on: token ids, embeddings.",
        )
        self.fallbacks = Counter(
            "lengthwise_fallbacks", "Times the scheduler fell back, by cause.", ["cause"]
        )
        self.yields = Counter(
            "lengthwise_yields", "Running requests whose slot was given to another."
        )
        self.queued = Gauge(
            "lengthwise_queue_length", "Requests waiting.", multiprocess_mode="livesum"
        )
        self.oldest_wait = Gauge(
            "lengthwise_oldest_wait_seconds",
            "Longest wait among those waiting now.",
            multiprocess_mode="livemax",
        )
        self.longest_wait = Gauge(
            "lengthwise_longest_wait_seconds",
            "Longest wait for admission since start or reset.",
            multiprocess_mode="livemax",
        )
        self.max_wait = Gauge(
            "lengthwise_max_wait_seconds",
            "The configured wait after which a request goes first.",
            multiprocess_mode="livemax",
        )
        self.log_rows_dropped = Counter(
            "lengthwise_log_rows_dropped", "Rows that the request log lost."
        )
        self.build = Gauge(
            "lengthwise_build_info",
            "1; the labels are the versions of this package and of the engine.",
            ["version", engine],
            multiprocess_mode="livemax",
        )
        self.tenant_attained = Counter(
            "lengthwise_tenant_attained", "Requests that met their SLO, by tenant.", ["tenant"]
        )
        self.tenant_missed = Counter(
            "lengthwise_tenant_missed", "Requests that missed their SLO, by tenant.", ["tenant"]
        )
        self.jain = Gauge(
            "lengthwise_jain_index",
            "Jain's index over tenants, of recent attainment and of recent slot-seconds.",
            ["of"],
            multiprocess_mode="livemin",
        )
        self.shed = Counter(
            "lengthwise_shed",
            "Requests that admission control turned away or downgraded, by class.",
            ["slo_class", "action"],
        )
        self._start_drift(ALL_CLASSES)

    def show_server(
        self, plan_budget_s: float, max_wait_s: float, versions: Mapping[str, str | None]
    ) -> None:
        """Say what does not change while serving."""
        self.plan_budget.set(plan_budget_s)
        self.max_wait.set(max_wait_s)
        self.build.labels(*(version or "unknown" for version in versions.values())).set(1)

    def class_label(self, slo_class: str) -> str:
        """The class as a label, or ``other`` beyond the first 32 classes seen.

        Called when a request arrives, so that the class's counters stand at 0 before any outcome.
        """
        label = slo_class
        if label not in self._classes and len(self._classes) >= _MOST_CLASSES:
            label = _OTHER_CLASS
        if label not in self._classes:
            self._classes.add(label)
            self._start_series(label)
        return label

    def _start_series(self, slo_class: str) -> None:
        """Counters of a class from 0: what a series starts with is no increase to Prometheus."""
        for whole in (self.requests_attained, self.requests_missed):
            whole.labels(slo_class)
        for objective in ("ttft", "tpot", "e2e"):
            self.attained.labels(slo_class, objective)
            self.missed.labels(slo_class, objective)
        self._start_drift(slo_class)

    def _start_drift(self, slo_class: str) -> None:
        for cause in CAUSES:
            self.drift_alarms.labels(slo_class, cause)
            self.drift_alarm.labels(slo_class, cause)

    def reason_label(self, reason: str) -> str:
        """The reason of a degraded plan without its numbers; ``other`` beyond the first 8."""
        label = re.sub(r"\d[\d.]*", "N", reason)[:80]
        if label not in self._reasons and len(self._reasons) >= _MOST_REASONS:
            return _OTHER_CLASS
        self._reasons.add(label)
        return label


@lru_cache(maxsize=4096)
def series(metric: Any, *labels: str) -> Any:
    """The series of a metric with these labels, which ``labels`` looks up anew each time."""
    return metric.labels(*labels)


@lru_cache(maxsize=1)
def engine_metrics(engine: str = "vllm") -> EngineMetrics:
    """The engine process's metrics; one set a process, of one engine, as the registry allows."""
    return EngineMetrics(engine)
