"""The API process's side: read the request, check its SLO, predict its length, pass it on.

A pure ASGI class for vLLM's ``--middleware``. It touches only POSTs to the two completion
routes, and of those only the body; responses stream through untouched. It also answers
``GET /lengthwise/status``, ``POST /lengthwise/reload`` and, when allowed,
``POST /lengthwise/configure``; all three ask for vLLM's API key where there is one.
"""

from __future__ import annotations

import asyncio
import hmac
import json
import logging
import math
import os
from collections.abc import Awaitable, Callable, MutableMapping, Sequence
from dataclasses import asdict, replace
from typing import Any

from lengthwise.data.errors import InputError
from lengthwise.data.slo import SloTable
from lengthwise.scheduler.vllm_adapter.api.admission_desk import AdmissionDesk
from lengthwise.scheduler.vllm_adapter.api.api_metrics import api_metrics
from lengthwise.scheduler.vllm_adapter.api.prediction import PredictionService, load_service
from lengthwise.scheduler.vllm_adapter.api.reload import FAILED, REFUSED, LiveReloader, Outcomes
from lengthwise.scheduler.vllm_adapter.api.request_body import encode_body, hints_of, parse_body
from lengthwise.scheduler.vllm_adapter.settings import (
    LOGGER_NAME,
    ServerSettings,
    settings_from_environment,
)
from lengthwise.scheduler.vllm_adapter.wire import (
    CONFIGURE_METHOD,
    STATUS_METHOD,
    Answer,
    ConfigureRequest,
    parse_request,
)

logger = logging.getLogger(LOGGER_NAME)

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

COMPLETION_PATHS = ("/v1/chat/completions", "/v1/completions")
STATUS_PATH = "/lengthwise/status"
CONFIGURE_PATH = "/lengthwise/configure"
RELOAD_PATH = "/lengthwise/reload"


class _BodyTooLargeError(Exception):
    pass


class _ClientGoneError(Exception):
    pass


