"""From a request that was read to what its sequences are told; the same for every way in.

The HTTP middleware and the batch runner both end here: predict, ask for admission, keep texts, and
make the ``Call`` under which the server starts the sequences.
"""

from __future__ import annotations

import logging
import secrets
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from lengthwise.scheduler.serving.api.admission_desk import AdmissionDesk
from lengthwise.scheduler.serving.api.api_metrics import ApiMetrics
from lengthwise.scheduler.serving.api.body.request_body import ParsedRequest, hints_of
from lengthwise.scheduler.serving.api.body.texts import prompt_texts
from lengthwise.scheduler.serving.api.call import Call
from lengthwise.scheduler.serving.api.engines import Telling
from lengthwise.scheduler.serving.api.predicting.opening_desk import OpeningDesk
from lengthwise.scheduler.serving.api.predicting.prediction import PredictionService
from lengthwise.scheduler.serving.api.predicting.reader_desk import ReaderDesk
from lengthwise.scheduler.serving.settings import LOGGER_NAME, ServerSettings
from lengthwise.scheduler.serving.wire.admission_question import Answer
from lengthwise.scheduler.serving.wire.answer_length import Prediction
from lengthwise.scheduler.serving.wire.hints import Hints
from lengthwise.scheduler.serving.wire.utility_calls import WHOLE_ENDED_METHOD

logger = logging.getLogger(LOGGER_NAME)

_MOST_ROUTES = 32  # as labels of the count of unread generations
_EARLIER_TEXT = "earlier response"  # counted there too: it was not read


Said = tuple[Prediction | None, Prediction | None]
_NOTHING: Said = (None, None)


class PromptHints(Sequence[Hints]):
    """The hints of each prompt of a request, each made and given once, when its sequence starts:
    of thousands, nobody waits for all to be made or thrown away."""

    def __init__(self, parsed: ParsedRequest, said: Sequence[Said]) -> None:
        self.downgraded = False
        self._parsed = parsed
        self._said = list(said)

    def __len__(self) -> int:
        return len(self._said)

    def __getitem__(self, index: Any) -> Any:
        said, self._said[index] = self._said[index], _NOTHING
        return self._made(said, self._parsed.prompts[index])

    def longest(self) -> Hints | None:
        """Those of the sequence that is expected to take longest: the whole ends with it."""
        pairs = zip(self._said, self._parsed.prompts, strict=True)
        predicted = [pair for pair in pairs if pair[0][0] is not None]
        longest = max(predicted, key=lambda pair: _sum_of_quantiles(pair[0]), default=None)
        return None if longest is None else self._made(*longest)

    def _made(self, said: Said, text: str | None) -> Hints:
        return hints_of(self._parsed, *said, textless=text is None, downgraded=self.downgraded)


def _sum_of_quantiles(said: Said) -> float:
    return sum(said[0].quantiles) if said[0] is not None else 0.0


class Front:
    """The API process's side of one engine client."""

    def __init__(
        self, settings: ServerSettings, service: PredictionService, metrics: ApiMetrics
    ) -> None:
        self.service = service
        self.texts = prompt_texts(settings)
        self.reader = ReaderDesk(settings, service, metrics)
        self.openings = OpeningDesk(service, metrics)
        self.admission: AdmissionDesk | None = None
        if settings.admission.mode != "off":
            self.admission = AdmissionDesk(settings.admission, metrics)
        self.settings = settings
        self.metrics = metrics
        self._unread_routes: set[str] = set()
        self._attached: Any = None
        self._telling = Telling()

    def attach(self, engine_client: Any) -> None:
        """Stand before this engine client, of which a server may make another."""
        if engine_client is None or engine_client is self._attached:
            return
        self._attached = engine_client
        self.openings.attach(engine_client)
        self.stand_before(engine_client)

    def stand_before(self, engine_client: Any) -> None:
        """Come between this client and who starts sequences there, where that is not done yet."""

    async def prepare(self, parsed: ParsedRequest, core: Any) -> Call | Answer:
        """The call of an admitted request, or the engine's answer to one that is to be shed."""
        if parsed.lacks_history:
            self.count_unread(_EARLIER_TEXT)
        said = await self.service.predict_both(
            parsed.prompts, parsed.slo.slo_class, parsed.osl, parsed.fixed_tokens
        )
        hints = PromptHints(parsed, said)
        others = hints_of(parsed, None, textless=True)
        if self.admission is not None:
            answer = await self.admission.ask(
                core, hints.longest() or others, parsed.characters, parsed.max_tokens
            )
            if answer.action == "shed":
                return answer
            if answer.action == "downgrade":
                hints.downgraded = True
                others = replace(others, downgraded=True)
        return Call(
            hints,
            others=others,
            texts=parsed.prompts,
            keep=None if self.texts is None else self.texts.keep,
            read=partial(self.reader.take, core),
            watch=partial(self.openings.watch, core),
            over=partial(self._say_goodbye, core) if parsed.in_background else None,
            whole_id=secrets.token_hex(8),
            is_open=parsed.is_open,
            levels=self.service.levels if self.service.takes_told_lengths else 0,
            max_tokens=parsed.max_tokens,
        )

    def finished(self, call: Call, parsed: ParsedRequest, core: Any) -> None:
        """Tell the engine that no further parts of a request come; nobody waits for that."""
        if not parsed.in_background:
            self._say_goodbye(core, call)

    def _say_goodbye(self, core: Any, call: Call) -> None:
        if core is None or not call.announced:
            return
        self._telling.tell(core, WHOLE_ENDED_METHOD, call.whole_id)

    def count_unread(self, route: str) -> None:
        """A sequence begins of which nothing was read, on this route."""
        if route not in self._unread_routes and len(self._unread_routes) >= _MOST_ROUTES:
            route = "other"
        self._unread_routes.add(route)
        self.metrics.unread.labels(route).inc()
