"""What of a prompt the engine's prefix cache is found to hold, as those admitted lately had it.

Whom admission control judges has no tokens yet, so that nobody can look for its beginning in the
cache. Requests of its class and size say what is to be expected.
"""

from __future__ import annotations

import math
from collections import deque

_KEPT = 64  # requests of a class
_MOST_CLASSES = 64
_NEAREST = 8
_OTHERS = "*"


class CachedShare:
    """Shares of prompts by class; a class beyond the first 64 shares its place with others."""

    def __init__(self) -> None:
        self._recent: dict[str, deque[tuple[float, float]]] = {}

    def note(self, slo_class: str, prompt_tokens: int, cached_tokens: int) -> None:
        """A request was admitted, so many tokens of its prompt in the cache."""
        share = min(1.0, max(0.0, cached_tokens / max(prompt_tokens, 1)))
        known = slo_class in self._recent or len(self._recent) < _MOST_CLASSES
        name = slo_class if known else _OTHERS
        kept = self._recent.setdefault(name, deque(maxlen=_KEPT))
        kept.append((math.log(max(prompt_tokens, 1)), share))

    def expected_tokens(self, slo_class: str, prompt_tokens: int) -> int:
        """How many tokens of such a prompt will be cached; less than all of it.

        Of the eight nearest in size the second best, for only the hopeless are to be turned away.
        """
        kept = self._recent.get(slo_class) or self._recent.get(_OTHERS)
        if not kept or prompt_tokens < 2:
            return 0
        size = math.log(prompt_tokens)
        nearest = sorted(kept, key=lambda one: abs(one[0] - size))[:_NEAREST]
        shares = sorted(share for _, share in nearest)
        return min(prompt_tokens - 1, int(shares[-min(2, len(shares))] * prompt_tokens))

    @property
    def mean(self) -> float:
        """The mean share of those admitted lately; 0 before the first."""
        shares = [share for kept in self._recent.values() for _, share in kept]
        return sum(shares) / len(shares) if shares else 0.0
