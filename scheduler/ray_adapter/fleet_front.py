"""The front of several instances: our middleware, and behind it whatever instance is chosen.

The middleware reads, predicts and admits as in front of a single server; where that would call
vLLM's application, the request goes to an instance with what was found of it, and the answer comes
back as it is made.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Collection, Mapping, Sequence
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

from ray.exceptions import RayActorError
from ray.serve.exceptions import RayServeException

from lengthwise.scheduler.ray_adapter.forwarded import Forwarded, ForwardedCall, Started
from lengthwise.scheduler.ray_adapter.instance_metrics import one_page
from lengthwise.scheduler.ray_adapter.router_list import routers
from lengthwise.scheduler.vllm_adapter.api.admission_desk import CHARS_PER_TOKEN
from lengthwise.scheduler.vllm_adapter.api.api_metrics import ApiMetrics, api_metrics
from lengthwise.scheduler.vllm_adapter.api.data_parallel import without_rank
from lengthwise.scheduler.vllm_adapter.api.engines import ANSWER_S
from lengthwise.scheduler.vllm_adapter.api.fleet_desk import FleetRequests
from lengthwise.scheduler.vllm_adapter.api.middleware import LengthwiseMiddleware
from lengthwise.scheduler.vllm_adapter.api.sequences import Call, current_call
from lengthwise.scheduler.vllm_adapter.settings import NO_ROUTER, ServerSettings, make_settings
from lengthwise.scheduler.vllm_adapter.wire.utility_calls import CONFIGURE_METHOD

logger = logging.getLogger("ray.serve")

EVERY_INSTANCE = frozenset({
    "/sleep", "/wake_up", "/pause", "/resume", "/reset_prefix_cache", "/reset_mm_cache",
    "/reset_encoder_cache", "/start_profile", "/stop_profile", "/collective_rpc",
    "/v1/load_lora_adapter", "/v1/unload_lora_adapter",
})  # fmt: skip
"""POSTs that switch something, and so go to every instance."""
_TRIES = 3  # of a request whose instance is lost before it has begun to answer
_WATCH_S = 2.0  # between looks for instances that have joined


class Instances:
    """The instances as the middleware sees them: an engine's client that answers for all."""

    def __init__(self, handle: Any) -> None:
        self._handle = handle
        self._configured: dict[str, Any] = {}
        self._told: set[str] = set()

    async def ask_all(self, method: str, *args: Any, timeout_s: float) -> dict[str, Any]:
        """Every instance's answer to a utility call, by its name."""
        answers = await self._of_all("ask_engine", method, *args, timeout_s=timeout_s)
        if method == CONFIGURE_METHOD:
            self._note(args[0], answers)
        return answers

    async def tell_newcomers(self, names: Collection[str]) -> None:
        """Configure instances that have joined since as the others were, which starts them anew
        with the server's first settings."""
        if self._configured and not self._told.issuperset(names):
            said = dict(self._configured)
            answers = await self.ask_all(CONFIGURE_METHOD, said, timeout_s=ANSWER_S)
            logger.info("%d instances configured with %s", len(answers), sorted(said))

    def _note(self, body: Mapping[str, Any], answers: Mapping[str, Any]) -> None:
        """Remember what was put in place, and where."""
        done = {
            name for name, answer in answers.items()
            if isinstance(answer, Mapping) and "error" not in answer
        }  # fmt: skip
        if done and len(done) == len(answers):
            passing = ("reset_stats", "log_steps")
            self._configured |= {
                name: value for name, value in body.items()
                if value is not None and name not in passing
            }  # fmt: skip
            self._told = done

    async def answers_of_all(self, request: Forwarded) -> dict[str, tuple[Started, bytes]]:
        """Every instance's whole answer to a request, by its name."""
        found = await self._of_all("answer", request, timeout_s=ANSWER_S)
        return {name: said for name, said in found.items() if not isinstance(said, Exception)}

    async def _of_all(self, method: str, *args: Any, timeout_s: float) -> dict[str, Any]:
        response = self._handle.broadcast(method, *args)
        try:
            said = await response.results_async(timeout_s=timeout_s, return_exceptions=True)
        except Exception as error:
            return {"all": error}
        found: dict[str, Any] = {}
        for place, one in enumerate(said):
            if isinstance(one, Exception):
                found[f"unknown-{place}"] = one
            else:
                name, *rest = one
                found[name] = rest[0] if len(rest) == 1 else tuple(rest)
        return found


