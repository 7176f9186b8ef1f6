"""A predictor that predicts the same requests without being obeyed: its errors are only logged.

It must cost the requests next to nothing, so it is asked at the same time as the champion, waits
less, and is left alone for a while when it keeps failing or being late.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence

from lengthwise.scheduler.serving.api.api_metrics import ApiMetrics
from lengthwise.scheduler.serving.api.predicting.batching import (
    BatchedPredictor,
    ServedPredictor,
)
from lengthwise.scheduler.serving.settings import LOGGER_NAME, ServerSettings
from lengthwise.scheduler.serving.wire.answer_length import Prediction

logger = logging.getLogger(LOGGER_NAME)

_MOST_BAD = 10  # this many requests without an answer, one after another, earn it a rest
_REST_S = 10.0


class Shadow:
    """The shadow predictor of a server; `predict` never raises and waits `shadow_timeout_ms`."""

    def __init__(
        self,
        served: ServedPredictor,
        settings: ServerSettings,
        metrics: ApiMetrics,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.served = served
        self._metrics = metrics
        self._clock = clock
        self._batched = BatchedPredictor(
            served,
            timeout_s=settings.shadow_timeout_ms / 1e3,
            outcomes=metrics.shadow_predictions,
        )
        self._bad = 0
        self._rests_until_s = -1.0

    async def predict(self, prompts: Sequence[str], slo_class: str) -> list[Prediction | None]:
        """The shadow's prediction for each prompt, or None."""
        if self._clock() < self._rests_until_s:
            self._metrics.shadow_predictions.labels("skipped").inc()
            return [None] * len(prompts)
        try:
            found = await self._batched.predict(prompts, slo_class)
        except Exception as error:  # whatever is wrong with it, the request goes on
            logger.warning("shadow %s: %r", self.served.version, error)
            found = [None] * len(prompts)
        self._bad = 0 if any(found) else self._bad + 1
        if self._bad >= _MOST_BAD:
            self._bad = 0
            self._rests_until_s = self._clock() + _REST_S
            logger.warning(
                "shadow %s gave no answer %d times in a row: not asked for %g s",
                self.served.version,
                _MOST_BAD,
                _REST_S,
            )
        return found
