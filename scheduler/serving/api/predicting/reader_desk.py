"""The causal reader's estimates: they follow a request that went on with the quick one.

The reader takes tens of milliseconds of a core for a prompt, so it is asked in a thread of its own,
about all prompts that gathered meanwhile, and what it makes the predictor say is sent after the
request. It may be late: a prompt that would wait longer than its budget is not read, and counted.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from lengthwise.scheduler.serving.api.api_metrics import ApiMetrics
from lengthwise.scheduler.serving.api.predicting.estimate_sender import (
    EstimateSender,
    WireRow,
    wire_rows,
)
from lengthwise.scheduler.serving.api.predicting.prediction import PredictionService
from lengthwise.scheduler.serving.api.predicting.worker_thread import Work, WorkerThread
from lengthwise.scheduler.serving.settings import LOGGER_NAME, ServerSettings
from lengthwise.scheduler.serving.wire.reestimate import Reestimate

if TYPE_CHECKING:
    from lengthwise.predictor.model import LengthPredictor

logger = logging.getLogger(LOGGER_NAME)

_MOST_AT_ONCE = 16
_NEWEST = 0.3  # weight of the last batch in what a prompt takes
_AGAIN_S = 10.0  # a reader found too slow is tried again after this
_WARM_UP = "Write a short story about a river and its bridges."


@dataclass(frozen=True, slots=True)
class _Asked:
    core: Any
    key: str
    text: str
    slo_class: str
    asked_s: float


@dataclass(frozen=True, slots=True)
class _Made:
    """Quantiles of a batch, (n, q), None of a prompt that could not be read; the thread's time."""

    rows: list[WireRow]
    took_s: float


