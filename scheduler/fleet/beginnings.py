"""Which beginning of a prompt others had before it: what a router can know of prefix caches.

A prompt has names for its beginnings up to a few places, denser at the start, so that a long prompt
has few. A name is a hash of all that stands before the place, so equal names mean equal beginnings,
and a prompt that goes on from another has all its names. Who came first is not told of those that
begin like it.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from hashlib import blake2b

import numpy as np

from lengthwise.scheduler.problem import NO_PREFIX

Beginning = tuple[int, float]
"""A beginning's name and how many tokens it has."""

BLOCK_TOKENS = 16  # vLLM's
CHARS_PER_TOKEN = 4  # of a prompt that is not tokenised yet
_LONGEST_PROMPT_BLOCKS = 1 << 20
_MOST_SEEN = 100_000


def _places() -> tuple[int, ...]:
    """Numbers of blocks that are compared: all up to 4, then four to each doubling."""
    found, size = [1, 2, 3], 4
    while size < _LONGEST_PROMPT_BLOCKS:
        found += [size + size * part // 4 for part in range(4)]
        size *= 2
    return tuple(found)


PLACES = _places()


def beginnings_of(prompt: Sequence[int] | str) -> tuple[Beginning, ...]:
    """A prompt's beginnings, the shortest first: of token ids, or of text by its characters.

    What is neither has none: how a prompt is named must cost no request.
    """
    ids = np.empty(0, dtype=np.int64)
    if not isinstance(prompt, str):
        try:
            ids = np.ascontiguousarray(prompt, dtype=np.int64)
        except (TypeError, ValueError, OverflowError):
            return ()
        if ids.ndim != 1:
            return ()
    block = BLOCK_TOKENS * (CHARS_PER_TOKEN if isinstance(prompt, str) else 1)
    length = len(prompt) if isinstance(prompt, str) else len(ids)
    found, hashed, begin = [], blake2b(digest_size=8), 0
    for place in PLACES:
        end = place * block
        if end > length:
            break
        if isinstance(prompt, str):
            hashed.update(prompt[begin:end].encode("utf-8", "surrogatepass"))
        else:
            hashed.update(ids[begin:end].tobytes())
        # no name is negative, as NO_PREFIX is
        found.append((int.from_bytes(hashed.digest()) >> 1, float(place * BLOCK_TOKENS)))
        begin = end
    return tuple(found)


class SeenBeginnings:
    """Beginnings of the prompts that came lately, of all instances."""

    def __init__(self, most: int = _MOST_SEEN) -> None:
        self._most = most
        self._names: OrderedDict[int, None] = OrderedDict()

    def __len__(self) -> int:
        return len(self._names)

    def note(self, prompt: Sequence[int] | str) -> tuple[int, float, tuple[Beginning, ...]]:
        """A prompt has come: the longest beginning that an earlier one had (NO_PREFIX, 0 for none),
        and all that it has."""
        beginnings = beginnings_of(prompt)
        shared = NO_PREFIX, 0.0
        for name, tokens in beginnings:
            if name in self._names:
                shared = name, tokens
        for name, _ in reversed(beginnings):  # the longest is forgotten first
            self._names[name] = None
            self._names.move_to_end(name)
        while len(self._names) > self._most:
            self._names.popitem(last=False)
        return *shared, beginnings
