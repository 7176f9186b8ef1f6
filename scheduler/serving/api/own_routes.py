"""Our own routes: ``GET /lengthwise/status``, ``POST /lengthwise/reload`` and ``.../configure``.

vLLM's key check does not guard them, so all three ask for its API key where there is one.
"""

from __future__ import annotations

import hmac
import json
import logging
import os
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import asdict
from typing import Any

from lengthwise.data.errors import InputError
from lengthwise.scheduler.serving.api.api_metrics import ApiMetrics
from lengthwise.scheduler.serving.api.asgi import (
    Receive,
    Scope,
    Send,
    read_body,
    send_json,
)
from lengthwise.scheduler.serving.api.engines import (
    ask_all,
    engine_client_of,
    engine_core_of,
    one_answer,
    status_of_all,
)
from lengthwise.scheduler.serving.api.predicting.prediction import PredictionService
from lengthwise.scheduler.serving.api.predicting.reload import (
    FAILED,
    REFUSED,
    LiveReloader,
    Outcomes,
)
from lengthwise.scheduler.serving.api.refuse import (
    CONFLICT,
    FORBIDDEN,
    INVALID,
    UNAUTHORIZED,
    UNAVAILABLE,
    refuse,
)
from lengthwise.scheduler.serving.settings import LOGGER_NAME, ServerSettings
from lengthwise.scheduler.serving.wire.configure_request import ConfigureRequest, parse_request
from lengthwise.scheduler.serving.wire.utility_calls import CONFIGURE_METHOD, STATUS_METHOD

logger = logging.getLogger(LOGGER_NAME)

STATUS_PATH = "/lengthwise/status"
CONFIGURE_PATH = "/lengthwise/configure"
RELOAD_PATH = "/lengthwise/reload"

_MOST_CONFIGURE_BYTES = 16 * 1024

RouterStatus = Callable[[], Awaitable[Mapping[str, Any] | None]]


def _nothing() -> None:
    """Nothing of the kind is served."""


