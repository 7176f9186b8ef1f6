"""What stands where vLLM's engine client would: the pool's engine, in the same process.

The middleware asks its engine by utility calls; here they are calls.
"""

from __future__ import annotations

from typing import Any

from lengthwise.scheduler.lmdeploy_adapter.pool_engine import PoolEngine
from lengthwise.scheduler.serving.api.call import OnUnread


class PoolClient:
    """Answers as vLLM's client does; ``count_unread`` is the front's, once one stands before it."""

    def __init__(self, engine: PoolEngine) -> None:
        self.engine = engine
        self.count_unread: OnUnread = lambda route: None

    @property
    def engine_core(self) -> PoolClient:
        """The client of the engine core."""
        return self

    async def call_utility_async(self, method: str, *args: Any) -> Any:
        """The engine's answer; KeyError for a call that there is not."""
        return self.engine.answers.answer(method, *args)
