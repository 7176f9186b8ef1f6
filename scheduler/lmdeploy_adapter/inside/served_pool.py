"""LMDeploy's pool of request handles in the order of a served engine's plan."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextvars import ContextVar
from types import SimpleNamespace
from typing import Any

from lmdeploy.serve.core import AsyncEngine

from lengthwise.scheduler.lmdeploy_adapter.forced_lengths import force, is_forced_end
from lengthwise.scheduler.lmdeploy_adapter.inside.ordered_pool import OrderedPool
from lengthwise.scheduler.lmdeploy_adapter.pool_client import PoolClient
from lengthwise.scheduler.lmdeploy_adapter.pool_engine import PoolEngine, PoolRequest
from lengthwise.scheduler.serving.api.call import Call, OnUnread, current_call
from lengthwise.scheduler.serving.settings import LOGGER_NAME
from lengthwise.scheduler.serving.wire.hints import Hints

# get() is not told for whom
REQUEST: ContextVar[PoolRequest | None] = ContextVar("lengthwise_pool_request", default=None)
LOOK_AGAIN_S = 0.02  # where handles are free and a plan holds somebody back
logger = logging.getLogger(LOGGER_NAME)
_STATUS = {"stop": "finished", "length": "length", "abort": "aborted", "error": "failed"}


class ServedPool(OrderedPool[PoolRequest]):
    """Who waits stands in the engine's queue."""

    def __init__(self, engine: Any, size: int, planned: PoolEngine) -> None:
        self.planned = planned
        self._untold = itertools.count()
        self._look: asyncio.TimerHandle | None = None
        super().__init__(engine, size)

    def known(self, handle: Any) -> Any:
        """What it streams is counted."""
        return ReadHandle(handle, self)

    def who_asks(self) -> PoolRequest:
        """The request of this task."""
        request = REQUEST.get()
        REQUEST.set(None)  # a task may ask again, for something else
        if request is None:  # it does not generate: nobody said that it comes
            request = PoolRequest(f"untold-{next(self._untold)}", 1, 1, is_told=False)
            self.planned.arrived(request, Hints(), time.time())
        self.planned.wait(request)
        return request

    def admitted(self, free: int) -> Sequence[PoolRequest]:
        """The queue's next, as far as the plan lets them."""
        return self.planned.admitted(free)

    def freed(self, who: PoolRequest) -> None:
        """The request gives its handle back."""
        self.planned.freed(who)
        if not who.is_told:
            who.status = "finished"
            self.planned.over(who)

    def gave_up(self, who: PoolRequest) -> None:
        """The request no longer wants one."""
        self.planned.gave_up(who)
        if not who.is_told:
            self.planned.over(who)

    def hand_out(self) -> None:
        """Give free handles to whose turn it is; look again where a plan holds somebody back."""
        super().hand_out()
        if self.free and self.planned.queue and self._look is None:
            self._look = asyncio.get_running_loop().call_later(LOOK_AGAIN_S, self._look_again)

    def _look_again(self) -> None:
        self._look = None
        self.hand_out()

    def read(self, handle: Any, tokens: Sequence[int], stamp_s: float) -> None:
        """These tokens came by the handle."""
        request = self.holder(handle)
        if request is None or not tokens:
            return
        request.last_token = int(tokens[-1])
        if self.planned.read(request, len(tokens), stamp_s):
            self.hand_out()


class ReadHandle:
    """LMDeploy's request handle; what it streams is counted."""

    def __init__(self, handle: Any, pool: ServedPool) -> None:
        self._handle, self._pool = handle, pool

    def __getattr__(self, name: str) -> Any:
        return getattr(self._handle, name)

    async def async_stream_infer(self, *args: Any, **kwargs: Any) -> AsyncIterator[Any]:
        """The handle's own stream."""
        answers = self._handle.async_stream_infer(*args, **kwargs)
        try:
            async for answer in answers:
                stamp_s = getattr(answer.req_metrics, "token_timestamp", 0.0) or time.time()
                self._pool.read(self, answer.token_ids, stamp_s)
                yield answer
        finally:
            await answers.aclose()


def force_lengths() -> None:
    """Let sequences be as long as a comparison wants them, whatever else was said of them."""
    generate = AsyncEngine.generate

    def generate_forced(self: Any, request: Any, stream_response: bool = True) -> Any:
        force(request.gen_config)
        return generate(self, request, stream_response)

    AsyncEngine.generate = generate_forced


def come_before_generate(client: Callable[[], PoolClient]) -> None:
    """Tell the engine, once there is one, of each sequence the server starts and how it ends."""
    generate = AsyncEngine.generate

    async def generate_told(
        self: Any, request: Any, stream_response: bool = True
    ) -> AsyncIterator[Any]:
        told = client()
        one = _begun(told, request)
        REQUEST.set(one)
        try:
            async with contextlib.aclosing(generate(self, request, stream_response)) as answers:
                async for answer in answers:
                    if answer.finish_reason is not None:
                        one.status = _status(answer.finish_reason, one, self)
                    yield answer
        except Exception:
            one.status = "failed"
            raise
        finally:
            REQUEST.set(None)  # where it ended before it asked
            told.engine.over(one)

    AsyncEngine.generate = generate_told


def _status(reason: str, one: PoolRequest, engine: Any) -> str:
    """Our word for how a sequence ended; LMDeploy does not tell a client's stop words from the end
    that its model gives, but by the last token."""
    if is_forced_end(reason, one.max_tokens):
        return "finished"
    if reason == "stop" and one.last_token is not None:
        of_config = (engine.hf_gen_cfg or {}).get("eos_token_id")
        own = [engine.tokenizer.eos_token_id, *(engine.stop_words or ())]
        own += of_config if isinstance(of_config, list) else [of_config]
        if one.last_token not in own:
            return "stopped"
    return _STATUS.get(reason, "otherwise")


def _begun(client: PoolClient, request: Any) -> PoolRequest:
    """The request's sequence as the engine is told of it."""
    config, planned = request.gen_config, client.engine
    prompt_tokens = int(request.input_token_len)
    most = int(config.max_new_tokens or max(1, planned.core.max_model_len - prompt_tokens))
    least = most if config.ignore_eos else int(config.min_new_tokens or 0)
    session = request.session.session_id
    one = PoolRequest(f"{session}-{time.monotonic_ns()}", prompt_tokens, most, min(least, most))
    params = SimpleNamespace(
        max_tokens=most, min_tokens=least, ignore_eos=bool(config.ignore_eos), n=1
    )
    hints = Hints()
    try:
        hints = _hints(current_call(), params, one, client.count_unread)
    except Exception as error:  # what we add must never cost a request
        logger.warning("a sequence goes on without its hints: %r", error)
    planned.arrived(one, hints, time.time())
    return one


def _hints(call: Call | None, params: Any, one: PoolRequest, on_unread: OnUnread) -> Hints:
    if call is None or call.hints is None:
        on_unread("none" if call is None else call.route)
        return Hints()
    hints = call.next(params)
    call.begun(one.request_id, hints)
    call.follow()
    return hints
