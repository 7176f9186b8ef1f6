"""A better estimate of an answer's length, for a request that the engine has been told of."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from lengthwise.scheduler.serving.wire.answer_length import quantile_row


@dataclass(frozen=True, slots=True)
class Reestimate:
    """Quantiles in tokens by a predictor's version, for the sequences whose hints have this key.

    Where ``after_tokens`` of the answer were looked at, it is of one sequence, and ``key`` is the
    engine's own name for that.
    """

    key: str
    quantiles: tuple[float, ...]
    version: str | None
    after_tokens: int = 0

    def to_wire(self) -> list[Any]:
        """Plain values, which ``from_wire`` reads back."""
        seen = [self.after_tokens] if self.after_tokens else []
        return [self.key, list(self.quantiles), self.version, *seen]

    @classmethod
    def from_wire(cls, said: Any, levels: int) -> Reestimate | None:
        """An estimate at so many levels; None of one that is malformed."""
        if not isinstance(said, list | tuple) or len(said) not in (3, 4):
            return None
        key, values, version, *seen = said
        row = quantile_row(values, levels)
        if row is None or not isinstance(key, str) or not isinstance(version, str | None):
            return None
        if seen and (type(seen[0]) is not int or seen[0] < 1):
            return None
        return cls(key, row, version, *seen)
