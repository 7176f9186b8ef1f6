"""Second estimates of answers that have begun, from the words that they have begun with.

vLLM's API process turns every token into text anyway, so an answer's opening lies there for
nothing, whether it is streamed or not. The event loop looks ten times a second at who has come far
enough; a thread asks the predictor about all of them, and the engine is told. Nobody waits for it:
an answer whose opening was not read goes on with the estimate of its prompt, and is counted.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

from lengthwise.predictor.features.opening_text import cut_to
from lengthwise.scheduler.serving.api.api_metrics import ApiMetrics
from lengthwise.scheduler.serving.api.predicting.estimate_sender import (
    EstimateSender,
    WireRow,
    wire_rows,
)
from lengthwise.scheduler.serving.api.predicting.prediction import PredictionService
from lengthwise.scheduler.serving.api.predicting.worker_thread import Work, WorkerThread
from lengthwise.scheduler.serving.settings import LOGGER_NAME
from lengthwise.scheduler.serving.wire.reestimate import Reestimate

if TYPE_CHECKING:
    from lengthwise.predictor.model import LengthPredictor

logger = logging.getLogger(LOGGER_NAME)

_LOOK_S = 0.1
_MOST_UNBEGUN = 256  # of those without a token that are looked at each time, in turn
_UNSEEN_S = 30.0  # a sequence that vLLM does not know after this never came to be
_MOST_AT_ONCE = 32
_MOST_WAITING = 1024  # openings; beyond, the oldest are let go
_STALE_S = 5.0  # an opening that waited so long tells little


@dataclass(slots=True)
class _Watched:
    """The sequences of one call of ``generate``: vLLM may make several samples of it.

    ``told`` says of each, by the engine's name for it, how many tokens of it were looked at.
    """

    core: Any
    request_id: str
    text: str
    slo_class: str
    since_s: float
    known: bool = False
    told: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class _Opening:
    core: Any
    name: str
    tokens: int
    opening: str
    text: str
    slo_class: str
    asked_s: float


class OpeningDesk:
    """Watches the answers of one engine client; does nothing without openings to go by.

    ``clock`` is monotonic seconds.
    """

    def __init__(
        self,
        service: PredictionService,
        metrics: ApiMetrics,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._service = service
        self._metrics = metrics
        self._clock = clock
        self._thread = WorkerThread("answer-openings")
        self._outputs: Any = None
        self._unbegun: deque[_Watched] = deque()
        self._begun: list[_Watched] = []
        self._asked: deque[_Opening] = deque()
        self._reading = False
        self._looking: asyncio.Task[None] | None = None
        self._faults = 0
        self._sender = EstimateSender()
        self.counts: Counter[str] = Counter()

    def attach(self, engine_client: Any) -> None:
        """Look at the outputs of this client of vLLM's, if it shows them."""
        outputs = getattr(engine_client, "output_processor", None)
        shows = hasattr(outputs, "request_states") and hasattr(outputs, "external_req_ids")
        self._outputs = outputs if shows else None

    def watch(self, core: Any, request_id: str, text: str, slo_class: str) -> None:
        """A sequence group begins, by vLLM's name for it, with this prompt. In the event loop."""
        if self._outputs is None or core is None or not self._predictor_openings():
            return
        self._unbegun.append(_Watched(core, request_id, text, slo_class, self._clock()))
        if self._looking is None or self._looking.done():
            self._looking = asyncio.get_running_loop().create_task(self._look_on())

    def status(self) -> dict[str, Any] | None:
        """After how many tokens it estimates anew and what came of it; None where it cannot."""
        tokens = self._predictor_openings()
        if not tokens:
            return None
        return {
            "after_tokens": list(tokens),
            "sees_outputs": self._outputs is not None,
            "watched": len(self._unbegun) + len(self._begun),
            "answers": dict(self.counts),
        }

    def close(self) -> None:
        """End the thread."""
        self._thread.close()

    def _predictor_openings(self) -> tuple[int, ...]:
        if self._service.lengths != "learned" or self._service.predictor is None:
            return ()
        return tuple(getattr(self._service.predictor, "opening_tokens", ()))

    async def _look_on(self) -> None:
        while self._unbegun or self._begun:
            await asyncio.sleep(_LOOK_S)
            try:
                self.look()
            except Exception as error:  # vLLM's state is not ours to rely on
                self._fault("looked at", error)
                self._unbegun.clear()
                self._begun.clear()

    def look(self) -> None:
        """Take the openings of those who have come far enough."""
        steps = self._predictor_openings()
        still: list[_Watched] = []
        for _ in range(min(len(self._unbegun), _MOST_UNBEGUN)):
            watched = self._unbegun.popleft()
            begun = self._take(watched, steps)
            if begun is not None:
                (still if begun else self._unbegun).append(watched)
        still += [one for one in self._begun if self._take(one, steps) is not None]
        self._begun = still
        while len(self._asked) > _MOST_WAITING:
            self._asked.popleft()
            self._count("busy")
        if self._asked and not self._reading:
            self._start(asyncio.get_running_loop())

    def _take(self, watched: _Watched, steps: Sequence[int]) -> bool | None:
        """Ask about what is new of it; whether it has begun, None for one that needs no watching.

        Of several openings that it has passed since, only the longest is asked about.
        """
        states = list(self._states(watched.request_id))
        if not states or not steps:
            is_new = not watched.known and self._clock() - watched.since_s < _UNSEEN_S
            return False if steps and is_new else None
        watched.known = True
        begun, done = False, True
        for name, state in states:
            detokenizer = state.detokenizer
            if detokenizer is None:
                continue
            generated = detokenizer.num_output_tokens()
            begun = begun or generated > 0
            passed = max((step for step in steps if step <= generated), default=0)
            if passed > watched.told.get(name, 0):
                watched.told[name] = passed
                text = getattr(detokenizer, "output_text", "")  # none where only ids are wanted
                self._ask(watched, name, passed, cut_to(text, generated, passed))
            done = done and watched.told.get(name, 0) == steps[-1]
        return None if done else begun

    def _states(self, request_id: str) -> Iterator[tuple[str, Any]]:
        for name in self._outputs.external_req_ids.get(request_id, ()):
            state = self._outputs.request_states.get(name)
            if state is not None:
                yield name, state

    def _ask(self, watched: _Watched, name: str, tokens: int, opening: str) -> None:
        if not opening:
            self._count("textless")
            return
        asked_s = self._clock()
        self._asked.append(
            _Opening(watched.core, name, tokens, opening, watched.text, watched.slo_class, asked_s)
        )

    def _start(self, loop: asyncio.AbstractEventLoop) -> None:
        """Read the next openings that are not stale, or come to rest."""
        batch: list[_Opening] = []
        now_s = self._clock()
        while self._asked and len(batch) < _MOST_AT_ONCE:
            opening = self._asked.popleft()
            if now_s - opening.asked_s > _STALE_S:
                self._count("late")
            else:
                batch.append(opening)
        predictor, version = self._service.predictor, self._service.version
        self._reading = bool(batch) and predictor is not None
        if not self._reading:
            return
        assert predictor is not None
        work = self._thread.submit(partial(_read, predictor, batch))
        work.tell(loop, lambda: self._ended(loop, batch, work, version))

    def _ended(
        self,
        loop: asyncio.AbstractEventLoop,
        batch: Sequence[_Opening],
        work: Work[list[WireRow]],
        version: str | None,
    ) -> None:
        if work.result is None:
            self._fault("read", work.error)
            self._count("failed", len(batch))
        else:
            self._send(loop, batch, work.result, version)
        self._start(loop)

    def _send(
        self,
        loop: asyncio.AbstractEventLoop,
        batch: Sequence[_Opening],
        rows: Sequence[WireRow],
        version: str | None,
    ) -> None:
        estimates = []
        for opening, row in zip(batch, rows, strict=True):
            if row is None:
                self._count("failed")
                continue
            self._count("ok")
            made = Reestimate(opening.name, row, version, opening.tokens)
            estimates.append((opening.core, made))
        self._sender.send(loop, estimates)

    def _fault(self, what: str, error: object) -> None:
        self._faults += 1
        if self._faults % 1000 == 1:
            logger.warning("answers' openings could not be %s (%d): %r", what, self._faults, error)

    def _count(self, outcome: str, openings: int = 1) -> None:
        self.counts[outcome] += openings
        self._metrics.openings.labels(outcome).inc(openings)


def _read(predictor: LengthPredictor, batch: Sequence[_Opening]) -> list[WireRow]:
    """In the thread: what the predictor says of each; None where that is no length."""
    rows: list[WireRow] = [None] * len(batch)
    for tokens in {opening.tokens for opening in batch}:
        places = [i for i, opening in enumerate(batch) if opening.tokens == tokens]
        if tokens not in predictor.opening_tokens:  # it was replaced meanwhile
            continue
        found = predictor.reestimate(
            [batch[i].opening for i in places],
            tokens,
            [batch[i].text for i in places],
            [batch[i].slo_class for i in places],
        )
        for i, row in zip(places, wire_rows(found.quantiles), strict=True):
            rows[i] = row
    return rows