class LengthwiseMiddleware:
    """``--middleware lengthwise.Middleware``.

    Settings come from the environment (``settings.SETTINGS_VARIABLE``) unless given.
    """

    def __init__(
        self,
        app: App,
        settings: ServerSettings | None = None,
        service: PredictionService | None = None,
    ) -> None:
        self.app = app
        self.settings = settings if settings is not None else settings_from_environment()
        self._table = self.settings.slos
        self._metrics = api_metrics()
        self.service = service or load_service(self.settings, self._metrics)
        self.reloader: LiveReloader | None = None
        if self.settings.live_file is not None:
            self.reloader = LiveReloader(
                self.settings, self.service, self._metrics, self._use_table
            )
        self.admission: AdmissionDesk | None = None
        if self.settings.admission.mode != "off":
            self.admission = AdmissionDesk(self.settings.admission, self._metrics)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One ASGI call."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        if self.reloader is not None and "app" in scope:
            self.reloader.start(self._engine_of(scope))
        # vLLM may run under a root path; routes are matched without it.
        path = scope["path"].removeprefix(scope.get("root_path", ""))
        route = (scope["method"], path)
        try:
            if scope["method"] == "POST" and path in COMPLETION_PATHS:
                await self._completion(scope, receive, send)
            elif route == ("GET", STATUS_PATH):
                await self._status(scope, send)
            elif route == ("POST", RELOAD_PATH):
                await self._reload(scope, send)
            elif route == ("POST", CONFIGURE_PATH):
                await self._configure(scope, receive, send)
            else:
                await self.app(scope, receive, send)
        except InputError as error:
            await self._refuse(send, 400, str(error), "invalid_request_error")
        except _BodyTooLargeError:
            await self._refuse(
                send,
                413,
                f"request body must not exceed {self.settings.max_body_bytes} bytes",
                "invalid_request_error",
            )
        except _ClientGoneError:
            return

    # -- completions --------------------------------------------------------------------------

    async def _completion(self, scope: Scope, receive: Receive, send: Send) -> None:
        raw = await self._read(scope, receive)
        headers = {
            name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]
        }
        parsed = parse_body(raw, headers, self._table)
        if parsed is not None:
            prediction, shadow = await self.service.predict_both(
                parsed.prompts, parsed.slo.slo_class, parsed.osl
            )
            log_prompts = self.settings.log_prompts and self.settings.request_log is not None
            hints = hints_of(parsed, prediction, shadow, log_prompts)
            # whom vLLM will turn away for its key need not cost the engine a verdict
            if self.admission is not None and _authorized(scope):
                characters = sum(map(len, parsed.prompts))
                answer = await self.admission.ask(
                    _engine_of(scope), hints, characters, parsed.max_tokens
                )
                if answer.action == "shed":
                    await self._shed(send, answer)
                    return
                hints = replace(hints, downgraded=answer.action == "downgrade")
            raw = encode_body(parsed, hints)
        replaced = _with_length(scope, len(raw))
        await self.app(replaced, _replay(raw, receive), send)

    async def _shed(self, send: Send, answer: Answer) -> None:
        self._metrics.rejected.labels("503").inc()
        error = {
            "message": "the request cannot meet its SLO now",
            "type": "service_unavailable",
            "param": None,
            "code": 503,
        }
        after = math.ceil(max(1.0, answer.retry_after_s or 1.0))
        await _send_json(send, 503, {"error": error}, [(b"retry-after", str(after).encode())])

    async def _read(self, scope: Scope, receive: Receive) -> bytes:
        limit = self.settings.max_body_bytes
        body = bytearray()  # not a list of chunks: a client may send a byte at a time
        while True:
            message = await receive()
            if message["type"] == "http.disconnect":
                raise _ClientGoneError
            body += message.get("body", b"")
            if len(body) > limit:
                raise _BodyTooLargeError
            if not message.get("more_body", False):
                return bytes(body)

    # -- status and configure -----------------------------------------------------------------

    async def _status(self, scope: Scope, send: Send) -> None:
        if not await self._authorize(scope, send):
            return
        engine = await self._ask_engine(scope, STATUS_METHOD)
        if engine is None:
            await self._refuse(send, 503, "the engine does not answer", "service_unavailable")
            return
        service = self.service
        api = {
            "lengths": service.lengths,
            "predictor_dir": service.directory,
            "predictor_version": service.version,
            "shadow_version": None if service.shadow is None else service.shadow.served.version,
            "levels": service.levels,
            "live": None if self.reloader is None else _shown(self.reloader.last),
        }
        await _send_json(send, 200, engine | {"api": api, "predictor_version": service.version})

    async def _reload(self, scope: Scope, send: Send) -> None:
        """Look at the live file now. No body is read: what is loaded is the file's to say."""
        if not await self._authorize(scope, send):
            return
        if self.reloader is None:
            message = "this server was started without a live_file: there is nothing to reload"
            await self._refuse(send, 409, message, "conflict")
            return
        outcomes = await self.reloader.check(self._engine_of(scope), again=True)
        reasons = [part.reason for part in outcomes.values() if part.reason is not None]
        found = {part.outcome for part in outcomes.values()}
        document = {"parts": _shown(outcomes), "predictor_version": self.service.version}
        if REFUSED in found:
            await self._refuse(
                send, 422, "; ".join(reasons), "invalid_request_error", document=document
            )
        elif FAILED in found:
            status, kind = (409, "conflict") if "file" in outcomes else (503, "service_unavailable")
            await self._refuse(send, status, "; ".join(reasons), kind, document=document)
        else:
            await _send_json(send, 200, document)

    async def _configure(self, scope: Scope, receive: Receive, send: Send) -> None:
        if not self.settings.allow_configure:
            await self._refuse(
                send, 403, "this server was started without allow_configure", "forbidden"
            )
            return
        if not await self._authorize(scope, send):
            return
        raw = await self._read(scope, receive)
        try:
            body = json.loads(raw)
        except (ValueError, RecursionError) as error:
            raise InputError(f"the body must be JSON: {error}") from error
        request = parse_request(ConfigureRequest, body)
        answer = await self._ask_engine(scope, CONFIGURE_METHOD, request.model_dump())
        if answer is None:
            await self._refuse(send, 503, "the engine does not answer", "service_unavailable")
            return
        if "error" in answer:
            raise InputError(answer["error"])
        if request.lengths is not None:
            self.service.lengths = request.lengths
        await _send_json(send, 200, answer)

    async def _authorize(self, scope: Scope, send: Send) -> bool:
        """Whether the caller has vLLM's key, where there is one; answers 401 if not."""
        if _authorized(scope):
            return True
        await self._refuse(send, 401, "Unauthorized", "authentication_error")
        return False

    def _use_table(self, table: SloTable) -> None:
        self._table = table

    def _engine_of(self, scope: Scope) -> Callable[[dict[str, Any]], Any]:
        """Configures the engine behind this call's application, later too."""
        behind = {"app": scope["app"]}

        async def ask(request: dict[str, Any]) -> dict[str, Any] | None:
            return await self._ask_engine(behind, CONFIGURE_METHOD, request)

        return ask

    async def _ask_engine(self, scope: Scope, method: str, *args: Any) -> dict[str, Any] | None:
        """Call a utility method of the engine process; None when it is missing or fails."""
        try:
            core = scope["app"].state.engine_client.engine_core
            # not wait_for, which in 3.11 may swallow the cancellation that ends the server
            async with asyncio.timeout(30.0):
                return dict(await core.call_utility_async(method, *args))
        except Exception as error:  # an engine fault must not become a traceback at the client
            logger.warning("%s: %r", method, error)
            return None

    async def _refuse(
        self,
        send: Send,
        status: int,
        message: str,
        kind: str,
        document: dict[str, Any] | None = None,
    ) -> None:
        self._metrics.rejected.labels(str(status)).inc()
        error = {"message": message, "type": kind, "param": None, "code": status}
        await _send_json(send, status, {"error": error, **(document or {})})


