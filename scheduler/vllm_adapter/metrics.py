"""Prometheus metrics of the API and the engine process, under ``lengthwise_``.

The two processes share ``PROMETHEUS_MULTIPROC_DIR`` (set by ``launch``), so vLLM's ``/metrics``
shows the engine's numbers too. ``prometheus_client`` reads that variable when it is imported.
"""

from __future__ import annotations

from functools import lru_cache

from prometheus_client import Counter, Gauge, Histogram

_SECONDS = (0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 20.0, 30.0, 60.0, 120.0, 300.0)
_PLAN_SECONDS = (1e-4, 2.5e-4, 5e-4, 1e-3, 2e-3, 5e-3, 1e-2, 2.5e-2, 0.1, 0.5)
_PREDICT_SECONDS = (1e-4, 5e-4, 1e-3, 2e-3, 5e-3, 1e-2, 2e-2, 5e-2, 0.1, 0.2, 0.5)
_RATIO = (0.1, 0.2, 0.33, 0.5, 0.67, 0.8, 0.9, 1.0, 1.1, 1.25, 1.5, 2.0, 3.0, 5.0, 10.0)

# Class names come from clients when the SLO table is empty; each is a time series.
_MOST_CLASSES = 32
_OTHER_CLASS = "other"


class EngineMetrics:
    """What the scheduler process counts."""

    def __init__(self) -> None:
        self._classes: set[str] = set()
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
        self.length_factor = Gauge(
            "lengthwise_length_correction",
            "Factor on learned lengths, from finished requests.",
            ["slo_class"],
            multiprocess_mode="livemax",
        )
        self.plan = Histogram("lengthwise_plan_seconds", "Time of a plan.", buckets=_PLAN_SECONDS)
        self.fallbacks = Counter(
            "lengthwise_fallbacks", "Times the scheduler fell back, by cause.", ["cause"]
        )
        self.queued = Gauge(
            "lengthwise_queue_length", "Requests waiting.", multiprocess_mode="livesum"
        )
        self.oldest_wait = Gauge(
            "lengthwise_oldest_wait_seconds",
            "Longest wait among those waiting now.",
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

    def class_label(self, slo_class: str) -> str:
        """The class as a label, or ``other`` beyond the first 32 classes seen."""
        if slo_class in self._classes:
            return slo_class
        if len(self._classes) >= _MOST_CLASSES:
            return _OTHER_CLASS
        self._classes.add(slo_class)
        return slo_class


class ApiMetrics:
    """What the API process counts."""

    def __init__(self) -> None:
        self.predict = Histogram(
            "lengthwise_predict_seconds",
            "Wait of a request for its prediction.",
            buckets=_PREDICT_SECONDS,
        )
        self.predictions = Counter(
            "lengthwise_predictions", "Length predictions, by how they ended.", ["outcome"]
        )
        self.rejected = Counter(
            "lengthwise_rejected", "Requests refused before the engine, by status.", ["code"]
        )
        self.admission_unanswered = Counter(
            "lengthwise_admission_unanswered",
            "Requests admitted because the engine gave no verdict, by cause.",
            ["cause"],
        )


@lru_cache(maxsize=1)
def engine_metrics() -> EngineMetrics:
    """The engine process's metrics; one set a process, as the registry allows."""
    return EngineMetrics()


@lru_cache(maxsize=1)
def api_metrics() -> ApiMetrics:
    """The API process's metrics; one set a process, as the registry allows."""
    return ApiMetrics()
