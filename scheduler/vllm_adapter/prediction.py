"""Length predictions for the API process: batched, and never in the way.

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

from data.errors import InputError
from scheduler.problem import FloatArray
from scheduler.vllm_adapter.intake import CLIENT_LENGTH
from scheduler.vllm_adapter.metrics import ApiMetrics
from scheduler.vllm_adapter.settings import LOGGER_NAME, ServerSettings

if TYPE_CHECKING:
    from predictor.distribution import LengthDistribution
    from predictor.model import LengthPredictor

logger = logging.getLogger(LOGGER_NAME)

_MOST_INLINE = 16
_MOST_IN_THREAD = 64
_QUICK_S = 0.005  # a single prediction on the event loop may take this long
_INLINE_LIMIT_S = 0.1  # a batch that took longer moves the predictor to a thread


@dataclass(frozen=True, slots=True)
class Prediction:
    """What is attached to a request: quantiles in tokens on the predictor's levels."""

    quantiles: list[float]
    version: str | None
    features: list[float] | None = None
    contract: str | None = None


@dataclass(slots=True)
class _Asked:
    prompt: str
    slo_class: str
    answer: asyncio.Future[Prediction | None]


class PredictionService:
    """Predicts by the settings' ``lengths``; answers None whenever it cannot.

    ``learned`` asks the predictor, ``class`` takes the class's Gaussian, ``oracle`` the client's
    own ``osl``, ``none`` nothing. A given ``osl`` also wins over a learned prediction.
    """

    def __init__(
        self,
        settings: ServerSettings,
        metrics: ApiMetrics,
        predictor: LengthPredictor | None,
        inline: bool = False,
    ) -> None:
        self.lengths: str = settings.lengths
        self.predictor = predictor
        self.version = settings.predictor_version
        self._settings = settings
        self._metrics = metrics
        self._pool = ThreadPoolExecutor(max_workers=1, thread_name_prefix="length-predictor")
        self._waiting: list[_Asked] = []
        self._inline = inline
        self._call_began_s: float | None = None
        self._failures = 0

    @property
    def levels(self) -> int:
        """How many quantiles a prediction has."""
        from scheduler.vllm_adapter.priors import DEFAULT_LEVELS

        return len(DEFAULT_LEVELS) if self.predictor is None else len(self.predictor.levels)

    async def predict(
        self, prompts: Sequence[str], slo_class: str, osl: float | None
    ) -> Prediction | None:
        """The prediction for a request; the mean over ``prompts`` when it asks several at once."""
        if osl is not None and self.lengths in ("oracle", "learned"):
            return Prediction([osl] * self.levels, CLIENT_LENGTH)
        if self.predictor is None or not prompts or self.lengths not in ("learned", "class"):
            return None
        if self.lengths == "class":
            return Prediction(self.predictor.class_gaussian(slo_class).tolist(), self.version)
        return await self._learned(prompts, slo_class)

    def replace(self, predictor: LengthPredictor, version: str | None, inline: bool) -> None:
        """Predict with another predictor from now on."""
        self.predictor, self.version, self._inline = predictor, version, inline

    def close(self) -> None:
        """Stop the worker thread."""
        self._pool.shutdown(wait=False, cancel_futures=True)

    async def _learned(self, prompts: Sequence[str], slo_class: str) -> Prediction | None:
        began_s = time.perf_counter()
        timeout_s = self._settings.predict_timeout_ms / 1e3
        if self._call_began_s is not None and began_s - self._call_began_s > timeout_s:
            self._metrics.predictions.labels("skipped").inc()
            return None
        loop = asyncio.get_running_loop()
        asked = [_Asked(p, slo_class, loop.create_future()) for p in prompts[:_MOST_IN_THREAD]]
        self._waiting.extend(asked)
        if self._call_began_s is None:
            self._start(loop)
        try:
            async with asyncio.timeout(timeout_s):
                found = [await one.answer for one in asked]
        except TimeoutError:
            late = {id(one) for one in asked}
            self._waiting = [one for one in self._waiting if id(one) not in late]
            self._metrics.predictions.labels("timeout").inc()
            return None
        self._metrics.predict.observe(time.perf_counter() - began_s)
        good = [prediction for prediction in found if prediction is not None]
        self._metrics.predictions.labels("ok" if good else "failed").inc()
        return _mean(good)

    def _start(self, loop: asyncio.AbstractEventLoop) -> None:
        """Begin the next batch, or come to rest."""
        if not self._waiting:
            self._call_began_s = None
            return
        self._call_began_s = time.perf_counter()
        if self._inline:
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
            self._inline = False
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
        predictor = self.predictor
        assert predictor is not None
        version = self.version or predictor.version
        prompts = [one.prompt for one in batch]
        classes = [one.slo_class for one in batch]
        if self._settings.request_log is None or not self._settings.log_features:
            quantiles = _checked(predictor, predictor.predict(prompts, classes), len(batch))
            return [Prediction(row, version) for row in quantiles.tolist()]
        rows = predictor.features(prompts, classes)
        found = predictor.predict(prompts, classes, rows=rows)
        quantiles = _checked(predictor, found, len(batch))
        contract = predictor.feature_contract
        return [
            Prediction(row, version, logged, contract)
            for row, logged in zip(
                quantiles.tolist(), np.nan_to_num(rows, nan=0.0).round(6).tolist(), strict=True
            )
        ]


def _checked(predictor: LengthPredictor, found: LengthDistribution, n: int) -> FloatArray:
    """The quantiles ``(n, q)``, all finite: anything else is a failed prediction, and counted."""
    quantiles = np.asarray(found.quantiles, dtype=np.float64)
    wanted = (n, len(predictor.levels))
    if quantiles.shape != wanted:
        raise ValueError(f"the predictor gave {quantiles.shape} quantiles, not {wanted}")
    if not np.isfinite(quantiles).all():
        raise ValueError("the predictor gave quantiles that are not finite")
    return quantiles


def load_service(settings: ServerSettings, metrics: ApiMetrics) -> PredictionService:
    """The service of these settings, its predictor loaded and warmed up.

    Raises InputError when ``predictor_dir`` is not a predictor.
    """
    predictor, inline = None, False
    if settings.predictor_dir is not None:
        predictor, inline = load_predictor(settings.predictor_dir)
    elif settings.lengths in ("learned", "class"):
        logger.warning("lengths %r without a predictor: a broad prior is used", settings.lengths)
    return PredictionService(settings, metrics, predictor, inline)


def load_predictor(directory: str) -> tuple[LengthPredictor, bool]:
    """A predictor, warmed up so that no request pays for what loads lazily, and if it is quick."""
    from predictor.model import LengthPredictor

    predictor = LengthPredictor.load(directory)
    try:
        _checked(predictor, predictor.predict(["warm up"], [None]), 1)
    except ValueError as error:
        raise InputError(f"{directory}: {error}") from error
    times_s = []
    for _ in range(3):
        began_s = time.perf_counter()
        predictor.predict(["Write a short story about a river and its bridges."], [None])
        times_s.append(time.perf_counter() - began_s)
    return predictor, min(times_s) < _QUICK_S


def _mean(predictions: Sequence[Prediction]) -> Prediction | None:
    if len(predictions) < 2:
        return predictions[0] if predictions else None
    quantiles = np.mean([one.quantiles for one in predictions], axis=0)
    return Prediction(quantiles.tolist(), predictions[0].version)
