"""What answers tell of lengths, in the order in which their requests started.

Of the requests that start together the short ones end first. Learned as they end, the first
seconds of every burst say that answers are half as long as predicted (.56 to .86 times by class on
an H200, where the whole run said .9 to 1.0; docs/results/gpu.md). Learned as they started, with
nobody left out who still runs, they say what all of them will.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from lengthwise.scheduler.serving.engine.requests.request_table import Tracked

_MOST_HELD = 4096


@dataclass(frozen=True, slots=True)
class Told:
    """A request and the length it tells; ``cut``: it was at least that long."""

    tracked: Tracked
    output_tokens: int
    cut: bool


class InStartOrder:
    """Holds back what ended before a request that started earlier has told its length.

    A running request tells it once it is longer than all but the longest tenth of what was
    expected: it counts as that long, which its median and its interval cannot tell from the truth.
    So nobody is held for longer than that takes; one that waits for its slot again, or for the
    engine, is passed by when ``most_held`` stand behind it.

    Args:
        generated_tokens: of a running request; None when it does not run.
        long_answer: the length, in tokens, beyond which a running request tells.
        most_held: requests kept at once.
    """

    def __init__(
        self,
        generated_tokens: Callable[[str], int | None],
        long_answer: Callable[[Tracked], float],
        most_held: int = _MOST_HELD,
    ) -> None:
        self._generated_tokens = generated_tokens
        self._long_answer = long_answer
        self._most_held = most_held
        self._held: OrderedDict[str, tuple[Tracked, Told | None, bool]] = OrderedDict()
        self._let_go: set[str] = set()  # before they ended

    def __len__(self) -> int:
        return len(self._held)

    def started(self, tracked: Tracked) -> None:
        """It got its first slot."""
        self._held.setdefault(tracked.request_id, (tracked, None, False))

    def ended(self, tracked: Tracked, output_tokens: int | None, cut: bool = False) -> None:
        """It ended; ``output_tokens`` None where that tells nothing of lengths."""
        if tracked.request_id in self._let_go:
            self._let_go.discard(tracked.request_id)
            return
        told = None if output_tokens is None else Told(tracked, output_tokens, cut)
        self._held[tracked.request_id] = (tracked, told, True)

    def ready(self) -> Iterator[Told]:
        """What may be learned from now, each once."""
        while self._held:
            request_id, (tracked, told, over) = next(iter(self._held.items()))
            if not over:
                generated = self._generated_tokens(request_id) or 0
                if generated > self._long_answer(tracked):
                    told = Told(tracked, generated, False)
                elif len(self._held) <= self._most_held:
                    return
                self._let_go.add(request_id)
            del self._held[request_id]
            if told is not None:
                yield told
