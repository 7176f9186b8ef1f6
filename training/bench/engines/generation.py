"""Answers that the served model ends itself: a chat request with a user's limit and its own seed.

Nothing about the answer's length goes with it, and no logits processor is loaded. The seed is the
same in every arm, so that arms differ by what else is in the batch and by nothing else.
"""

from __future__ import annotations

import json
import math
import zlib
from dataclasses import dataclass
from typing import Any

from lengthwise.data.errors import InputError
from lengthwise.data.workload import WorkloadRequest

CHAT_PATH = "/v1/chat/completions"


@dataclass(frozen=True, slots=True)
class Generation:
    """How answers are drawn: at most `max_tokens` each, at a temperature, from a seed."""

    max_tokens: int = 256
    temperature: float = 0.7
    seed: int = 0

    def __post_init__(self) -> None:
        if self.max_tokens < 1:
            raise InputError(f"max tokens must be at least 1, got {self.max_tokens}")
        if not (self.temperature >= 0 and math.isfinite(self.temperature)):
            raise InputError(f"temperature must be at least 0, got {self.temperature:g}")

    def seed_of(self, prompt: str, number: int) -> int:
        """The seed of one request's sampling."""
        return zlib.crc32(f"{self.seed} {number} {prompt}".encode("utf-8", "surrogatepass"))


def chat_body(
    request: WorkloadRequest,
    number: int,
    generation: Generation,
    *,
    model: str,
    cache_salt: str | None = None,
) -> bytes:
    """JSON body of a /v1/chat/completions call: the prompt as a user's only message.

    Raises:
        InputError: a request without text, which no model could answer.
    """
    if request.prompt is None:
        raise InputError(f"request {number} has no prompt: only text can be answered")
    limit = min(generation.max_tokens, request.max_tokens or generation.max_tokens)
    body: dict[str, Any] = {
        "model": model,
        "messages": [{"role": "user", "content": request.prompt}],
        "max_tokens": limit,
        "temperature": generation.temperature,
        "seed": generation.seed_of(request.prompt, number),
        "stream": True,
        "stream_options": {"include_usage": True},
        "vllm_xargs": dict(request.slo.to_xargs()),
    }
    if cache_salt is not None:
        body["cache_salt"] = cache_salt
    return json.dumps(body).encode()
