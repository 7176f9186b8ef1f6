"""``--middleware lengthwise.Middleware``: ours before vLLM's routes and its engines."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lengthwise.data.slo import SloTable
from lengthwise.scheduler.serving.api.asgi import Scope
from lengthwise.scheduler.serving.api.body.readers import History
from lengthwise.scheduler.serving.api.middleware import ServingMiddleware
from lengthwise.scheduler.vllm_adapter.api.earlier_responses import history_of
from lengthwise.scheduler.vllm_adapter.api.instances.data_parallel import without_rank
from lengthwise.scheduler.vllm_adapter.api.routes import HEADERS_ONLY, READERS
from lengthwise.scheduler.vllm_adapter.api.vllm_front import VllmFront


class LengthwiseMiddleware(ServingMiddleware):
    """With vLLM's routes and, under data parallel, a router over its engines."""

    readers = READERS
    headers_only = HEADERS_ONLY
    front: VllmFront

    def make_front(self) -> VllmFront:
        """Before vLLM's engine client."""
        return VllmFront(self.settings, self.service, self.metrics)

    def of_client(self, scope: Scope) -> Scope:
        """Where we choose the engine, a client does not."""
        if self.front.router is None:
            return scope
        return {**scope, "headers": without_rank(scope["headers"])}

    def history_of(self, app: Any) -> History:
        """From where vLLM's server keeps them."""
        return history_of(app)

    async def router_status(self) -> Mapping[str, Any] | None:
        """Of the router over data-parallel engines."""
        return None if self.front.router is None else self.front.router.desk.status()

    def use_table(self, table: SloTable) -> None:
        """The router judges by them too."""
        super().use_table(table)
        if self.front.router is not None:
            self.front.router.requests.table = table
