"""Our router over the engines of vLLM's data parallel.

vLLM's own balancing gives way to a rank that comes with a sequence: in the server's API that is the
header ``X-data-parallel-rank``, behind it the argument ``data_parallel_rank`` of ``generate``. The
argument is what is set here, since it reaches every route and every sequence; the header is taken
from clients, who would steer around the router with it.
"""

from __future__ import annotations

import asyncio
import inspect
import logging
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import aclosing, suppress
from typing import Any, cast

from lengthwise.scheduler.fleet.beginnings import CHARS_PER_TOKEN
from lengthwise.scheduler.serving.api.api_metrics import ApiMetrics
from lengthwise.scheduler.serving.api.call import Call
from lengthwise.scheduler.serving.api.engines import VllmEngines
from lengthwise.scheduler.serving.settings import LOGGER_NAME, NO_ROUTER, ServerSettings
from lengthwise.scheduler.serving.wire.hints import Hints
from lengthwise.scheduler.serving.wire.utility_calls import LOAD_METHOD
from lengthwise.scheduler.vllm_adapter.api.instances.fleet_desk import FleetDesk, FleetRequests

logger = logging.getLogger(LOGGER_NAME)

RANK_HEADER = b"x-data-parallel-rank"
_RANK = "data_parallel_rank"
_POLL_S = 0.15
_IDLE_POLL_S = 2.0  # while nothing is out that the router sent
_ANSWER_S = 10.0


class DataParallelRouter:
    """Chooses a rank for every sequence and polls what the engines hold."""

    def __init__(self, settings: ServerSettings, engines: VllmEngines, metrics: ApiMetrics) -> None:
        self.requests = FleetRequests(settings)
        self.desk = FleetDesk(settings, metrics)
        self._engines = engines
        self._polls: set[asyncio.Task[None]] = set()
        self.desk.dispatcher.keep(engines.names)

    def start(self) -> None:
        """Begin to poll in the running loop, once."""
        if not self._polls:
            loop = asyncio.get_running_loop()
            self._polls = {loop.create_task(self._poll(name)) for name in self._engines.names}

    def new_key(self) -> int:
        """A name for a sequence."""
        return self.requests.new_key()

    async def stream(
        self,
        generate: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        hints: Hints,
        call: Call | None,
    ) -> AsyncIterator[Any]:
        """What ``generate`` yields of a sequence, on the engine that is best for it.

        All sequences of one request go to one engine: they have one outcome, and often one
        beginning.
        """
        self.start()
        key = hints.fleet_key
        assert key is not None
        try:
            rank = await self._rank(args, kwargs, hints, call)
            if rank is not None:
                kwargs = kwargs | {_RANK: int(rank)}
            async with aclosing(generate(*args, **kwargs)) as outputs:
                async for output in outputs:
                    yield output
        finally:
            self.desk.dispatcher.ended(key)

    async def _rank(
        self, args: tuple[Any, ...], kwargs: Mapping[str, Any], hints: Hints, call: Call | None
    ) -> str | None:
        params = kwargs.get("sampling_params", args[1] if len(args) > 1 else None)
        prompt = kwargs.get("prompt", args[0] if args else None)
        said = _prompt_of(prompt)
        tokens = 1.0 + len(said) // CHARS_PER_TOKEN if isinstance(said, str) else len(said)
        longest = getattr(params, "max_tokens", None)
        request = self.requests.make(hints, tokens, longest, said)
        if call is None:
            return await self.desk.choose(request)
        async with call.placing:
            if call.instance is None:
                call.instance = await self.desk.choose(request)
            else:
                self.desk.dispatcher.follow(request, call.instance)
            return call.instance

    async def _poll(self, name: str) -> None:
        while True:
            try:
                async with asyncio.timeout(_ANSWER_S):
                    message = await self._engines.ask(name, LOAD_METHOD)
                self.desk.dispatcher.heard(name, message)
            except Exception as error:  # the router goes by what it knows, less as that ages
                logger.debug("%s of engine %s: %r", LOAD_METHOD, name, error)
            with suppress(Exception):
                self.desk.show()
            busy = len(self.desk.dispatcher.router.knowledge.ledger)
            await self._sleep(_POLL_S if busy else _IDLE_POLL_S)

    async def _sleep(self, period_s: float) -> None:
        """Until the next poll; a router that gets work is not kept waiting for its first state."""
        slept_s = 0.0
        while slept_s < period_s:
            await asyncio.sleep(_POLL_S)
            slept_s += _POLL_S
            if len(self.desk.dispatcher.router.knowledge.ledger):
                return


def data_parallel_router(
    settings: ServerSettings, engine_client: Any, metrics: ApiMetrics
) -> DataParallelRouter | None:
    """The router of a server that has several engines to choose from; None of any other."""
    core = getattr(engine_client, "engine_core", None)
    if core is None or settings.router == NO_ROUTER:
        return None
    engines = VllmEngines(core)
    if len(engines.names) < 2:
        return None
    if _RANK not in inspect.signature(engine_client.generate).parameters:
        logger.warning("this vLLM takes no %s: its own balancing chooses the engine", _RANK)
        return None
    return DataParallelRouter(settings, engines, metrics)


def without_rank(headers: list[tuple[bytes, bytes]]) -> list[tuple[bytes, bytes]]:
    """The headers without a rank that a client asks for."""
    return [pair for pair in headers if pair[0].lower() != RANK_HEADER]


def _prompt_of(prompt: Any) -> Sequence[int] | str:
    """The prompt's token ids if vLLM has them by now, else its text; nothing of any other kind."""
    if isinstance(prompt, Mapping):
        ids, prompt = prompt.get("prompt_token_ids"), prompt.get("prompt")
    else:
        ids = getattr(prompt, "prompt_token_ids", None)
    if ids is not None and len(ids):
        return cast("Sequence[int]", ids)
    return prompt if isinstance(prompt, str) else ()
