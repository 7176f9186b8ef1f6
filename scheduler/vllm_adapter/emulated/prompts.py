"""Token ids for prompts of which only the size is known, with shared beginnings."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from typing import Protocol

import numpy as np

# Ids of ordinary tokens in any vocabulary of at least 8,000.
_FIRST_TOKEN, _END_TOKEN = 300, 7000


class Sized(Protocol):
    """A request of a workload, as far as its prompt goes."""

    @property
    def prompt_tokens(self) -> int:
        """Tokens of the prompt, the shared beginning included."""
        ...

    @property
    def prefix(self) -> str | None:
        """Name of the shared beginning."""
        ...

    @property
    def prefix_tokens(self) -> int:
        """Tokens of the shared beginning."""
        ...


def prompt_token_ids(requests: Sequence[Sized], seed: int = 0) -> list[list[int]]:
    """A prompt of ``prompt_tokens`` ids each; equal ids exactly where a ``prefix`` is shared.

    Requests of one ``prefix`` begin alike for the smaller of their ``prefix_tokens``. Of a prompt
    that is all prefix the last token still differs: an engine never takes a whole prompt from its
    cache.
    """
    most: dict[str, int] = {}
    for request in requests:
        if request.prefix is not None:
            most[request.prefix] = max(most.get(request.prefix, 0), _shared(request))
    beginnings = {name: _ids(size, seed, zlib.crc32(name.encode())) for name, size in most.items()}
    prompts = []
    for index, request in enumerate(requests):
        shared = 0 if request.prefix is None else _shared(request)
        beginning = beginnings[request.prefix][:shared] if request.prefix is not None else []
        prompts.append(beginning + _ids(request.prompt_tokens - shared, seed, 1 << 32 | index))
    return prompts


def _shared(request: Sized) -> int:
    return max(0, min(int(request.prefix_tokens or 0), request.prompt_tokens - 1))


def _ids(count: int, *entropy: int) -> list[int]:
    drawn = np.random.default_rng(entropy).integers(_FIRST_TOKEN, _END_TOKEN, count)
    return [int(token) for token in drawn]
