"""The API process's side: read the request, check its SLO, predict its lengths, pass it on.

A pure ASGI class for vLLM's ``--middleware``. It puts itself behind vLLM's own layers (``layers``),
reads the POSTs to the routes that ``routes`` knows, and leaves what it found where the sequences
of the request will find it (``sequences``); bodies go on as they came, responses stream through
untouched. It also answers ``GET /lengthwise/status``, ``POST /lengthwise/reload`` and, when
allowed, ``POST /lengthwise/configure``; all three ask for vLLM's API key where there is one.
"""

from __future__ import annotations

import asyncio
import hmac
import json
import logging
import math
import os
from collections.abc import Awaitable, Callable, Mapping, MutableMapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from typing import Any

from lengthwise.data.errors import InputError
from lengthwise.data.slo import SloTable
from lengthwise.scheduler.vllm_adapter.api.api_metrics import api_metrics
from lengthwise.scheduler.vllm_adapter.api.data_parallel import without_rank
from lengthwise.scheduler.vllm_adapter.api.earlier_responses import history_of
from lengthwise.scheduler.vllm_adapter.api.engines import ask_all, one_answer, status_of_all
from lengthwise.scheduler.vllm_adapter.api.front_desk import Front, engine_core_of
from lengthwise.scheduler.vllm_adapter.api.large_body import compile_passes, pieces
from lengthwise.scheduler.vllm_adapter.api.layers import put_innermost
from lengthwise.scheduler.vllm_adapter.api.prediction import PredictionService, load_service
from lengthwise.scheduler.vllm_adapter.api.reload import FAILED, REFUSED, LiveReloader, Outcomes
from lengthwise.scheduler.vllm_adapter.api.request_body import (
    MOST_INLINE_BYTES,
    ParsedRequest,
    parse_body,
    parse_headers,
)
from lengthwise.scheduler.vllm_adapter.api.routes import HEADERS_ONLY, READERS, Reader
from lengthwise.scheduler.vllm_adapter.api.sequences import Call, calling
from lengthwise.scheduler.vllm_adapter.settings import (
    LOGGER_NAME,
    ServerSettings,
    settings_from_environment,
)
from lengthwise.scheduler.vllm_adapter.wire.admission_question import Answer
from lengthwise.scheduler.vllm_adapter.wire.configure_request import ConfigureRequest, parse_request
from lengthwise.scheduler.vllm_adapter.wire.utility_calls import CONFIGURE_METHOD, STATUS_METHOD

logger = logging.getLogger(LOGGER_NAME)

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

STATUS_PATH = "/lengthwise/status"
CONFIGURE_PATH = "/lengthwise/configure"
RELOAD_PATH = "/lengthwise/reload"

_MOST_READ_BYTES = 32 * 1024 * 1024  # a larger body streams through, only its headers are read
_READING_THREADS = 2  # for large bodies; more would only wait for one another


class _BodyTooLargeError(Exception):
    pass


class _ClientGoneError(Exception):
    pass


