"""One loaded predictor and the requests that ask it: batched, and never in the way.

Requests that arrive while a batch is being predicted gather for the next: a burst costs a few
calls instead of one each. All calls are made in a thread. For a quick predictor (a booster) the
event loop stands still meanwhile, which spares the thread the fight for the interpreter's lock
that would cost more than the prediction; but never for longer than ``_LENT_S``, the first slow call
included. A slow one (a transformer) is not waited for. A request that waits longer than the
time-out goes on without a prediction, and while a call is stuck later requests do not even start
to wait.
"""

from __future__ import annotations

import asyncio
import logging
import math
import operator
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
from prometheus_client import Counter, Histogram

from lengthwise.data.arrays import njit
from lengthwise.scheduler.serving.api.predicting.worker_thread import Work, WorkerThread
from lengthwise.scheduler.serving.settings import LOGGER_NAME
from lengthwise.scheduler.serving.wire.answer_length import Prediction

if TYPE_CHECKING:
    from lengthwise.predictor.model import LengthPredictor

logger = logging.getLogger(LOGGER_NAME)

_MOST_LENT, _MOST_LENT_CHARACTERS = 8, 16_000  # more of it at once takes longer than it may
_MOST_BESIDE = 64
_LENT_S = 0.004  # the event loop waits for a call this long, and for none after a longer one
_QUICK_WALL_S = 0.05  # beside a busy event loop a call waits for the interpreter most of its time
_QUICK_IN_A_ROW = 16  # so many quick calls in the thread, and the event loop waits again
_MOST_MADE = 128  # prompts of one request that are taken in at once


@dataclass(frozen=True, slots=True)
class ServedPredictor:
    """A loaded predictor, what it is called and where it lies; ``quick`` calls are waited for."""

    predictor: LengthPredictor
    version: str
    quick: bool
    directory: str | None = None


@dataclass(slots=True)
class _Asked:
    prompt: str
    slo_class: str
    answer: asyncio.Future[Prediction | None]


_Called = Work[list[Prediction]]


