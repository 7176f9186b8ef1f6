"""Which conversations belong together: no question may be on two sides of a split."""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from hashlib import blake2b

import numpy as np

from lengthwise.data.sources.examples import Example
from lengthwise.data.table import prompt_group

# an id stem shared by more conversations is a set's prefix, not one conversation in parts
_MOST_PARTS = 100
# "continue" or "hi" opens conversations that are not related
_TELLING_CHARACTERS = 40


class Stems:
    """How many conversations of a file share the stem of their id (`id_0`, `id_1`): 8 bytes each.

    All are counted, also those of which no turn is kept.
    """

    def __init__(self) -> None:
        self._hashes = array("q")

    def add(self, stem: str) -> None:
        """Count one conversation."""
        self._hashes.append(_hash(stem))

    def prefixes(self, stems: Sequence[str]) -> set[str]:
        """Those of `stems` that are a set's prefix and say nothing of a conversation."""
        values, counts = np.unique(np.frombuffer(self._hashes, np.int64), return_counts=True)
        common = set(values[counts > _MOST_PARTS].tolist())
        return {stem for stem in stems if _hash(stem) in common} if common else set()


def groups_of(examples: Sequence[Example], stems: Stems) -> list[str]:
    """A group per example: the one its row names, else its conversation's, else its prompt's.

    Conversations that begin alike or are parts of one share a group. A prompt that several groups
    hold, up to case, spacing and punctuation, is a group of its own: "hi" is one question, but
    ties no conversations.
    """
    parent: dict[str, str] = {}

    def root(key: str) -> str:
        parent.setdefault(key, key)
        while parent[key] != key:
            parent[key] = parent[parent[key]]
            key = parent[key]
        return key

    sets = stems.prefixes(sorted({e.stem for e in examples if e.stem is not None}))
    for example in examples:
        if example.talk is None:
            continue
        here = root(f"row {example.talk}")
        if example.stem is not None and example.stem not in sets:
            parent[here] = here = root(f"stem {example.stem}")
        if len(example.opening or "") >= _TELLING_CHARACTERS:
            parent[here] = root(f"text {prompt_group(example.opening or '')}")
    prompts = [prompt_group(e.prompt) for e in examples]
    groups = [
        prompt if e.talk is None else prompt_group(root(f"row {e.talk}"))
        for e, prompt in zip(examples, prompts, strict=True)
    ]
    one: dict[str, str] = {}
    several = {
        prompt
        for prompt, group in zip(prompts, groups, strict=True)
        if one.setdefault(prompt, group) != group
    }
    return [
        e.group or (prompt if prompt in several else group)
        for e, prompt, group in zip(examples, prompts, groups, strict=True)
    ]


def _hash(text: str) -> int:
    digest = blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return int.from_bytes(digest, "big", signed=True)