class _EngineClient:
    """What the middleware looks for behind an application."""

    def __init__(self, instances: Instances) -> None:
        self.engine_core = instances

    def generate(self, prompt: Any, sampling_params: Any, *args: Any, **kwargs: Any) -> Any:
        """No sequence is started in the front."""
        raise RuntimeError("the front generates nothing")


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
        client = _EngineClient(self._instances)
        state = SimpleNamespace(
            engine_client=client, args=SimpleNamespace(api_key=list(api_keys) or None)
        )
        self._app = SimpleNamespace(state=state)

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
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

    async def _pass_on(self, scope: Any, receive: Any, send: Any) -> None:
        body = await _whole_body(receive)
        if body is None:
            return
        call = current_call()
        request = self._forwarded(scope, body, call)
        if scope["method"] == "GET" and scope["path"] == "/metrics":
            await self._send_metrics(request, send)
        elif scope["method"] == "POST" and scope["path"] in EVERY_INSTANCE:
            await self._send_of_all(request, send)
        else:
            await self._answer(request, receive, send)

    def _forwarded(self, scope: Any, body: bytes, call: Call | None) -> Forwarded:
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
        )
        named = [replace(one, fleet_key=key) if place == 0 else one
                 for place, one in enumerate(hints)]  # fmt: skip
        others = call.others if named else replace(call.others, fleet_key=key)
        said = ForwardedCall(named, others, call.whole_id, call.is_open, call.levels)
        return replace(request, call=said, fleet=fleet if self._routed else None)

    async def _answer(self, request: Forwarded, receive: Any, send: Any) -> None:
        """From one instance; from another where it was lost before it began to answer.

        The status of a stream comes long before its first token, so it is kept back until there is
        something to answer: what had only been accepted is not lost with its instance.
        """
        gone = asyncio.ensure_future(_client_left(receive))
        try:
            for attempt in range(_TRIES):
                begun = False
                try:
                    async for message in self._messages(request, gone):
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

    async def _messages(
        self, request: Forwarded, gone: asyncio.Future[None]
    ) -> AsyncIterator[dict[str, Any]]:
        """The ASGI messages of an instance's answer; none any more once the client has left."""
        parts = self._handle.remote(request)
        start: dict[str, Any] | None = None
        try:
            async for part in _until(parts, gone):
                if isinstance(part, Started):
                    headers = list(part.headers)
                    start = {
                        "type": "http.response.start", "status": part.status, "headers": headers,
                    }  # fmt: skip
                    continue
                if start is not None:
                    yield start
                    start = None
                yield {"type": "http.response.body", "body": part, "more_body": True}
            if not gone.done():
                if start is not None:
                    yield start
                yield {"type": "http.response.body", "body": b"", "more_body": False}
        finally:
            parts.cancel()

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

    async def _send_of_all(self, request: Forwarded, send: Any) -> None:
        """The worst of all instances' answers."""
        answers = await self._instances.answers_of_all(request)
        if not answers:
            await _send_plain(send, 503, b"no instance answers\n")
            return
        started, body = max(answers.values(), key=lambda one: one[0].status)
        await _send_whole(send, started.status, list(started.headers), body)

    async def _send_metrics(self, request: Forwarded, send: Any) -> None:
        from prometheus_client import generate_latest

        answers = await self._instances.answers_of_all(request)
        pages = {
            name: body.decode() for name, (started, body) in answers.items()
            if started.status == 200
        }  # fmt: skip
        page = one_page(_ours_only(generate_latest().decode()), pages)
        kind = [(b"content-type", b"text/plain; version=0.0.4; charset=utf-8")]
        await _send_whole(send, 200, kind, page.encode())


class FleetMiddleware(LengthwiseMiddleware):
    """The middleware of a single server, with the routers' status in its own."""

    has_layers = False

    async def router_status(self) -> Mapping[str, Any] | None:
        """Of the first router of this process; there is one a handle."""
        for router in routers():
            return await router.status()
        return None


async def _until(parts: Any, gone: asyncio.Future[None]) -> AsyncIterator[Any]:
    """The parts, until the client has left."""
    while True:
        following = asyncio.ensure_future(anext(parts, None))
        following.add_done_callback(_seen)
        try:
            await asyncio.wait({following, gone}, return_when=asyncio.FIRST_COMPLETED)
        except BaseException:
            following.cancel()
            raise
        if not following.done():
            following.cancel()
            return
        part = following.result()
        if part is None:
            return
        yield part


def _seen(part: asyncio.Future[Any]) -> None:
    """What becomes of a part that nobody waits for any more is not reported as unseen."""
    if not part.cancelled():
        part.exception()


async def _client_left(receive: Any) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def _whole_body(receive: Any) -> bytes | None:
    """The body; None of a client that left."""
    body = bytearray()
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            return None
        body += message.get("body", b"")
        if not message.get("more_body", False):
            return bytes(body)


async def _lifespan(receive: Any, send: Any) -> None:
    while True:
        message = await receive()
        await send({"type": f"{message['type']}.complete"})
        if message["type"] == "lifespan.shutdown":
            return


async def _send_plain(send: Any, status: int, body: bytes) -> None:
    await _send_whole(send, status, [(b"content-type", b"text/plain")], body)


async def _send_whole(send: Any, status: int, headers: list[Any], body: bytes) -> None:
    kept = [pair for pair in headers if pair[0].lower() != b"content-length"]
    kept.append((b"content-length", str(len(body)).encode()))
    await send({"type": "http.response.start", "status": status, "headers": kept})
    await send({"type": "http.response.body", "body": body})


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
