"""The API process's side: read the request, check its SLO, predict its lengths, pass it on.

A pure ASGI class that each adapter binds to its engine. It puts itself behind the server's own
layers (``layers``), reads the POSTs to the routes that have a reader, and leaves what it found
where the sequences of the request will find it (``call``); bodies go on as they came, responses
stream through untouched. ``own_routes`` answers on routes of our own.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Collection, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from lengthwise.data.errors import InputError
from lengthwise.data.slo import SloTable
from lengthwise.scheduler.serving.api.api_metrics import api_metrics
from lengthwise.scheduler.serving.api.asgi import (
    App,
    BodyTooLargeError,
    ClientGoneError,
    Receive,
    Scope,
    Send,
    given_again,
    header_map,
    of_length,
    read_limited,
    route_path,
)
from lengthwise.scheduler.serving.api.body.large_body import compile_passes
from lengthwise.scheduler.serving.api.body.readers import History, Reader, no_history
from lengthwise.scheduler.serving.api.body.request_body import (
    MOST_INLINE_BYTES,
    ParsedRequest,
    parse_body,
    parse_headers,
)
from lengthwise.scheduler.serving.api.call import Call, calling
from lengthwise.scheduler.serving.api.engines import engine_client_of, engine_core_of
from lengthwise.scheduler.serving.api.front_desk import Front
from lengthwise.scheduler.serving.api.layers import put_innermost
from lengthwise.scheduler.serving.api.own_routes import OwnRoutes, configuring, is_authorized
from lengthwise.scheduler.serving.api.predicting.prediction import (
    PredictionService,
    load_service,
)
from lengthwise.scheduler.serving.api.predicting.reload import LiveReloader
from lengthwise.scheduler.serving.api.refuse import INVALID, refuse, shed
from lengthwise.scheduler.serving.api.trailers import leave_out_trailers
from lengthwise.scheduler.serving.quick_exit import end_quickly
from lengthwise.scheduler.serving.settings import (
    LOGGER_NAME,
    ServerSettings,
    settings_from_environment,
)
from lengthwise.scheduler.serving.wire.admission_question import Answer

logger = logging.getLogger(LOGGER_NAME)

_READING_THREADS = 2  # for large bodies; more would only wait for one another


class ServingMiddleware:
    """One engine's routes: those in ``readers`` have their bodies read, those in ``headers_only``
    their headers.

    Settings come from the environment (``settings.SETTINGS_VARIABLE``) unless given.
    """

    has_layers = True  # whether there are layers of a server to stand behind
    readers: Mapping[str, Reader] = {}
    headers_only: Collection[str] = ()

    def __init__(
        self,
        app: App,
        settings: ServerSettings | None = None,
        service: PredictionService | None = None,
    ) -> None:
        self.settings = settings if settings is not None else settings_from_environment()
        self._table = self.settings.slos
        self.metrics = api_metrics()
        self.service = service or load_service(self.settings, self.metrics)
        self.front = self.make_front()
        self._readers = ThreadPoolExecutor(_READING_THREADS, thread_name_prefix="request-body")
        compile_passes()
        leave_out_trailers()
        end_quickly()
        self.reloader: LiveReloader | None = None
        if self.settings.live_file is not None:
            self.reloader = LiveReloader(self.settings, self.service, self.metrics, self.use_table)
        self._own = OwnRoutes(
            self.settings,
            self.service,
            self.metrics,
            self.reloader,
            self.router_status,
            always_several=not self.has_layers,
            reader_status=self.front.reader.status,
            openings_status=self.front.openings.status,
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
            self.front.attach(engine_client_of(scope))
            scope = self.of_client(scope)
            if self.reloader is not None and scope["type"] == "http":
                self.reloader.start(configuring(scope))
        if scope["type"] != "http":
            with calling(Call(scope=scope)):
                await self.app(scope, receive, send)
            return
        try:
            await self._answer(scope, receive, send)
        except InputError as error:
            await refuse(send, self.metrics, 400, str(error), INVALID)
        except BodyTooLargeError:
            most = self.settings.max_body_bytes
            message = f"request body must not exceed {most} bytes"
            await refuse(send, self.metrics, 413, message, INVALID)
        except ClientGoneError:
            return

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        """By the way of the request's route."""
        path, is_post = route_path(scope), scope["method"] == "POST"
        reader = self.readers.get(path) if is_post else None
        # nothing is read, judged or said to whom a layer behind ours will turn away
        stranger = not self._innermost and not is_authorized(scope)
        if reader is not None and not stranger:
            await self._generation(scope, receive, send, reader)
        elif is_post and path in self.headers_only and not stranger:
            parsed = parse_headers(header_map(scope), self._table)
            await self._pass_on(scope, receive, send, parsed)
        elif (scope["method"], path) in self._own:
            await self._own.answer((scope["method"], path), scope, receive, send)
        else:
            with calling(Call(scope=scope)):
                await self.app(scope, receive, send)

    async def _generation(self, scope: Scope, receive: Receive, send: Send, reader: Reader) -> None:
        """Read the body, then pass it on with what was found."""
        raw, complete = await read_limited(receive, self.settings.max_body_bytes)
        headers = header_map(scope)
        if not complete:
            parsed = parse_headers(headers, self._table)
            await self._pass_on(scope, given_again(raw, receive, more=True), send, parsed)
            return
        history = self.history_of(scope.get("app"))
        if len(raw) > MOST_INLINE_BYTES:
            loop = asyncio.get_running_loop()
            parsed = await loop.run_in_executor(
                self._readers, parse_body, raw, headers, self._table, reader, history
            )
        else:
            parsed = parse_body(raw, headers, self._table, reader, history)
        if parsed.raw is not raw:
            scope = of_length(scope, len(parsed.raw))
        await self._pass_on(scope, given_again(parsed.raw, receive), send, parsed)

    async def _pass_on(
        self, scope: Scope, receive: Receive, send: Send, parsed: ParsedRequest
    ) -> None:
        """Predict, ask for admission, and let the route start the request's sequences."""
        core = engine_core_of(engine_client_of(scope))
        call = await self.front.prepare(parsed, core)
        if isinstance(call, Answer):
            await shed(send, self.metrics, call)
            return
        try:
            with calling(call):
                await self.app(scope, receive, send)
        finally:
            self.front.finished(call, parsed, core)

    # -- what an adapter may know better ------------------------------------------------------

    def make_front(self) -> Front:
        """What requests are prepared by."""
        return Front(self.settings, self.service, self.metrics)

    def of_client(self, scope: Scope) -> Scope:
        """The call without what only we may set."""
        return scope

    def history_of(self, app: Any) -> History:
        """Reads the earlier responses of this application."""
        return no_history

    async def router_status(self) -> Mapping[str, Any] | None:
        """Of the router over several engines, where there is one."""
        return None

    def use_table(self, table: SloTable) -> None:
        """Judge by these classes from now on."""
        self._table = table
