"""The other generating routes as the soak asks them: bodies, and where answers say their length."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

Body = Mapping[str, Any]


@dataclass(frozen=True)
class Route:
    """``body(prompt, xargs)`` asks; ``tokens(answer)`` were generated, in ``parts`` sequences.

    Who asks it is the tenant ``tenant``, so that the log's rows can be counted.
    """

    path: str
    tenant: str
    body: Callable[[str, Body], Body]
    tokens: Callable[[Any], int]
    parts: int = 1


def _talk(prompt: str) -> list[Body]:
    return [{"role": "user", "content": prompt}]


def _completion_tokens(answer: Any) -> int:
    return int(answer["usage"]["completion_tokens"])


def _output_tokens(answer: Any) -> int:
    return int(answer["usage"]["output_tokens"])


ROUTES = (
    Route(
        "/v1/chat/completions", "soak.chat",
        lambda prompt, xargs: {"messages": _talk(prompt), "max_tokens": 1000, "vllm_xargs": xargs},
        _completion_tokens,
    ),
    Route(
        "/v1/responses", "soak.responses",
        lambda prompt, xargs: {"input": prompt, "max_output_tokens": 1000, "vllm_xargs": xargs},
        _output_tokens,
    ),
    Route(
        "/v1/messages", "soak.messages",
        lambda prompt, xargs: {"messages": _talk(prompt), "max_tokens": 1000, "vllm_xargs": xargs},
        _output_tokens,
    ),
    Route(
        "/v1/chat/completions/batch", "soak.batch",
        lambda prompt, xargs: {
            "messages": [_talk(prompt)] * 2, "max_tokens": 1000, "vllm_xargs": xargs,
        },
        _completion_tokens, 2,
    ),
    Route(
        "/inference/v1/generate", "soak.generate",
        lambda prompt, xargs: {
            "token_ids": [5 + len(word) for word in prompt.split()] or [5],
            "sampling_params": {"max_tokens": 1000, "extra_args": xargs},
        },
        lambda answer: len(answer["choices"][0]["token_ids"]),
    ),
    Route(
        "/invocations", "soak.invocations",
        lambda prompt, xargs: {"prompt": prompt, "max_tokens": 1000, "vllm_xargs": xargs},
        _completion_tokens,
    ),
)  # fmt: skip
