"""The router over several engines, as the front needs it: hints in, the name of an engine out."""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections.abc import Sequence
from typing import Any

import numpy as np

from lengthwise.scheduler.fleet.beginnings import SeenBeginnings
from lengthwise.scheduler.fleet.dispatcher import Dispatcher, figures, warm_up
from lengthwise.scheduler.fleet.fleet_request import FleetRequest
from lengthwise.scheduler.fleet.fleet_router import FleetRouter
from lengthwise.scheduler.fleet.make_router import make_router
from lengthwise.scheduler.profile import load_profile
from lengthwise.scheduler.serving.api.api_metrics import ApiMetrics
from lengthwise.scheduler.serving.priors import load_priors
from lengthwise.scheduler.serving.settings import DEFAULT_PROFILE, LOGGER_NAME, ServerSettings
from lengthwise.scheduler.serving.wire.answer_length import clip_to_max_tokens
from lengthwise.scheduler.serving.wire.fleet_key import new_fleet_key, new_front
from lengthwise.scheduler.serving.wire.hints import Hints

logger = logging.getLogger(LOGGER_NAME)


class FleetRequests:
    """Makes what a router is told of requests, from what the front has found of them."""

    def __init__(self, settings: ServerSettings) -> None:
        self.table = settings.slos
        self._priors = load_priors(settings.predictor_dir)
        self._front = new_front()
        self._seen = SeenBeginnings()

    def new_key(self) -> int:
        """A name for a request."""
        return new_fleet_key(self._front)

    def make(
        self,
        hints: Hints,
        prompt_tokens: float,
        max_tokens: int | None,
        prompt: Sequence[int] | str = (),
    ) -> FleetRequest:
        """A request that comes now; its key is ``hints.fleet_key``.

        One without a prediction is as long as its class's requests are. The ``prompt`` says what
        others may have had before it; of several, that of the first.
        """
        assert hints.fleet_key is not None
        slo, levels = hints.promised, self._priors.levels
        said = hints.quantiles
        row = (
            self._priors.prior(slo.slo_class)
            if said is None or len(said) != len(levels)
            else np.array(said, dtype=np.float64)
        )
        return FleetRequest(
            hints.fleet_key,
            time.monotonic(),
            max(1.0, prompt_tokens),
            clip_to_max_tokens(row, max_tokens),
            math.inf if slo.ttft_s is None else slo.ttft_s,
            math.inf if slo.tpot_s is None else slo.tpot_s,
            math.inf if slo.e2e_s is None else slo.e2e_s,
            self.table.weight(slo.slo_class),
            *self._seen.note(prompt),
        )


class FleetDesk:
    """A router's dispatcher, with its figures in the metrics."""

    def __init__(self, settings: ServerSettings, metrics: ApiMetrics) -> None:
        self._metrics = metrics
        self._counted: dict[str, int] = {}
        self._shown: set[str] = set()
        profile = load_profile(settings.profile or DEFAULT_PROFILE)
        try:
            warm_up(_router(settings), profile)
        except Exception as error:  # it would fail for requests too, and is counted there
            logger.warning("the router does not warm up: %r", error)
        self.dispatcher = Dispatcher(_router(settings), profile)

    async def choose(self, request: FleetRequest) -> str | None:
        """The engine for a request, which may be held back; None where the router has none.

        Whatever is wrong with the router costs no request: who serves it is then the engine's
        own balancing to say.
        """
        try:
            return await self.dispatcher.choose(request)
        except asyncio.CancelledError:
            raise
        except Exception as error:
            self._metrics.fleet_unrouted.labels(type(error).__name__).inc()
            return None

    def show(self) -> None:
        """Bring the metrics up to date."""
        status = self.dispatcher.status()
        decisions = status["decisions"] | {"error": status["errors"]}
        for rung, count in decisions.items():
            self._metrics.fleet_decisions.labels(rung).inc(count - self._counted.get(rung, 0))
            self._counted[rung] = count
        self._metrics.fleet_held.set(status["held"])
        shown = dict(figures(status))
        for name in self._shown | shown.keys():
            of_it = shown.get(name, {"outstanding": 0.0, "work_s": 0.0, "state_age_s": math.nan})
            self._metrics.fleet_outstanding.labels(name).set(of_it["outstanding"])
            self._metrics.fleet_work.labels(name).set(of_it["work_s"])
            self._metrics.fleet_state_age.labels(name).set(of_it["state_age_s"])
        self._shown |= shown.keys()

    def status(self) -> dict[str, Any]:
        """The router's part of ``GET /lengthwise/status``."""
        return self.dispatcher.status()


def _router(settings: ServerSettings) -> FleetRouter:
    return make_router(
        settings.router,
        load_priors(settings.predictor_dir).levels,
        policy=settings.policy,
        rng=np.random.default_rng(settings.seed),
        began_s=time.monotonic(),
        max_wait_s=settings.max_wait_s,
    )
