"""The front of several instances: our middleware, and behind it whatever instance is chosen.

The middleware reads, predicts and admits as in front of a single server; where that would call
vLLM's application, the request goes to an instance with what was found of it, and the answer comes
back as it is made.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

from ray.exceptions import RayActorError
from ray.serve.exceptions import RayServeException

from lengthwise.predictor.features.scan import uncut
from lengthwise.scheduler.fleet.beginnings import CHARS_PER_TOKEN
from lengthwise.scheduler.ray_adapter.forwarded import Forwarded, ForwardedCall
from lengthwise.scheduler.ray_adapter.instance_answer import answer_messages, client_left
from lengthwise.scheduler.ray_adapter.instance_metrics import one_page
from lengthwise.scheduler.ray_adapter.instances import EngineClient, Instances
from lengthwise.scheduler.ray_adapter.router_list import routers
from lengthwise.scheduler.serving.api.api_metrics import ApiMetrics, api_metrics
from lengthwise.scheduler.serving.api.asgi import Receive, Scope, Send, read_body, send_whole
from lengthwise.scheduler.serving.api.call import Call, current_call
from lengthwise.scheduler.serving.settings import NO_ROUTER, ServerSettings, make_settings
from lengthwise.scheduler.vllm_adapter.api.instances.data_parallel import without_rank
from lengthwise.scheduler.vllm_adapter.api.instances.fleet_desk import FleetRequests
from lengthwise.scheduler.vllm_adapter.api.vllm_middleware import LengthwiseMiddleware

logger = logging.getLogger("ray.serve")

EVERY_INSTANCE = frozenset({
    "/sleep", "/wake_up", "/pause", "/resume", "/reset_prefix_cache", "/reset_mm_cache",
    "/reset_encoder_cache", "/start_profile", "/stop_profile", "/collective_rpc",
    "/v1/load_lora_adapter", "/v1/unload_lora_adapter",
})  # fmt: skip
"""POSTs that switch something, and so go to every instance."""
_TRIES = 3  # of a request whose instance is lost before it has begun to answer
_WATCH_S = 2.0  # between looks for instances that have joined


class Front:
    """The ASGI application of the front; ``handle`` is Serve's to the instances.

    With ``api_keys`` nothing is read or said for a client that has none of them.
    """

    def __init__(self, settings: ServerSettings, handle: Any, api_keys: Sequence[str] = ()) -> None:
        self._instances = Instances(handle)
        self._handle = handle.options(stream=True, method_name="forward")
        self._metrics: ApiMetrics = api_metrics()
        self._requests = FleetRequests(settings)
        self._routed = settings.router != NO_ROUTER
        self._middleware = FleetMiddleware(self._pass_on, settings)
        self._watch: asyncio.Task[None] | None = None
        client = EngineClient(self._instances)
        state = SimpleNamespace(
            engine_client=client, args=SimpleNamespace(api_key=list(api_keys) or None)
        )
        self._app = SimpleNamespace(state=state)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One ASGI call."""
        if scope["type"] == "lifespan":
            await _lifespan(receive, send)
        elif scope["type"] == "http":
            if self._watch is None:
                self._watch = asyncio.get_running_loop().create_task(self._watch_newcomers())
            scope = {**scope, "app": self._app, "headers": without_rank(list(scope["headers"]))}
            await self._middleware(scope, receive, send)
        else:  # a websocket
            await send({"type": "websocket.close", "code": 1003})

    async def _watch_newcomers(self) -> None:
        while True:
            await asyncio.sleep(_WATCH_S)
            try:
                status = await self._middleware.router_status()
                if status is not None:
                    names = {one["name"] for one in status["instances"]}
                    await self._instances.tell_newcomers(names)
            except Exception as error:  # it is tried again
                logger.warning("instances that joined are not configured: %r", error)

    async def _pass_on(self, scope: Scope, receive: Receive, send: Send) -> None:
        body, _ = await read_body(receive)
        call = current_call()
        request = self._forwarded(scope, bytes(body), call)
        if scope["method"] == "GET" and scope["path"] == "/metrics":
            await self._send_metrics(request, send)
        elif scope["method"] == "POST" and scope["path"] in EVERY_INSTANCE:
            await self._send_of_all(request, send)
        else:
            await self._answer(request, receive, send)

    def _forwarded(self, scope: Scope, body: bytes, call: Call | None) -> Forwarded:
        client = scope.get("client")
        request = Forwarded(
            scope["method"],
            scope["path"],
            scope.get("query_string", b""),
            [(bytes(name), bytes(value)) for name, value in scope["headers"]],
            body,
            None if client is None else (str(client[0]), int(client[1])),
        )
        if call is None or call.hints is None:
            return request
        key = self._requests.new_key()
        hints = call.all_hints()
        longest = max(hints, key=lambda one: sum(one.quantiles or ()), default=call.others)
        fleet = self._requests.make(
            replace(longest, fleet_key=key),
            1.0 + sum(len(text) for text in call.texts if text) / CHARS_PER_TOKEN,
            call.max_tokens,
            uncut(next((text for text in call.texts if text), "")),
        )
        named = [replace(one, fleet_key=key) if place == 0 else one
                 for place, one in enumerate(hints)]  # fmt: skip
        others = call.others if named else replace(call.others, fleet_key=key)
        said = ForwardedCall(named, others, call.whole_id, call.is_open, call.levels)
        return replace(request, call=said, fleet=fleet if self._routed else None)

    async def _answer(self, request: Forwarded, receive: Receive, send: Send) -> None:
        """From one instance; from another where it was lost before it began to answer."""
        gone = asyncio.ensure_future(client_left(receive))
        try:
            for attempt in range(_TRIES):
                begun = False
                try:
                    async for message in answer_messages(self._handle, request, gone):
                        begun = True
                        await send(message)
                    return
                except (RayActorError, RayServeException) as error:
                    if begun or attempt + 1 == _TRIES:
                        raise
                    logger.warning("an instance was lost before it answered: %r", error)
                    self._metrics.fleet_retries.inc()
                    request = self._renamed(request)
        finally:
            gone.cancel()

    def _renamed(self, request: Forwarded) -> Forwarded:
        """The same request under another name: the router may still know the first as sent."""
        if request.call is None:
            return request
        key, call = self._requests.new_key(), request.call
        named = [replace(one, fleet_key=key) if one.fleet_key is not None else one
                 for one in (*call.hints, call.others)]  # fmt: skip
        renamed = replace(call, hints=named[:-1], others=named[-1])
        fleet = None if request.fleet is None else replace(request.fleet, key=key)
        return replace(request, call=renamed, fleet=fleet)

    async def _send_of_all(self, request: Forwarded, send: Send) -> None:
        """The worst of all instances' answers."""
        answers = await self._instances.answers_of_all(request)
        if not answers:
            kind = [(b"content-type", b"text/plain")]
            await send_whole(send, 503, kind, b"no instance answers\n")
            return
        started, body = max(answers.values(), key=lambda one: one[0].status)
        await send_whole(send, started.status, list(started.headers), body)

    async def _send_metrics(self, request: Forwarded, send: Send) -> None:
        from prometheus_client import generate_latest

        answers = await self._instances.answers_of_all(request)
        pages = {
            name: body.decode() for name, (started, body) in answers.items()
            if started.status == 200
        }  # fmt: skip
        page = one_page(_ours_only(generate_latest().decode()), pages)
        kind = [(b"content-type", b"text/plain; version=0.0.4; charset=utf-8")]
        await send_whole(send, 200, kind, page.encode())


class FleetMiddleware(LengthwiseMiddleware):
    """The middleware of a single server, with the routers' status in its own."""

    has_layers = False

    async def router_status(self) -> Mapping[str, Any] | None:
        """Of the first router of this process; there is one a handle."""
        for router in routers():
            return await router.status()
        return None


async def _lifespan(receive: Receive, send: Send) -> None:
    while True:
        message = await receive()
        await send({"type": f"{message['type']}.complete"})
        if message["type"] == "lifespan.shutdown":
            return


def _ours_only(page: str) -> str:
    """The front's own families: what it says of its process is not the engines' affair."""
    return "\n".join(line for line in page.splitlines() if "lengthwise_" in line.split("{")[0])


class FrontDeployment:
    """The front as Ray Serve runs it; made a deployment by `application`."""

    def __init__(
        self, instances: Any, settings: Mapping[str, Any], api_keys: Sequence[str] = ()
    ) -> None:
        self._front = Front(make_settings(settings), instances, api_keys)

    async def __serve_build_asgi_app__(self) -> Front:
        """What Serve asks for once the replica is made."""
        return self._front
