"""Length predictions for the API process: where a request's length comes from."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from lengthwise.data.errors import InputError
from lengthwise.data.request_log.schema import FIXED_LENGTH
from lengthwise.scheduler.serving.api.api_metrics import ApiMetrics
from lengthwise.scheduler.serving.api.predicting.batching import (
    BatchedPredictor,
    ServedPredictor,
)
from lengthwise.scheduler.serving.api.predicting.shadow import Shadow
from lengthwise.scheduler.serving.settings import LOGGER_NAME, ServerSettings
from lengthwise.scheduler.serving.wire.answer_length import (
    CLIENT_LENGTH,
    DEFAULT_LEVELS,
    Prediction,
)

if TYPE_CHECKING:
    from lengthwise.predictor.model import LengthPredictor

logger = logging.getLogger(LOGGER_NAME)

_MANY = 256  # prompts of a request, between whose handling others have their turn
_QUICK_S = 0.002  # for a single prediction that takes this long the event loop waits
# Loaded beside a busy event loop, a prediction waits for the interpreter lock most of the time.
_QUICK_WALL_S = 0.05


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
        self.champion: BatchedPredictor | None = None
        self.shadow: Shadow | None = None
        self._settings = settings
        self._metrics = metrics
        if predictor is not None:
            version = settings.predictor_version or predictor.version
            self.replace(ServedPredictor(predictor, version, inline, settings.predictor_dir))

    @property
    def predictor(self) -> LengthPredictor | None:
        """The predictor that is obeyed."""
        return None if self.champion is None else self.champion.served.predictor

    @property
    def version(self) -> str | None:
        """What the predictor that is obeyed is called."""
        return None if self.champion is None else self.champion.served.version

    @property
    def directory(self) -> str | None:
        """Where the predictor that is obeyed lies."""
        return None if self.champion is None else self.champion.served.directory

    @property
    def levels(self) -> int:
        """How many quantiles a prediction has."""
        return len(DEFAULT_LEVELS) if self.predictor is None else len(self.predictor.levels)

    @property
    def takes_told_lengths(self) -> bool:
        """Whether a length that the client states or fixes is passed on."""
        return self.lengths in ("oracle", "learned")

    async def predict(
        self,
        prompts: Sequence[str | None],
        slo_class: str,
        osl: float | None = None,
        fixed: int | None = None,
    ) -> list[Prediction | None]:
        """A prediction for each prompt of a request; one without text (None) has none.

        ``fixed`` is the length that the sampling parameters leave no choice about.
        """
        champion = self.champion
        if self.takes_told_lengths and (fixed is not None or osl is not None):
            version = CLIENT_LENGTH if fixed is None else FIXED_LENGTH
            told = Prediction([float(fixed or osl or 1.0)] * self.levels, version)
            return [told] * len(prompts)
        if champion is None or self.lengths not in ("learned", "class"):
            return [None] * len(prompts)
        if self.lengths == "class":
            row = champion.served.predictor.class_gaussian(slo_class)
            known = Prediction(row.tolist(), champion.served.version)
            return [None if text is None else known for text in prompts]
        return await _of_texts(champion, prompts, slo_class, self._metrics)

    async def predict_both(
        self,
        prompts: Sequence[str | None],
        slo_class: str,
        osl: float | None = None,
        fixed: int | None = None,
    ) -> list[tuple[Prediction | None, Prediction | None]]:
        """`predict`, and what the shadow says, asked at the same time, for each prompt."""
        shadow = self.shadow
        if shadow is None or fixed is not None:
            said = await self.predict(prompts, slo_class, osl, fixed)
            if len(said) > _MANY:
                await asyncio.sleep(0)
            return [(one, None) for one in said]
        said, beside = await asyncio.gather(
            self.predict(prompts, slo_class, osl), _of_texts(shadow, prompts, slo_class)
        )
        return list(zip(said, beside, strict=True))

    def replace(self, served: ServedPredictor) -> None:
        """Predict with another predictor from now on; who asked the old one still hears from it."""
        settings, metrics = self._settings, self._metrics
        before = self.version
        self.champion = BatchedPredictor(
            served,
            timeout_s=settings.predict_timeout_ms / 1e3,
            outcomes=metrics.predictions,
            latency=metrics.predict,
            with_features=settings.needs_features,
        )
        metrics.show_version("champion", served.version, before)

    def replace_shadow(self, served: ServedPredictor | None) -> None:
        """Let another predictor follow along from now on; None: nobody."""
        before = None if self.shadow is None else self.shadow.served.version
        self.shadow = None if served is None else Shadow(served, self._settings, self._metrics)
        self._metrics.show_version("shadow", served.version if served else None, before)


async def _of_texts(
    predictor: BatchedPredictor | Shadow,
    prompts: Sequence[str | None],
    slo_class: str,
    metrics: ApiMetrics | None = None,
) -> list[Prediction | None]:
    """A prediction for each prompt that has text; a request without any is counted, if asked to."""
    texts = [text for text in prompts if text is not None]
    if not texts:
        if metrics is not None and prompts:
            metrics.predictions.labels("no-text").inc()
        return [None] * len(prompts)
    said = iter(await predictor.predict(texts, slo_class))
    return [None if text is None else next(said) for text in prompts]


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
    """A predictor, warmed up so that no request pays for what loads lazily, and if it is quick.

    One with a causal reader answers without it; who wants to ask the reader finds it in ``full``.
    """
    from lengthwise.predictor.model import LengthPredictor

    predictor = LengthPredictor.load(directory)
    if predictor.causal is not None:
        predictor = predictor.without_reader()
    quantiles = np.asarray(predictor.predict(["warm up"], [None]).quantiles)
    if quantiles.shape != (1, len(predictor.levels)):
        raise InputError(
            f"{directory}: predicts {quantiles.shape}, not (1, {len(predictor.levels)})"
        )
    own_s, wall_s = zip(*(_timed_prediction(predictor) for _ in range(5)), strict=True)
    return predictor, min(own_s) < _QUICK_S and min(wall_s) < _QUICK_WALL_S


def _timed_prediction(predictor: LengthPredictor) -> tuple[float, float]:
    """Seconds of a single prediction: this thread's own, and on the wall."""
    began_s, own_began_s = time.perf_counter(), time.thread_time()
    predictor.predict(["Write a short story about a river and its bridges."], [None])
    return time.thread_time() - own_began_s, time.perf_counter() - began_s