class LengthwiseMiddleware:
    """``--middleware lengthwise.Middleware``.

    Settings come from the environment (``settings.SETTINGS_VARIABLE``) unless given.
    """

    has_layers = True  # whether there are layers of a server to stand behind

    def __init__(
        self,
        app: App,
        settings: ServerSettings | None = None,
        service: PredictionService | None = None,
    ) -> None:
        self.settings = settings if settings is not None else settings_from_environment()
        self._table = self.settings.slos
        self._metrics = api_metrics()
        self.service = service or load_service(self.settings, self._metrics)
        self.front = Front(self.settings, self.service, self._metrics)
        self._readers = ThreadPoolExecutor(_READING_THREADS, thread_name_prefix="request-body")
        compile_passes()
        self.reloader: LiveReloader | None = None
        if self.settings.live_file is not None:
            self.reloader = LiveReloader(
                self.settings, self.service, self._metrics, self._use_table
            )
        self.app: App = app
        self._outer, self._innermost = put_innermost(app, self._behind)
        if self.has_layers and not self._innermost:
            logger.warning("the layers of the server are not known: ours stands outside of them")

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One ASGI call, through the server's layers to ours."""
        await self._outer(scope, receive, send)

    def _behind(self, inner: App) -> App:
        self.app = inner
        return self._handle

    async def _handle(self, scope: Scope, receive: Receive, send: Send) -> None:
        if "app" in scope:
            self.front.attach(_client_of(scope))
            if self.front.router is not None:
                scope = {**scope, "headers": without_rank(scope["headers"])}
            if self.reloader is not None and scope["type"] == "http":
                self.reloader.start(self._engine_of(scope))
        if scope["type"] != "http":
            with calling(Call(scope=scope)):
                await self.app(scope, receive, send)
            return
        path = _route_path(scope)
        route = (scope["method"], path)
        reader = READERS.get(path) if scope["method"] == "POST" else None
        # nothing is read, judged or said to whom a layer behind ours will turn away
        stranger = not self._innermost and not _authorized(scope)
        try:
            if reader is not None and not stranger:
                await self._generation(scope, receive, send, reader)
            elif route[0] == "POST" and path in HEADERS_ONLY and not stranger:
                parsed = parse_headers(_headers(scope), self._table)
                await self._pass_on(scope, receive, send, parsed)
            elif route == ("GET", STATUS_PATH):
                await self._status(scope, send)
            elif route == ("POST", RELOAD_PATH):
                await self._reload(scope, send)
            elif route == ("POST", CONFIGURE_PATH):
                await self._configure(scope, receive, send)
            else:
                with calling(Call(scope=scope)):
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

    # -- generations --------------------------------------------------------------------------

    async def _generation(self, scope: Scope, receive: Receive, send: Send, reader: Reader) -> None:
        """Read the body, then pass it on with what was found."""
        raw, complete = await self._read(receive)
        headers = _headers(scope)
        if not complete:
            parsed = parse_headers(headers, self._table)
            await self._pass_on(scope, _replay(raw, receive, more=True), send, parsed)
            return
        history = history_of(scope.get("app"))
        if len(raw) > MOST_INLINE_BYTES:
            loop = asyncio.get_running_loop()
            parsed = await loop.run_in_executor(
                self._readers, parse_body, raw, headers, self._table, reader, history
            )
        else:
            parsed = parse_body(raw, headers, self._table, reader, history)
        if parsed.raw is not raw:
            scope = _with_length(scope, len(parsed.raw))
        await self._pass_on(scope, _replay(parsed.raw, receive), send, parsed)

    async def _pass_on(
        self, scope: Scope, receive: Receive, send: Send, parsed: ParsedRequest
    ) -> None:
        """Predict, ask for admission, and let the route start the request's sequences."""
        core = engine_core_of(_client_of(scope))
        call = await self.front.prepare(parsed, core)
        if isinstance(call, Answer):
            await self._shed(send, call)
            return
        try:
            with calling(call):
                await self.app(scope, receive, send)
        finally:
            self.front.finished(call, parsed, core)

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

    async def _read(self, receive: Receive) -> tuple[bytearray, bool]:
        """The body, and whether that is all of it: beyond _MOST_READ_BYTES reading stops."""
        limit = self.settings.max_body_bytes
        body = bytearray()  # not a list of chunks: a client may send a byte at a time
        while True:
            message = await receive()
            if message["type"] == "http.disconnect":
                raise _ClientGoneError
            body += message.get("body", b"")
            if limit is not None and len(body) > limit:
                raise _BodyTooLargeError
            if not message.get("more_body", False):
                return body, True
            if limit is None and len(body) > _MOST_READ_BYTES:
                return body, False

    # -- status and configure -----------------------------------------------------------------

    async def _status(self, scope: Scope, send: Send) -> None:
        if not await self._authorize(scope, send):
            return
        answers = await self._ask_engines(scope, STATUS_METHOD)
        engine = status_of_all(STATUS_METHOD, answers, always=not self.has_layers)
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
        router = await self.router_status()
        if router is not None:
            engine["router"] = router
        await _send_json(send, 200, engine | {"api": api, "predictor_version": service.version})

    async def router_status(self) -> Mapping[str, Any] | None:
        """Of the router over several engines, where there is one."""
        return None if self.front.router is None else self.front.router.desk.status()

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
        raw, _ = await self._read(receive)
        try:
            body = json.loads(raw)
        except (ValueError, RecursionError) as error:
            raise InputError(f"the body must be JSON: {error}") from error
        request = parse_request(ConfigureRequest, body)
        answers = await self._ask_engines(scope, CONFIGURE_METHOD, request.model_dump())
        answer = one_answer(CONFIGURE_METHOD, answers)
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
        if self.front.router is not None:
            self.front.router.requests.table = table

    def _engine_of(self, scope: Scope) -> Callable[[dict[str, Any]], Any]:
        """Configures the engines behind this call's application, later too."""
        behind = {"app": scope["app"]}

        async def ask(request: dict[str, Any]) -> dict[str, Any] | None:
            answers = await self._ask_engines(behind, CONFIGURE_METHOD, request)
            return one_answer(CONFIGURE_METHOD, answers)

        return ask

    async def _ask_engines(self, scope: Scope, method: str, *args: Any) -> dict[str, Any]:
        """Call a utility method of every engine; an exception where one is missing or fails."""
        core = engine_core_of(_client_of(scope))
        if core is None:
            logger.warning("%s: there is no engine", method)
            return {}
        return await ask_all(core, method, *args)

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


def _route_path(scope: Scope) -> str:
    """The path that routes are matched by: without the root path that the server may run under."""
    path, root = str(scope["path"]), str(scope.get("root_path", ""))
    return path[len(root) :] if root and path.startswith(f"{root}/") else path


def _client_of(scope: Scope) -> Any:
    return getattr(getattr(scope.get("app"), "state", None), "engine_client", None)


def _with_length(scope: Scope, length: int) -> Scope:
    """A copy of the scope that states the new body's length."""
    dropped = (b"content-length", b"transfer-encoding")
    headers = [(name, value) for name, value in scope["headers"] if name.lower() not in dropped]
    headers.append((b"content-length", str(length).encode()))
    return {**scope, "headers": headers}


def _headers(scope: Scope) -> dict[str, str]:
    return {
        name.decode("latin-1").lower(): value.decode("latin-1") for name, value in scope["headers"]
    }


def _replay(raw: bytes | bytearray, receive: Receive, more: bool = False) -> Receive:
    """A ``receive`` that gives the body first, then whatever the client does (the rest of a body,
    disconnects)."""
    parts = pieces(raw)
    given = 0

    async def replayed() -> Message:
        nonlocal given
        if given:
            await asyncio.sleep(0)  # whoever wants all of it takes all in one turn
        part = next(parts, None)
        if part is None:
            return await receive()
        given += len(part)
        return {"type": "http.request", "body": part, "more_body": more or given < len(raw)}

    return replayed


def _authorized(scope: Scope) -> bool:
    """Whether a caller has vLLM's key; its own check guards neither our routes nor what stands
    outside of its layers."""
    args = getattr(getattr(scope.get("app"), "state", None), "args", None)
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
