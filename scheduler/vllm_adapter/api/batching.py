"""One loaded predictor and the requests that ask it: batched, and never in the way.

Requests that arrive while a batch is being predicted gather for the next: a burst costs a few
calls instead of one each. A quick predictor (a booster) runs on the event loop itself, where a
thread would cost more in waiting for the interpreter lock than the prediction takes; a slow one
(a transformer) runs in a thread. There, a request that waits longer than the time-out goes on
without a prediction, and while a call is stuck later requests do not even start to wait.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from prometheus_client import Counter, Histogram

from lengthwise.scheduler.vllm_adapter.settings import LOGGER_NAME
from lengthwise.scheduler.vllm_adapter.wire import Prediction

if TYPE_CHECKING:
    from lengthwise.predictor.model import LengthPredictor

logger = logging.getLogger(LOGGER_NAME)

_MOST_INLINE = 16
_MOST_IN_THREAD = 64
_INLINE_LIMIT_S = 0.1  # a batch that took longer moves the predictor to a thread


@dataclass(frozen=True, slots=True)
class ServedPredictor:
    """A loaded predictor, what it is called and where it lies; ``quick`` fits the event loop."""

    predictor: LengthPredictor
    version: str
    quick: bool
    directory: str | None = None


@dataclass(slots=True)
class _Asked:
    prompt: str
    slo_class: str
    answer: asyncio.Future[Prediction | None]


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
        self._timeout_s = timeout_s
        self._outcomes = outcomes
        self._latency = latency
        self._with_features = with_features
        # Its thread ends with this object: nobody waits for a predictor that was replaced.
        self._pool = ThreadPoolExecutor(max_workers=1, thread_name_prefix="length-predictor")
        self._waiting: list[_Asked] = []
        self._call_began_s: float | None = None
        self._failures = 0

    async def predict(self, prompts: Sequence[str], slo_class: str) -> list[Prediction | None]:
        """A prediction for each prompt of one request; None on a fault or after the time-out."""
        began_s = time.perf_counter()
        if self._call_began_s is not None and began_s - self._call_began_s > self._timeout_s:
            self._outcomes.labels("skipped").inc()
            return [None] * len(prompts)
        loop = asyncio.get_running_loop()
        asked = [_Asked(prompt, slo_class, loop.create_future()) for prompt in prompts]
        self._waiting.extend(asked)
        if self._call_began_s is None:
            self._start(loop)
        try:
            async with asyncio.timeout(self._timeout_s):
                for one in asked:
                    await one.answer
        except TimeoutError:
            late = {id(one) for one in asked}
            self._waiting = [one for one in self._waiting if id(one) not in late]
            self._outcomes.labels("timeout").inc()
            return [_answered(one) for one in asked]  # a long list may be half done
        if self._latency is not None:
            self._latency.observe(time.perf_counter() - began_s)
        found = [_answered(one) for one in asked]
        self._outcomes.labels("ok" if any(found) else "failed").inc()
        return found

    def close(self) -> None:
        """Stop the worker thread."""
        self._pool.shutdown(wait=False, cancel_futures=True)

    def _start(self, loop: asyncio.AbstractEventLoop) -> None:
        """Begin the next batch, or come to rest."""
        if not self._waiting:
            self._call_began_s = None
            return
        self._call_began_s = time.perf_counter()
        if self.inline:
            # Not at once: requests that are ready in this turn of the loop join the batch.
            loop.call_soon(self._run_inline, loop)
            return
        batch = self._take(_MOST_IN_THREAD)
        work = loop.run_in_executor(self._pool, self._call, batch)
        work.add_done_callback(lambda done: self._finished(loop, batch, done))

    def _take(self, most: int) -> list[_Asked]:
        batch, self._waiting = self._waiting[:most], self._waiting[most:]
        return batch

    def _run_inline(self, loop: asyncio.AbstractEventLoop) -> None:
        began_s = time.perf_counter()
        batch = self._take(_MOST_INLINE)
        try:
            self._settle(batch, self._call(batch) if batch else [], None)
        except Exception as error:  # any predictor's fault must end here
            self._settle(batch, None, error)
        took_s = time.perf_counter() - began_s
        if took_s > _INLINE_LIMIT_S:
            self.inline = False
            logger.warning("a length prediction took %.3f s: predicting in a thread", took_s)
        self._start(loop)

    def _finished(
        self,
        loop: asyncio.AbstractEventLoop,
        batch: list[_Asked],
        done: asyncio.Future[list[Prediction]],
    ) -> None:
        if done.cancelled():
            self._settle(batch, None, None)
        else:
            error = done.exception()
            self._settle(batch, None if error else done.result(), error)
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

    def _call(self, batch: list[_Asked]) -> list[Prediction]:
        """In the worker thread: one call for the whole batch."""
        predictor, version = self.served.predictor, self.served.version
        prompts = [one.prompt for one in batch]
        classes = [one.slo_class for one in batch]
        rows = predictor.features(prompts, classes) if self._with_features else None
        quantiles = np.asarray(predictor.predict(prompts, classes, rows=rows).quantiles)
        shape = (len(batch), len(predictor.levels))
        if quantiles.shape != shape or not bool((np.diff(quantiles) >= 0).all()):
            raise ValueError(f"{version} predicted no {shape} of non-decreasing lengths")
        if not np.isfinite(quantiles).all():
            raise ValueError(f"{version} predicted a length that is not finite")
        if rows is None:
            return [Prediction(row, version) for row in quantiles.tolist()]
        contract = predictor.feature_contract
        return [
            Prediction(row, version, logged, contract)
            for row, logged in zip(
                quantiles.tolist(), np.nan_to_num(rows, nan=0.0).round(6).tolist(), strict=True
            )
        ]


def _answered(asked: _Asked) -> Prediction | None:
    """What was predicted so far; a wait that timed out has cancelled its future."""
    done = asked.answer.done() and not asked.answer.cancelled()
    return asked.answer.result() if done else None