def _shown(outcomes: Outcomes) -> dict[str, Any]:
    return {name: asdict(part) for name, part in outcomes.items()}


def _engine_of(scope: Scope) -> Any:
    """The client of the engine core, or None before there is one."""
    client = getattr(getattr(scope.get("app"), "state", None), "engine_client", None)
    return getattr(client, "engine_core", None)


def _with_length(scope: Scope, length: int) -> Scope:
    """A copy of the scope that states the new body's length."""
    dropped = (b"content-length", b"transfer-encoding")
    headers = [(name, value) for name, value in scope["headers"] if name.lower() not in dropped]
    headers.append((b"content-length", str(length).encode()))
    return {**scope, "headers": headers}


def _replay(raw: bytes, receive: Receive) -> Receive:
    """A ``receive`` that gives the body first, then whatever the client does (disconnects)."""
    given = False

    async def replayed() -> Message:
        nonlocal given
        if given:
            return await receive()
        given = True
        return {"type": "http.request", "body": raw, "more_body": False}

    return replayed


def _authorized(scope: Scope) -> bool:
    """vLLM's own authentication runs after this middleware, so its key is checked here too."""
    args = getattr(getattr(scope["app"], "state", None), "args", None)
    given_keys = getattr(args, "api_key", None) or [os.environ.get("VLLM_API_KEY")]
    keys = [key for key in given_keys if key]
    if not keys:
        return True
    header = dict(scope["headers"]).get(b"authorization", b"")
    scheme, _, token = header.partition(b" ")
    return scheme.lower() == b"bearer" and any(
        hmac.compare_digest(token, key.encode()) for key in keys
    )


async def _send_json(
    send: Send,
    status: int,
    document: dict[str, Any],
    headers: Sequence[tuple[bytes, bytes]] = (),
) -> None:
    body = json.dumps(document).encode()
    await send(
        {
            "type": "http.response.start",
            "status": status,
            "headers": [
                (b"content-type", b"application/json"),
                (b"content-length", str(len(body)).encode()),
                *headers,
            ],
        }
    )
    await send({"type": "http.response.body", "body": body})
