"""Prometheus metrics of the API process, under ``lengthwise_``."""

from __future__ import annotations

from functools import lru_cache

from prometheus_client import Counter, Gauge, Histogram

_PREDICT_SECONDS = (1e-4, 5e-4, 1e-3, 2e-3, 5e-3, 1e-2, 2e-2, 5e-2, 0.1, 0.2, 0.5)
_READER_SECONDS = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0)


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
        self.shadow_predictions = Counter(
            "lengthwise_shadow_predictions",
            "Length predictions of the shadow, by how they ended.",
            ["outcome"],
        )
        self.reader_prompts = Counter(
            "lengthwise_reader_prompts",
            "Prompts that a causal reader was to read, by what became of that.",
            ["outcome"],
        )
        self.reader = Histogram(
            "lengthwise_reader_seconds",
            "From a request's quick estimate to the reader's, which replaces it.",
            buckets=_READER_SECONDS,
        )
        self.openings = Counter(
            "lengthwise_openings",
            "Openings of answers to estimate their lengths anew by, by what became of that.",
            ["outcome"],
        )
        self.reloads = Counter(
            "lengthwise_reloads",
            "Parts of the live file that changed, by what became of them.",
            ["what", "outcome"],
        )
        self.predictor_info = Gauge(
            "lengthwise_predictor_info",
            "1 for the versions loaded now.",
            ["role", "version"],
            multiprocess_mode="livemax",
        )
        self.unread = Counter(
            "lengthwise_unread_generations",
            "Sequences of routes that no reader knows, passed on untouched.",
            ["route"],
        )
        self.admission_unanswered = Counter(
            "lengthwise_admission_unanswered",
            "Requests admitted because the engine gave no verdict, by cause.",
            ["cause"],
        )
        self.fleet_decisions = Counter(
            "lengthwise_fleet_decisions",
            "Requests given to an engine, by what the choice rested on.",
            ["rung"],
        )
        self.fleet_unrouted = Counter(
            "lengthwise_fleet_unrouted",
            "Requests that the router chose no engine for, by cause: vLLM's or Ray's own choice.",
            ["cause"],
        )
        self.fleet_retries = Counter(
            "lengthwise_fleet_retries",
            "Requests sent again because their engine was lost before it answered.",
        )
        self.fleet_held = Gauge(
            "lengthwise_fleet_held",
            "Requests that the router holds back.",
            multiprocess_mode="livesum",
        )
        self.fleet_outstanding = Gauge(
            "lengthwise_fleet_outstanding",
            "Requests sent to the engine that have not ended.",
            ["engine"],
            multiprocess_mode="livesum",
        )
        self.fleet_work = Gauge(
            "lengthwise_predicted_work_seconds",
            "Predicted work left on the engine.",
            ["engine"],
            multiprocess_mode="livemax",
        )
        self.fleet_state_age = Gauge(
            "lengthwise_fleet_state_age_seconds",
            "Age of what the router knows of the engine.",
            ["engine"],
            multiprocess_mode="livemax",
        )

    def show_version(self, role: str, version: str | None, before: str | None) -> None:
        """Say which version has a role now; a series of another process's file cannot be removed,
        so the one before goes to 0."""
        if before is not None and before != version:
            self.predictor_info.labels(role, before).set(0)
        if version is not None:
            self.predictor_info.labels(role, version).set(1)


@lru_cache(maxsize=1)
def api_metrics() -> ApiMetrics:
    """The API process's metrics; one set a process, as the registry allows."""
    return ApiMetrics()
