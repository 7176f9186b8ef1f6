"""Which shared beginnings an instance that does not say will have computed."""

from __future__ import annotations


class PrefixMemory:
    """Prefixes in the order of their last use, as many as the instance's memory may hold."""

    def __init__(self) -> None:
        self._tokens: dict[int, float] = {}  # the last used last
        self._sum = 0.0

    def __len__(self) -> int:
        return len(self._tokens)

    def note(self, prefix: int, tokens: float, room: float) -> None:
        """A request with so many tokens of the prefix is past them; ``room`` tokens in all."""
        before = self._tokens.pop(prefix, 0.0)
        self._tokens[prefix] = max(before, tokens)
        self._sum += self._tokens[prefix] - before
        while self._sum > room and len(self._tokens) > 1:
            oldest = next(iter(self._tokens))
            self._sum -= self._tokens.pop(oldest)

    def tokens(self, prefix: int) -> float:
        """Tokens of the prefix that are likely there; 0 where it was not seen lately."""
        return self._tokens.get(prefix, 0.0)
