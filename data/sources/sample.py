"""A sample of a stream of examples that fits in memory: even, and the same every time."""

from __future__ import annotations

import heapq
from dataclasses import dataclass, field

import numpy as np

from lengthwise.data.errors import InputError
from lengthwise.data.sources.examples import Example

MOST_ROWS = 40_000
MOST_CHARACTERS = 80_000_000
"""What one training holds in under 2 GB, and beyond which it learns next to nothing more."""


@dataclass(slots=True)
class Sample:
    """The examples with the smallest random keys, as many as fit in rows and characters.

    A key depends on the seed and the example's number alone, so that long answers are kept as
    readily as short ones. A `most_rows` that is given is kept to, whatever it holds.
    """

    most_rows: int | None = None
    seed: int = 0
    seen: int = 0
    _rng: np.random.Generator = field(init=False)
    _heap: list[tuple[float, int, Example]] = field(init=False, default_factory=list)
    _characters: int = field(init=False, default=0)
    _keys: list[float] = field(init=False, default_factory=list)
    _threshold: float = field(init=False, default=1.0)

    def __post_init__(self) -> None:
        if self.most_rows is not None and self.most_rows < 1:
            raise InputError(f"limit must be at least 1, got {self.most_rows}")
        self._rng = np.random.default_rng(self.seed)

    def add(self, example: Example) -> None:
        """Offer the next example of the stream."""
        if not self._keys:
            self._keys = self._rng.random(4096).tolist()
        key = self._keys.pop()
        number, self.seen = self.seen, self.seen + 1
        if key >= self._threshold:
            return
        heapq.heappush(self._heap, (-key, number, example))
        self._characters += example.characters
        rows = MOST_ROWS if self.most_rows is None else self.most_rows
        characters = MOST_CHARACTERS if self.most_rows is None else None
        while len(self._heap) > rows or (
            characters is not None and self._characters > characters and len(self._heap) > 1
        ):
            largest, _, dropped = heapq.heappop(self._heap)
            self._characters -= dropped.characters
            self._threshold = -largest

    @property
    def left_out(self) -> int:
        """How many examples were seen and not kept."""
        return self.seen - len(self._heap)

    def examples(self) -> list[Example]:
        """What was kept, in the order of the stream."""
        return [example for _, _, example in sorted(self._heap, key=lambda kept: kept[1])]
