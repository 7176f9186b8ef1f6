"""Admission control in the API process: ask the engine before vLLM takes a request in.

A request must be refused before vLLM takes it in, and that happens in the API process; but queue,
running requests and plan live in the engine. So the middleware sends the engine a short question
by utility call and waits for the verdict, at most ``timeout_ms``. Where the engine is late or
fails, the request is admitted and ``lengthwise_admission_unanswered`` counts why. With several
engines (data parallel) the first is asked.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Mapping
from typing import Any

from lengthwise.scheduler.vllm_adapter.api.metrics import ApiMetrics
from lengthwise.scheduler.vllm_adapter.api.request_body import ParsedBody
from lengthwise.scheduler.vllm_adapter.settings import LOGGER_NAME, AdmissionSettings
from lengthwise.scheduler.vllm_adapter.wire import (
    ADMIT_METHOD,
    DOWNGRADED,
    Answer,
    Prediction,
    clipped,
)

logger = logging.getLogger(LOGGER_NAME)

_GRACE = 1.25  # a verdict made in time may still be on its way
_CHARS_PER_TOKEN = 4  # the prompt is not tokenised yet; its length matters little to the forecast


class AdmissionDesk:
    """Asks the engine about each request that has an objective."""

    def __init__(self, settings: AdmissionSettings, metrics: ApiMetrics) -> None:
        self._timeout_s = settings.timeout_ms / 1e3
        self._metrics = metrics
        self._failures = 0

    async def ask(self, core: Any, parsed: ParsedBody, prediction: Prediction | None) -> Answer:
        """The verdict on a request; to admit when there is none in time."""
        if parsed.slo.is_best_effort:
            return Answer()
        question = make_question(parsed, prediction, time.time() + self._timeout_s)
        try:
            call = core.call_utility_async(ADMIT_METHOD, question)
            verdict = dict(await asyncio.wait_for(call, _GRACE * self._timeout_s))
            return Answer(str(verdict["action"]), verdict.get("retry_after_s"))
        except TimeoutError:
            cause = "timeout"
        except Exception as error:  # whatever is wrong with the engine is not the client's fault
            cause = "error"
            self._failures += 1
            if self._failures % 1000 == 1:
                logger.warning("no verdict on admission (%d): %r", self._failures, error)
        self._metrics.admission_unanswered.labels(cause).inc()
        return Answer()


def make_question(
    parsed: ParsedBody, prediction: Prediction | None, deadline_unix_s: float
) -> dict[str, Any]:
    """What the engine must know of a request that has not come yet; plain values."""
    xargs: dict[str, Any] = dict(parsed.slo.to_xargs())
    if "tenant" in parsed.xargs:
        xargs["tenant"] = parsed.xargs["tenant"]
    if prediction is not None:
        xargs["pred_quantiles"] = clipped(prediction.quantiles, parsed.max_tokens)
        if prediction.version:
            xargs["pred_version"] = prediction.version
    characters = sum(map(len, parsed.prompts))
    return {
        "xargs": xargs,
        "prompt_tokens": 1 + characters // _CHARS_PER_TOKEN,
        "max_tokens": parsed.max_tokens,
        "deadline_unix_s": deadline_unix_s,
    }


def downgraded(xargs: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of a request that is served without promises; the engine drops its SLO."""
    return {**xargs, "lw_admission": DOWNGRADED}