class ReaderDesk:
    """Asks the causal reader of the predictor that is served, where it has one.

    ``clock`` is monotonic seconds.
    """

    def __init__(
        self,
        settings: ServerSettings,
        service: PredictionService,
        metrics: ApiMetrics,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._budget_s = settings.reader_budget_ms / 1e3
        self._service = service
        self._metrics = metrics
        self._clock = clock
        self._thread = WorkerThread("length-reader")
        self._waiting: deque[_Asked] = deque()
        self._of: LengthPredictor | None = None
        self._load: Work[float] | None = None
        self._each_s = 0.0
        self._reading = 0
        self._tried_s = float("-inf")
        self._faults = 0
        self._sender = EstimateSender()
        self.counts: Counter[str] = Counter()
        self._reader()  # it loads while the engine does

    def take(self, core: Any, key: str, text: str, slo_class: str) -> bool:
        """Have a prompt read, if that pays and there is time; whether an estimate may follow.

        It goes to the engines of ``core`` under ``key``. To be called in the event loop.
        """
        predictor = self._reader()
        if predictor is None or core is None or predictor.causal is None:
            return False
        if not predictor.causal.reader.reads(slo_class):
            return False
        why = self._refusal(text)
        if why is not None:
            self._count(why)
            return False
        self._waiting.append(_Asked(core, key, text, slo_class, self._clock()))
        if not self._reading:
            self._start(asyncio.get_running_loop())
        return True

    def status(self) -> dict[str, Any] | None:
        """What it is and what became of the prompts, as plain values; None without a reader."""
        predictor = self._reader()
        if predictor is None or predictor.causal is None:
            return None
        reader = predictor.causal.reader
        loaded = self._load is not None and self._load.is_done
        return {
            "model": reader.model,
            "digest": reader.digest_,
            "classes": list(reader.read_classes_),
            "state": ("absent" if reader.fault_ else "ready") if loaded else "loading",
            "fault": reader.fault_,
            "each_ms": 1e3 * self._each_s,
            "budget_ms": 1e3 * self._budget_s,
            "prompts": dict(self.counts),
        }

    def close(self) -> None:
        """End the thread."""
        self._thread.close()

    def _reader(self) -> LengthPredictor | None:
        """The served predictor that asks its reader, None where there is none; it begins to load.

        A predictor that has one keeps it in ``full`` (``LengthPredictor.without_reader``).
        """
        champion = self._service.champion
        if champion is None or self._service.lengths != "learned" or not self._budget_s:
            return None
        full: LengthPredictor | None = getattr(champion.served.predictor, "full", None)
        if full is not None and full is not self._of:
            self._of, self._each_s = full, 0.0
            self._load = self._thread.submit(partial(_loaded, full))
        return full

    def _refusal(self, text: str) -> str | None:
        """Why a prompt is not read: a word of the metric's."""
        assert self._of is not None
        assert self._of.causal is not None
        if self._load is not None:
            if not self._load.is_done:
                return "loading"
            if self._load.error is not None:
                return "absent"
            if not self._each_s:
                self._each_s = self._load.result or 0.0
        if self._of.causal.reader.fault_ is not None:
            return "absent"
        if not text.strip():
            return "unreadable"
        wait_s = (len(self._waiting) + self._reading + 1) * self._each_s
        rests = not self._reading and self._clock() - self._tried_s > _AGAIN_S
        return "busy" if wait_s > self._budget_s and not rests else None

    def _start(self, loop: asyncio.AbstractEventLoop) -> None:
        """Read the next prompts that are not late already, or come to rest."""
        now_s = self._clock()
        batch: list[_Asked] = []
        while self._waiting and len(batch) < _MOST_AT_ONCE:
            asked = self._waiting.popleft()
            if now_s - asked.asked_s > self._budget_s:
                self._count("late")
            else:
                batch.append(asked)
        self._reading = len(batch)
        if not batch or self._of is None:
            self._reading = 0
            return
        self._tried_s = now_s
        work = self._thread.submit(partial(_read, self._of, batch))
        work.tell(loop, lambda: self._ended(loop, batch, work))

    def _ended(
        self, loop: asyncio.AbstractEventLoop, batch: Sequence[_Asked], work: Work[_Made]
    ) -> None:
        made = work.result
        if made is None:
            self._faults += 1
            if self._faults % 1000 == 1:
                logger.warning("the reader failed (%d): %r", self._faults, work.error)
            self._count("failed", len(batch))
        else:
            each_s = made.took_s / len(batch)
            self._each_s += (_NEWEST if self._each_s else 1.0) * (each_s - self._each_s)
            self._send(loop, batch, made)
        self._start(loop)

    def _send(self, loop: asyncio.AbstractEventLoop, batch: Sequence[_Asked], made: _Made) -> None:
        version = self._service.version
        estimates = []
        for asked, row in zip(batch, made.rows, strict=True):
            if row is None:
                self._count("unreadable")
                continue
            self._count("ok")
            self._metrics.reader.observe(self._clock() - asked.asked_s)
            estimates.append((asked.core, Reestimate(asked.key, row, version)))
        self._sender.send(loop, estimates)

    def _count(self, outcome: str, prompts: int = 1) -> None:
        self.counts[outcome] += prompts
        self._metrics.reader_prompts.labels(outcome).inc(prompts)


def _loaded(predictor: LengthPredictor) -> float:
    """In the thread: load the reader; seconds that a prompt takes once it is warm."""
    assert predictor.causal is not None
    reader = predictor.causal.reader
    states = reader.states()
    if states is None:
        return 0.0
    states.limit_threads(1)
    slo_class = reader.read_classes_[0]
    for _ in range(2):
        began_s = time.perf_counter()
        states.remembered.clear()
        predictor.predict([_WARM_UP], [slo_class])
    return time.perf_counter() - began_s


def _read(predictor: LengthPredictor, batch: Sequence[_Asked]) -> _Made:
    """In the thread: what the predictor says once the reader has read the prompts."""
    began_s = time.perf_counter()
    texts = [asked.text for asked in batch]
    classes = [asked.slo_class for asked in batch]
    found, was_read = predictor.read(texts, classes)
    said = zip(was_read, wire_rows(found.quantiles), strict=True)
    rows = [row if read else None for read, row in said]
    return _Made(rows, time.perf_counter() - began_s)
