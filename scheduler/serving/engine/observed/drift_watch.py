"""The drift monitors in the engine: fed as requests end, told in the log, metrics and status."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from lengthwise.data.arrays import FloatArray
from lengthwise.predictor.serving.correction import at_level
from lengthwise.predictor.serving.drift import DriftEvent, DriftMonitor
from lengthwise.scheduler.serving.engine.engine_metrics import EngineMetrics
from lengthwise.scheduler.serving.engine.requests.request_table import Tracked
from lengthwise.scheduler.serving.settings import LOGGER_NAME
from lengthwise.scheduler.serving.wire.answer_length import TOLD_LENGTHS

logger = logging.getLogger(LOGGER_NAME)

_LEVELS = (0.1, 0.5, 0.9)


class DriftWatch:
    """Feeds a ``DriftMonitor`` with learned lengths; ``levels`` are those of the quantiles."""

    def __init__(self, levels: FloatArray, metrics: EngineMetrics) -> None:
        self._levels = levels
        places = np.searchsorted(levels, _LEVELS)
        on_grid = bool(np.isclose(levels[np.minimum(places, len(levels) - 1)], _LEVELS).all())
        self._places = places.tolist() if on_grid else None
        self._metrics = metrics
        self._monitor = DriftMonitor()
        self._told: set[str] = set()

    def note(self, tracked: Tracked, output_tokens: int, cut: bool, now_unix_s: float) -> None:
        """Learn from a finished request, if its length was the predictor's."""
        if tracked.length_source != "learned" or tracked.predictor in TOLD_LENGTHS:
            return
        events = self._monitor.update(
            self._three(tracked.predicted),
            output_tokens,
            self._metrics.class_label(tracked.slo.slo_class),
            now_unix_s,
            most_tokens=tracked.max_tokens,
            cut=cut,
            version=tracked.predictor,
        )
        if events:
            self._tell(events)

    def reset(self) -> None:
        """Forget everything; alarms end."""
        self._tell(self._monitor.reset())

    def update_gauges(self) -> None:
        """Bring the windows' gauges up to date; NaN where a window has too few rows."""
        by_class = self._monitor.figures()
        self._told.update(by_class)
        for name in self._told:
            figures = by_class.get(name, {})
            for gauge, key in (
                (self._metrics.coverage, "coverage"),
                (self._metrics.drift_ratio, "actual_over_predicted"),
            ):
                value = figures.get(key)
                gauge.labels(name).set(math.nan if value is None else value)

    def status(self) -> dict[str, Any]:
        """Plain values for the status endpoint."""
        return {
            "predictor": self._monitor.version,
            "alarms": [asdict(alarm) for alarm in self._monitor.alarms],
            "by_class": self._monitor.figures(),
        }

    def _three(self, predicted: FloatArray) -> Sequence[float]:
        if self._places is not None:
            return [float(predicted[place]) for place in self._places]
        return [at_level(level, self._levels, predicted) for level in _LEVELS]

    def _tell(self, events: list[DriftEvent]) -> None:
        for event in events:
            alarm = event.alarm
            self._metrics.drift_alarm.labels(alarm.slo_class, alarm.cause).set(float(event.raised))
            if event.raised:
                self._metrics.drift_alarms.labels(alarm.slo_class, alarm.cause).inc()
            logger.warning(
                "lengthwise drift %s: class %r, %s, %s",
                "alarm" if event.raised else "alarm over",
                alarm.slo_class,
                alarm.cause,
                f"{alarm.value:.0%} of answers inside the 80 % interval"
                if alarm.cause == "coverage"
                else f"answers {alarm.value:.2f} times as long as predicted",
            )
