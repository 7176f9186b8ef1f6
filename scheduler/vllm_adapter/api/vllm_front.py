"""The API process's side of vLLM's engine client: sequences start at its ``generate``."""

from __future__ import annotations

import logging
from typing import Any

from lengthwise.scheduler.serving.api.front_desk import Front
from lengthwise.scheduler.serving.settings import LOGGER_NAME
from lengthwise.scheduler.vllm_adapter.api.instances.data_parallel import (
    DataParallelRouter,
    data_parallel_router,
)
from lengthwise.scheduler.vllm_adapter.api.sequences import attach

logger = logging.getLogger(LOGGER_NAME)


class VllmFront(Front):
    """``router`` is there where the client has several engines."""

    router: DataParallelRouter | None = None

    def stand_before(self, engine_client: Any) -> None:
        """Replace the client's ``generate``."""
        self.router = data_parallel_router(self.settings, engine_client, self.metrics)
        if not attach(engine_client, self.count_unread, self.router):
            logger.warning("the engine client has no generate: requests go on without hints")
