"""Which beginnings of prompts an instance that does not say will have computed."""

from __future__ import annotations

from collections.abc import Sequence

from lengthwise.scheduler.fleet.beginnings import Beginning


class PrefixMemory:
    """Beginnings in the order of their last use, as many as the instance's memory may hold."""

    def __init__(self) -> None:
        # tokens of each, and those that it adds to the one before; the last used last
        self._tokens: dict[int, tuple[float, float]] = {}
        self._sum = 0.0

    def __len__(self) -> int:
        return len(self._tokens)

    def note(self, beginnings: Sequence[Beginning], room: float) -> None:
        """A request is past these, each the beginning of the next; ``room`` tokens in all."""
        shorter = [0.0, *(tokens for _, tokens in beginnings)]
        for (name, tokens), before in zip(reversed(beginnings), shorter[-2::-1], strict=True):
            had, adds = self._tokens.pop(name, (0.0, 0.0))
            now = max(had, tokens), max(adds, tokens - before)
            self._tokens[name] = now
            self._sum += now[1] - adds
        while self._sum > room and len(self._tokens) > 1:
            oldest = next(iter(self._tokens))
            self._sum -= self._tokens.pop(oldest)[1]

    def tokens(self, beginnings: Sequence[Beginning]) -> float:
        """Tokens of the longest of these that are likely there; 0 where none was seen lately."""
        for name, _ in reversed(beginnings):
            if name in self._tokens:
                return self._tokens[name][0]
        return 0.0
