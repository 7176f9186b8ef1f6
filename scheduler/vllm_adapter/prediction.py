"""Length predictions for the API process: batched, off the event loop, and never in the way.

While one batch is being predicted, later requests gather for the next: a burst costs a few calls
instead of one each. A request that waits longer than the time-out goes on without a prediction;
while a call is stuck, later requests do not even start to wait.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from data.errors import InputError
from scheduler.vllm_adapter.metrics import ApiMetrics
from scheduler.vllm_adapter.settings import LOGGER_NAME, ServerSettings

if TYPE_CHECKING:
    from predictor.model import LengthPredictor

logger = logging.getLogger(LOGGER_NAME)

_MOST_AT_ONCE = 64


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
        self, settings: ServerSettings, metrics: ApiMetrics, predictor: LengthPredictor | None
    ) -> None:
        self.lengths: str = settings.lengths
        self.predictor = predictor
        self.version = settings.predictor_version
        self._settings = settings
        self._metrics = metrics
        self._pool = ThreadPoolExecutor(max_workers=1, thread_name_prefix="length-predictor")
        self._waiting: list[_Asked] = []
        self._busy = False
        self._stuck = 0
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
            return Prediction([osl] * self.levels, "osl")
        if self.predictor is None or not prompts or self.lengths not in ("learned", "class"):
            return None
        if self.lengths == "class":
            return Prediction(self.predictor.class_gaussian(slo_class).tolist(), self.version)
        return await self._learned(prompts, slo_class)

    def replace(self, predictor: LengthPredictor, version: str | None) -> None:
        """Predict with another predictor from now on."""
        self.predictor, self.version = predictor, version

    def close(self) -> None:
        """Stop the worker thread."""
        self._pool.shutdown(wait=False, cancel_futures=True)

    async def _learned(self, prompts: Sequence[str], slo_class: str) -> Prediction | None:
        if self._stuck:
            self._metrics.predictions.labels("skipped").inc()
            return None
        loop = asyncio.get_running_loop()
        began_s = time.perf_counter()
        asked = [_Asked(p, slo_class, loop.create_future()) for p in prompts[:_MOST_AT_ONCE]]
        self._waiting.extend(asked)
        if not self._busy:
            self._start(loop)
        answers = asyncio.gather(*(one.answer for one in asked))
        try:
            found = await asyncio.wait_for(answers, self._settings.predict_timeout_ms / 1e3)
        except TimeoutError:
            self._stuck += self._busy
            self._waiting = [one for one in self._waiting if not one.answer.cancelled()]
            self._metrics.predictions.labels("timeout").inc()
            return None
        self._metrics.predict.observe(time.perf_counter() - began_s)
        good = [prediction for prediction in found if prediction is not None]
        self._metrics.predictions.labels("ok" if good else "failed").inc()
        return _mean(good)

    def _start(self, loop: asyncio.AbstractEventLoop) -> None:
        """Hand what has gathered to the worker."""
        batch, self._waiting = self._waiting[:_MOST_AT_ONCE], self._waiting[_MOST_AT_ONCE:]
        if not batch:
            return
        self._busy = True
        work = loop.run_in_executor(self._pool, self._call, batch)
        work.add_done_callback(lambda done: self._finished(loop, batch, done))

    def _finished(
        self,
        loop: asyncio.AbstractEventLoop,
        batch: list[_Asked],
        done: asyncio.Future[list[Prediction]],
    ) -> None:
        self._busy = False
        self._stuck = 0
        error = None if done.cancelled() else done.exception()
        if error is not None:
            self._failures += 1
            if self._failures % 1000 == 1:
                logger.warning("length prediction failed (%d): %r", self._failures, error)
        results: Sequence[Prediction | None] = [None] * len(batch)
        if error is None and not done.cancelled():
            results = done.result()
        for asked, prediction in zip(batch, results, strict=True):
            if not asked.answer.done():
                asked.answer.set_result(prediction)
        self._start(loop)

    def _call(self, batch: list[_Asked]) -> list[Prediction]:
        """In the worker thread: one call for the whole batch."""
        predictor = self.predictor
        assert predictor is not None
        version = self.version or predictor.version
        prompts = [one.prompt for one in batch]
        classes = [one.slo_class for one in batch]
        if self._settings.request_log is None or not self._settings.log_features:
            quantiles = np.asarray(predictor.predict(prompts, classes).quantiles)
            return [Prediction(row, version) for row in quantiles.tolist()]
        rows = predictor.features(prompts, classes)
        quantiles = np.asarray(predictor.predict_features(rows, classes).quantiles)
        contract = predictor.feature_contract
        return [
            Prediction(row, version, logged, contract)
            for row, logged in zip(
                quantiles.tolist(), np.nan_to_num(rows, nan=0.0).round(6).tolist(), strict=True
            )
        ]


def load_service(settings: ServerSettings, metrics: ApiMetrics) -> PredictionService:
    """The service of these settings, its predictor loaded and warmed up.

    Raises InputError when ``predictor_dir`` is not a predictor.
    """
    predictor = None
    if settings.predictor_dir is not None:
        predictor = load_predictor(settings.predictor_dir)
    elif settings.lengths in ("learned", "class"):
        logger.warning("lengths %r without a predictor: a broad prior is used", settings.lengths)
    return PredictionService(settings, metrics, predictor)


def load_predictor(directory: str) -> Any:
    """Load a predictor and run it once, so that no request pays for what loads lazily."""
    from predictor.model import LengthPredictor

    predictor = LengthPredictor.load(directory)
    quantiles = np.asarray(predictor.predict(["warm up"], [None]).quantiles)
    if quantiles.shape != (1, len(predictor.levels)):
        raise InputError(
            f"{directory}: predicts {quantiles.shape}, not (1, {len(predictor.levels)})"
        )
    return predictor


def _mean(predictions: Sequence[Prediction]) -> Prediction | None:
    if len(predictions) < 2:
        return predictions[0] if predictions else None
    quantiles = np.mean([one.quantiles for one in predictions], axis=0)
    return Prediction(quantiles.tolist(), predictions[0].version)