class OwnRoutes:
    """Answers on them. ``reloader`` is absent where there is no live file.

    ``router_status`` is that of a router over several engines, None where there is none; with
    ``always_several`` a status lists its engines also where there is one. ``reader_status`` is
    that of the causal reader, ``openings_status`` that of estimates from answers' openings.
    """

    def __init__(
        self,
        settings: ServerSettings,
        service: PredictionService,
        metrics: ApiMetrics,
        reloader: LiveReloader | None,
        router_status: RouterStatus,
        *,
        always_several: bool = False,
        reader_status: Callable[[], Mapping[str, Any] | None] = _nothing,
        openings_status: Callable[[], Mapping[str, Any] | None] = _nothing,
    ) -> None:
        self._settings = settings
        self._service = service
        self._metrics = metrics
        self._reloader = reloader
        self._router_status = router_status
        self._always_several = always_several
        self._reader_status = reader_status
        self._openings_status = openings_status
        self._answers = {
            ("GET", STATUS_PATH): self._status,
            ("POST", RELOAD_PATH): self._reload,
            ("POST", CONFIGURE_PATH): self._configure,
        }

    def __contains__(self, route: tuple[str, str]) -> bool:
        return route in self._answers

    async def answer(
        self, route: tuple[str, str], scope: Scope, receive: Receive, send: Send
    ) -> None:
        """Answer on one of these routes, (method, path). Raises InputError for a bad body."""
        await self._answers[route](scope, receive, send)

    async def _status(self, scope: Scope, receive: Receive, send: Send) -> None:
        if not await self._authorize(scope, send):
            return
        answers = await ask_engines(scope, STATUS_METHOD)
        engine = status_of_all(STATUS_METHOD, answers, always=self._always_several)
        if engine is None:
            await self._refuse(send, 503, "the engine does not answer", UNAVAILABLE)
            return
        service, reloader = self._service, self._reloader
        api = {
            "lengths": service.lengths,
            "predictor_dir": service.directory,
            "predictor_version": service.version,
            "shadow_version": None if service.shadow is None else service.shadow.served.version,
            "levels": service.levels,
            "reader": self._reader_status(),
            "openings": self._openings_status(),
            "live": None if reloader is None else _shown(reloader.last),
        }
        router = await self._router_status()
        if router is not None:
            engine["router"] = router
        await send_json(send, 200, engine | {"api": api, "predictor_version": service.version})

    async def _reload(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Look at the live file now. No body is read: what is loaded is the file's to say."""
        if not await self._authorize(scope, send):
            return
        if self._reloader is None:
            message = "this server was started without a live_file: there is nothing to reload"
            await self._refuse(send, 409, message, CONFLICT)
            return
        outcomes = await self._reloader.check(configuring(scope), again=True)
        reasons = "; ".join(part.reason for part in outcomes.values() if part.reason is not None)
        found = {part.outcome for part in outcomes.values()}
        document = {"parts": _shown(outcomes), "predictor_version": self._service.version}
        if REFUSED in found:
            await self._refuse(send, 422, reasons, INVALID, document)
        elif FAILED in found:
            status, kind = (409, CONFLICT) if "file" in outcomes else (503, UNAVAILABLE)
            await self._refuse(send, status, reasons, kind, document)
        else:
            await send_json(send, 200, document)

    async def _configure(self, scope: Scope, receive: Receive, send: Send) -> None:
        if not self._settings.allow_configure:
            message = "this server was started without allow_configure"
            await self._refuse(send, 403, message, FORBIDDEN)
            return
        if not await self._authorize(scope, send):
            return
        most = min(_MOST_CONFIGURE_BYTES, self._settings.max_body_bytes or _MOST_CONFIGURE_BYTES)
        raw, complete = await read_body(receive, enough_bytes=most)
        if not complete or len(raw) > most:  # understanding it would keep everybody waiting
            await self._refuse(send, 413, f"the body must not exceed {most} bytes", INVALID)
            return
        try:
            body = json.loads(raw)
        except (ValueError, RecursionError) as error:
            raise InputError(f"the body must be JSON: {error}") from error
        request = parse_request(ConfigureRequest, body)
        answers = await ask_engines(scope, CONFIGURE_METHOD, request.model_dump())
        answer = one_answer(CONFIGURE_METHOD, answers)
        if answer is None:
            await self._refuse(send, 503, "the engine does not answer", UNAVAILABLE)
            return
        if "error" in answer:
            raise InputError(answer["error"])
        if request.lengths is not None:
            self._service.lengths = request.lengths
        await send_json(send, 200, answer)

    async def _authorize(self, scope: Scope, send: Send) -> bool:
        """Whether the caller has vLLM's key, where there is one; answers 401 if not."""
        if is_authorized(scope):
            return True
        await self._refuse(send, 401, "Unauthorized", UNAUTHORIZED)
        return False

    async def _refuse(
        self,
        send: Send,
        status: int,
        message: str,
        kind: str,
        document: dict[str, Any] | None = None,
    ) -> None:
        await refuse(send, self._metrics, status, message, kind, document=document)


def is_authorized(scope: Scope) -> bool:
    """Whether a caller has vLLM's key; its own check guards neither our routes nor what stands
    outside of its layers."""
    args = getattr(getattr(scope.get("app"), "state", None), "args", None)
    given_keys = getattr(args, "api_key", None) or [os.environ.get("VLLM_API_KEY")]
    keys = [key for key in given_keys if key]
    if not keys:
        return True
    # of two the first, as in vLLM's own check
    given = (value for name, value in scope["headers"] if name.lower() == b"authorization")
    header = next(given, b"")
    scheme, _, token = header.partition(b" ")
    return scheme.lower() == b"bearer" and any(
        hmac.compare_digest(token, key.encode()) for key in keys
    )


def configuring(scope: Scope) -> Callable[[dict[str, Any]], Awaitable[dict[str, Any] | None]]:
    """Configures the engines behind this call's application, later too."""
    behind = {"app": scope["app"]}

    async def ask(request: dict[str, Any]) -> dict[str, Any] | None:
        answers = await ask_engines(behind, CONFIGURE_METHOD, request)
        return one_answer(CONFIGURE_METHOD, answers)

    return ask


async def ask_engines(scope: Scope, method: str, *args: Any) -> dict[str, Any]:
    """Call a utility method of every engine; an exception where one is missing or fails."""
    core = engine_core_of(engine_client_of(scope))
    if core is None:
        logger.warning("%s: there is no engine", method)
        return {}
    return await ask_all(core, method, *args)


def _shown(outcomes: Outcomes) -> dict[str, Any]:
    return {name: asdict(part) for name, part in outcomes.items()}
