"""Ours before LMDeploy's routes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from lengthwise.data.errors import InputError, shown
from lengthwise.scheduler.serving.api.body.readers import (
    Body,
    History,
    Reader,
    RequestParts,
    no_history,
    read_chat,
    read_completions,
    read_messages,
    read_responses,
)
from lengthwise.scheduler.serving.api.front_desk import Front
from lengthwise.scheduler.serving.api.middleware import ServingMiddleware

MOST_SAMPLES = 1024  # more than LMDeploy starts


def read_text_completions(body: Body, history: History = no_history) -> RequestParts:
    """Completions of text; InputError for token ids, of which LMDeploy would not say why not."""
    prompt = body.get("prompt")
    if isinstance(prompt, list) and any(isinstance(part, int | list) for part in prompt):
        raise InputError(
            f"prompt {shown(prompt)}: LMDeploy's /v1/completions takes text, not token ids: send "
            "them to /generate as input_ids"
        )
    return replace(read_completions(body, history), limits=("max_completion_tokens", "max_tokens"))


def read_chat_samples(body: Body, history: History = no_history) -> RequestParts:
    """A chat; LMDeploy starts a sequence of its own for each of ``n`` samples."""
    parts, n = read_chat(body, history), body.get("n")
    samples = n if isinstance(n, int) and 1 <= n <= MOST_SAMPLES else 1
    return replace(parts, prompts=tuple(parts.prompts) * samples)


def read_generate(body: Body, history: History = no_history) -> RequestParts:
    """LMDeploy's own route: a text, or token ids, of which nothing is predicted."""
    prompt = body.get("prompt")
    text = prompt if isinstance(prompt, str) and prompt else None
    return RequestParts((text,), body, ("max_tokens",), body.get("vllm_xargs"))


class PoolFront(Front):
    """Before a pool's engine: sequences are told of where the server starts them."""

    def stand_before(self, engine_client: Any) -> None:
        """Count those of which nothing was read."""
        engine_client.count_unread = self.count_unread


class LmdeployMiddleware(ServingMiddleware):
    """With LMDeploy's routes."""

    readers: Mapping[str, Reader] = {
        "/v1/chat/completions": read_chat_samples,
        "/v1/completions": read_text_completions,
        "/v1/responses": read_responses,
        "/v1/messages": read_messages,
        "/generate": read_generate,
    }

    def make_front(self) -> PoolFront:
        """Before the pool."""
        return PoolFront(self.settings, self.service, self.metrics)
