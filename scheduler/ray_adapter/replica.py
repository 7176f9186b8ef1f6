"""One instance: a Ray Serve replica with an engine of its own, and vLLM's whole HTTP application.

What a client asked is answered by the very application that a single server runs, so that every
route, error and header is the same.
"""

from __future__ import annotations

import asyncio
import logging
import os
import tempfile
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any

from ray import serve
from ray.serve.llm.deployment import LLMServer

from lengthwise.scheduler.ray_adapter.asgi_call import answered
from lengthwise.scheduler.ray_adapter.forwarded import Forwarded, Started
from lengthwise.scheduler.ray_adapter.request_router import STATS_KEY

logger = logging.getLogger("ray.serve")

_LOAD_S = 5.0


class LengthwiseServer(LLMServer):
    """Ray's LLM server with our scheduler in its engine, publishing what it holds.

    ``settings`` are those of the server, as plain values; ``environment`` is set before the
    engine starts; on a CPU ``instances_per_node`` share its cores.
    """

    async def __init__(  # type: ignore[misc]  # Serve awaits it
        self,
        llm_config: Any,
        *,
        settings: Mapping[str, Any],
        environment: Mapping[str, str] | None = None,
        instances_per_node: int = 1,
        **kwargs: Any,
    ) -> None:
        self._published: dict[str, Any] = {}
        _prepare_environment(settings, environment or {}, instances_per_node)
        await super().__init__(llm_config, **kwargs)
        await self._join()

    async def _join(self) -> None:
        """Stand before the engine's client, and build the application."""
        from lengthwise.scheduler.serving.api.api_metrics import api_metrics
        from lengthwise.scheduler.vllm_adapter.api.sequences import attach

        client = self._client()
        unread = api_metrics().unread
        attach(client, lambda route: unread.labels(route).inc())
        self._asgi = await self.__serve_build_asgi_app__()

    async def forward(self, request: Forwarded) -> AsyncIterator[Started | bytes]:
        """Answer a client's request: first `Started`, then pieces of the body as they come."""
        from lengthwise.scheduler.serving.api.call import Call, calling

        said = request.call
        call = Call(scope={"path": request.path})
        if said is not None:
            call = Call(
                said.hints,
                others=said.others,
                whole_id=said.whole_id,
                is_open=said.is_open,
                levels=said.levels,
            )
        # the context goes with the task that `answered` starts, not with this generator's turns
        with calling(call):
            parts = answered(self._asgi, request)
            first = await anext(parts, None)
        try:
            if first is not None:
                yield first
            async for part in parts:
                yield part
        finally:
            await parts.aclose()
            if call.announced:
                await self._say_ended(call.whole_id)

    async def ask_engine(self, method: str, *args: Any) -> tuple[str, Any]:
        """This instance's name and its engine's answer to a utility call, or the error."""
        name = serve.get_replica_context().replica_id.unique_id
        try:
            return name, await self._client().engine_core.call_utility_async(method, *args)
        except Exception as error:
            return name, RuntimeError(f"{method}: {error!r}")

    async def answer(self, request: Forwarded) -> tuple[str, Started, bytes]:
        """A whole answer with this instance's name: for what is asked of every instance."""
        name = serve.get_replica_context().replica_id.unique_id
        started, body = Started(500, []), b""
        async for part in self.forward(request):
            if isinstance(part, Started):
                started = part
            else:
                body += part
        return name, started, body

    async def record_routing_stats(self) -> dict[str, Any]:
        """What Serve carries to the routers: the engine's state, the last one if it is late."""
        from lengthwise.scheduler.serving.wire.utility_calls import LOAD_METHOD

        stats = await super().record_routing_stats()
        try:
            async with asyncio.timeout(_LOAD_S):
                core = self._client().engine_core
                self._published = dict(await core.call_utility_async(LOAD_METHOD))
        except Exception as error:
            logger.warning("%s: %r", LOAD_METHOD, error)
        return {**stats, STATS_KEY: self._published} if self._published else dict(stats)

    async def _say_ended(self, whole_id: str) -> None:
        from lengthwise.scheduler.serving.wire.utility_calls import WHOLE_ENDED_METHOD

        try:
            await self._client().engine_core.call_utility_async(WHOLE_ENDED_METHOD, whole_id)
        except Exception as error:  # the engine books it when it runs out of room
            logger.debug("%s: %r", WHOLE_ENDED_METHOD, error)

    def _client(self) -> Any:
        return self.engine._engine_client


def _prepare_environment(
    settings: Mapping[str, Any], environment: Mapping[str, str], instances_per_node: int
) -> None:
    """What a server's processes find in their environment, before any of them starts."""
    from lengthwise.scheduler.serving.settings import SETTINGS_VARIABLE, make_settings
    from lengthwise.scheduler.vllm_adapter.server.command import computes_on_cpu, cores_of_each

    folder = Path(tempfile.mkdtemp(prefix="lengthwise-instance-"))
    (folder / "metrics").mkdir()
    os.environ["PROMETHEUS_MULTIPROC_DIR"] = str(folder / "metrics")
    os.environ[SETTINGS_VARIABLE] = str(make_settings(settings).write(folder / "settings.json"))
    os.environ.update(environment)
    if computes_on_cpu() and "VLLM_CPU_OMP_THREADS_BIND" not in os.environ:
        each = cores_of_each(instances_per_node, os.sched_getaffinity(0)).split("|")
        rank = serve.get_replica_context().rank.local_rank
        os.environ["VLLM_CPU_OMP_THREADS_BIND"] = each[rank % len(each)]
