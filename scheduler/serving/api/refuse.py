"""What we answer a client in vLLM's place: errors in OpenAI's form, each counted by its status."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from lengthwise.scheduler.serving.api.api_metrics import ApiMetrics
from lengthwise.scheduler.serving.api.asgi import Headers, Send, send_json
from lengthwise.scheduler.serving.wire.admission_question import Answer

INVALID, UNAVAILABLE, CONFLICT = "invalid_request_error", "service_unavailable", "conflict"
FORBIDDEN, UNAUTHORIZED = "forbidden", "authentication_error"


async def refuse(
    send: Send,
    metrics: ApiMetrics,
    status: int,
    message: str,
    kind: str,
    *,
    document: Mapping[str, Any] | None = None,
    headers: Headers = (),
) -> None:
    """An error, with what else the document holds."""
    metrics.rejected.labels(str(status)).inc()
    error = {"message": message, "type": kind, "param": None, "code": status}
    await send_json(send, status, {"error": error, **(document or {})}, headers)


async def shed(send: Send, metrics: ApiMetrics, verdict: Answer) -> None:
    """A 503 that says when to come again."""
    after_s = math.ceil(max(1.0, verdict.retry_after_s or 1.0))
    await refuse(
        send,
        metrics,
        503,
        "the request cannot meet its SLO now",
        UNAVAILABLE,
        headers=[(b"retry-after", str(after_s).encode())],
    )
