"""Of requests that the engine was asked to drop: whether a stop string had made the answer whole.

vLLM looks for stop strings where tokens become text, in the API process, and has the engine abort
the request then, as it does when a client hangs up.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class LeftEarly:
    """A request by the engine's name for it; ``output_tokens`` of its answer if that is whole,
    None where the client gave it up."""

    request_id: str
    output_tokens: int | None = None

    def to_wire(self) -> list[Any]:
        """Plain values, which ``from_wire`` reads back."""
        return [self.request_id, self.output_tokens]

    @classmethod
    def from_wire(cls, said: Any) -> LeftEarly | None:
        """None of what is malformed."""
        if not isinstance(said, list | tuple) or len(said) != 2 or not isinstance(said[0], str):
            return None
        tokens = said[1]
        if tokens is not None and (type(tokens) is not int or tokens < 0):
            return None
        return cls(said[0], tokens)
