"""Admission control in the API process: ask the engine before vLLM takes a request in.

A request must be refused before vLLM takes it in, and that happens in the API process; but queue,
running requests and plan live in the engine. So the middleware sends the engine a short question
by utility call and waits for the verdict, at most ``timeout_ms``. Where the engine is late or
fails, the request is admitted and ``lengthwise_admission_unanswered`` counts why. Of several
engines each is asked, and what one of them would admit is admitted: the router finds it.
"""

from __future__ import annotations

import logging
import time
from typing import Any

from lengthwise.scheduler.fleet.beginnings import CHARS_PER_TOKEN
from lengthwise.scheduler.serving.api.api_metrics import ApiMetrics
from lengthwise.scheduler.serving.api.engines import Telling, ask_all
from lengthwise.scheduler.serving.settings import LOGGER_NAME, AdmissionSettings
from lengthwise.scheduler.serving.wire.admission_question import Answer, Question
from lengthwise.scheduler.serving.wire.hints import Hints
from lengthwise.scheduler.serving.wire.utility_calls import ACTED_METHOD, ADMIT_METHOD

logger = logging.getLogger(LOGGER_NAME)

_GRACE = 1.25  # a verdict made in time may still be on its way
_LENIENCE = {"admit": 0, "downgrade": 1, "shed": 2}


class AdmissionDesk:
    """Asks the engine about each request that has an objective."""

    def __init__(self, settings: AdmissionSettings, metrics: ApiMetrics) -> None:
        self._timeout_s = settings.timeout_ms / 1e3
        self._metrics = metrics
        self._failures = 0
        self._telling = Telling()

    async def ask(
        self, core: Any, hints: Hints, prompt_characters: int, max_tokens: int | None
    ) -> Answer:
        """The verdict on a request; to admit when there is none in time.

        Who has nothing to lose is not judged: best effort, and what was lost when it came.
        """
        if hints.slo.is_best_effort or hints.slo.is_lost:
            return Answer()
        question = Question(
            hints.for_planning(),
            prompt_tokens=1 + prompt_characters // CHARS_PER_TOKEN,
            max_tokens=max_tokens,
            deadline_unix_s=time.time() + self._timeout_s,
        )
        asked = await ask_all(
            core, ADMIT_METHOD, question.to_wire(), timeout_s=_GRACE * self._timeout_s
        )
        answers = [self._verdict(answer) for answer in asked.values()]
        taken = min(answers, key=lambda answer: _LENIENCE[answer.action], default=Answer())
        if taken.judge is not None:
            # the engine whose verdict was taken books it
            self._telling.tell(core, ACTED_METHOD, [taken.judge, question.to_wire(), taken.action])
        return taken

    def _verdict(self, answer: Any) -> Answer:
        try:
            if isinstance(answer, Exception):
                raise answer
            return Answer.from_wire(answer)
        except TimeoutError:
            cause = "timeout"
        except Exception as error:  # whatever is wrong with the engine is not the client's fault
            cause = "error"
            self._failures += 1
            if self._failures % 1000 == 1:
                logger.warning("no verdict on admission (%d): %r", self._failures, error)
        self._metrics.admission_unanswered.labels(cause).inc()
        return Answer()