class BatchedPredictor:
    """Asks one predictor for many requests; answers None whenever it cannot.

    It keeps its predictor for life: whoever swaps predictors swaps this object, and requests in
    flight get their answer from the one they asked.
    """

    def __init__(
        self,
        served: ServedPredictor,
        *,
        timeout_s: float,
        outcomes: Counter,
        latency: Histogram | None = None,
        with_features: bool = False,
    ) -> None:
        self.served = served
        self.inline = served.quick
        self._width = len(served.predictor.levels)
        self._timeout_s = timeout_s
        self._outcomes = outcomes
        self._counted: dict[str, Counter] = {}
        self._latency = latency
        self._with_features = with_features
        # Its thread ends with this object: nobody waits for a predictor that was replaced.
        self._thread = WorkerThread("length-predictor")
        self._waiting: list[_Asked] = []
        self._call_began_s: float | None = None
        self._call_was_quick = False
        self._quick_in_a_row = 0
        self._failures = self._late = 0

    async def predict(self, prompts: Sequence[str], slo_class: str) -> list[Prediction | None]:
        """A prediction for each prompt of one request; None on a fault or after the time-out."""
        began_s = time.perf_counter()
        if self._call_began_s is not None and began_s - self._call_began_s > self._timeout_s:
            self._count("skipped")
            return [None] * len(prompts)
        loop = asyncio.get_running_loop()
        # Of thousands of prompts a part at a time is made, and thrown away.
        parts: deque[list[_Asked]] = deque()
        for start in range(0, len(prompts), _MOST_MADE):
            if start:
                await asyncio.sleep(0)
            some = prompts[start : start + _MOST_MADE]
            parts.append([_Asked(prompt, slo_class, loop.create_future()) for prompt in some])
            self._waiting.extend(parts[-1])
        if self._call_began_s is None:
            self._start(loop)
        if self.inline:
            await asyncio.sleep(0)  # for which the event loop stands still: most have theirs now
        found: list[Prediction | None] = []
        while parts and all(one.answer.done() for one in parts[0]):
            found += map(_answered, parts.popleft())
        if parts and not await self._wait(parts, found):
            self._count("timeout")
            return found
        if self._latency is not None:
            self._latency.observe(time.perf_counter() - began_s)
        self._count("ok" if any(found) else "failed")
        return found

    async def _wait(self, parts: deque[list[_Asked]], found: list[Prediction | None]) -> bool:
        """Add the answers to those found; whether all came in time."""
        try:
            async with asyncio.timeout(self._timeout_s):
                while parts:
                    for one in parts[0]:
                        await one.answer
                    found += map(_answered, parts.popleft())
                    await asyncio.sleep(0)
        except TimeoutError:
            late = {id(one) for part in parts for one in part}
            self._waiting = [one for one in self._waiting if id(one) not in late]
            found += [_answered(one) for part in parts for one in part]  # some may be done
            return False
        return True

    def _count(self, outcome: str) -> None:
        if outcome not in self._counted:  # a label's look-up takes a lock
            self._counted[outcome] = self._outcomes.labels(outcome)
        self._counted[outcome].inc()

    def close(self) -> None:
        """Stop the worker thread."""
        self._thread.close()

    def _start(self, loop: asyncio.AbstractEventLoop) -> None:
        """Begin the next batch, or come to rest."""
        if not self._waiting:
            self._call_began_s = None
            return
        self._call_began_s = time.perf_counter()
        if self.inline:
            # Not at once: requests that are ready in this turn of the loop join the batch.
            loop.call_soon(self._lend, loop)
        else:
            self._follow(loop, *self._begin(_MOST_BESIDE))

    def _begin(self, most: int, most_characters: float = math.inf) -> tuple[list[_Asked], _Called]:
        """Take the next batch, of one prompt at least, and call the predictor in the thread."""
        count, characters = 0, 0
        for one in self._waiting[:most]:
            characters += len(one.prompt)
            if count and characters > most_characters:
                break
            count += 1
        batch, self._waiting = self._waiting[:count], self._waiting[count:]
        return batch, self._thread.submit(partial(self._timed_call, batch))

    def _lend(self, loop: asyncio.AbstractEventLoop) -> None:
        """Call, and stand still until the answer comes: nobody else wants the interpreter then."""
        batch, work = self._begin(_MOST_LENT, _MOST_LENT_CHARACTERS)
        is_short = sum(len(one.prompt) for one in batch) <= _MOST_LENT_CHARACTERS
        if is_short and work.wait(_LENT_S):
            self._finished(loop, batch, work)
            return
        if is_short:
            self.inline = False
            self._quick_in_a_row = 0
            self._late += 1
            if self._late % 1000 == 1:
                logger.warning(
                    "a length prediction took more than %g ms (%d): predicting in a thread",
                    1e3 * _LENT_S, self._late,
                )  # fmt: skip
        self._follow(loop, batch, work)

    def _follow(self, loop: asyncio.AbstractEventLoop, batch: list[_Asked], work: _Called) -> None:
        """Hear of the end of the work in the event loop."""
        work.tell(loop, lambda: self._ended_beside(loop, batch, work))

    def _ended_beside(
        self, loop: asyncio.AbstractEventLoop, batch: list[_Asked], work: _Called
    ) -> None:
        self._quick_in_a_row = self._quick_in_a_row + 1 if self._call_was_quick else 0
        if self.served.quick and self._quick_in_a_row >= _QUICK_IN_A_ROW:
            self.inline = True
        self._finished(loop, batch, work)

    def _finished(
        self, loop: asyncio.AbstractEventLoop, batch: list[_Asked], work: _Called
    ) -> None:
        self._settle(batch, work.result, work.error)
        self._start(loop)

    def _settle(
        self,
        batch: list[_Asked],
        results: Sequence[Prediction] | None,
        error: BaseException | None,
    ) -> None:
        """Answer everyone in the batch; None where the prediction failed."""
        if error is not None:
            self._failures += 1
            if self._failures % 1000 == 1:
                logger.warning("length prediction failed (%d): %r", self._failures, error)
        for index, asked in enumerate(batch):
            if not asked.answer.done():
                asked.answer.set_result(None if results is None else results[index])

    def _timed_call(self, batch: list[_Asked]) -> list[Prediction]:
        """In the worker thread: one call for the whole batch, and whether it was a quick one."""
        began_s, own_began_s = time.perf_counter(), time.thread_time()
        try:
            return self._call(batch) if batch else []
        finally:
            own_s, wall_s = time.thread_time() - own_began_s, time.perf_counter() - began_s
            self._call_was_quick = own_s < _LENT_S and wall_s < _QUICK_WALL_S

    def _call(self, batch: list[_Asked]) -> list[Prediction]:
        predictor, version = self.served.predictor, self.served.version
        prompts = [one.prompt for one in batch]
        classes = [one.slo_class for one in batch]
        rows = predictor.features(prompts, classes) if self._with_features else None
        quantiles = np.asarray(predictor.predict(prompts, classes, rows=rows).quantiles)
        shape = (len(batch), self._width)
        found = quantiles.tolist()
        if quantiles.shape != shape or not all(map(_is_non_decreasing, found)):
            raise ValueError(f"{version} predicted no {shape} of non-decreasing lengths")
        if not all(math.isfinite(row[0]) and math.isfinite(row[-1]) for row in found):
            raise ValueError(f"{version} predicted a length that is not finite")
        if rows is None:
            return [Prediction(row, version) for row in found]
        contract = predictor.feature_contract
        # arrays to the end: hundreds of numbers a prompt, of thousands of prompts
        features = np.empty_like(rows)
        _round_for_log(rows, features)
        return [
            Prediction(row, version, logged, contract)
            for row, logged in zip(found, features, strict=True)
        ]


@njit(nogil=True)
def _round_for_log(rows: np.ndarray, out: np.ndarray) -> None:
    """Feature rows, (n, f) float32, to six decimals as by `round`; 0 for what is not finite."""
    scale = np.float32(1e6)
    for i in range(rows.shape[0]):
        for column in range(rows.shape[1]):
            value = rows[i, column]
            out[i, column] = np.rint(value * scale) / scale if np.isfinite(value) else 0.0


def _is_non_decreasing(row: list[float]) -> bool:
    """Whether no number is below the one before, nor NaN; of a few, faster than numpy's."""
    return all(map(operator.le, row, row[1:]))


def _answered(asked: _Asked) -> Prediction | None:
    """What was predicted so far; a wait that timed out has cancelled its future."""
    done = asked.answer.done() and not asked.answer.cancelled()
    return asked.answer.result() if done else None
