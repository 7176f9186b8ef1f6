"""vLLM's generating routes, and how their bodies are read.

A route that is missing here is passed on untouched; if it generates, it is counted
(``lengthwise_unread_generations_total``). A test lists the routes of the installed server and
holds them against this table and the one in docs/serving.md.
"""

from __future__ import annotations

from lengthwise.scheduler.serving.api.body.readers import (
    Reader,
    read_chat,
    read_chat_batch,
    read_completions,
    read_invocations,
    read_messages,
    read_responses,
    read_tokens,
)

READERS: dict[str, Reader] = {
    "/v1/chat/completions": read_chat,
    "/v1/completions": read_completions,
    "/v1/responses": read_responses,
    "/v1/messages": read_messages,
    "/v1/chat/completions/batch": read_chat_batch,
    "/inference/v1/generate": read_tokens,
    "/invocations": read_invocations,
    "/cohere/v2/chat": read_chat,
}
"""Routes whose JSON body is read: SLO from body and headers, tenant, a prediction a prompt."""

HEADERS_ONLY = frozenset(
    (
        "/v1/audio/transcriptions",
        "/v1/audio/translations",
        "/generative_scoring",
        "/v1/systemone",
    )
)
"""Routes whose body is left alone (sound, or answers of one token): SLO and tenant from headers."""
