"""Better estimates of lengths than the ones that requests arrived with, put in their place.

The API process sends them as they come, which may be before the request itself: such wait here.
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Sequence
from typing import Any

from lengthwise.scheduler.vllm_adapter.engine.requests.intake import Intake
from lengthwise.scheduler.vllm_adapter.engine.requests.request_table import RequestTable, Tracked
from lengthwise.scheduler.vllm_adapter.wire.reestimate import Reestimate

_MOST_EARLY = 1024  # beyond, the oldest was for a request that has ended


class Reestimates:
    """The estimates of one engine; ``counts`` says what became of them."""

    def __init__(self, table: RequestTable, intake: Intake) -> None:
        self._table = table
        self._intake = intake
        self._by_key: dict[str, list[str]] = {}
        self._early: OrderedDict[str, Reestimate] = OrderedDict()
        self.counts: Counter[str] = Counter()

    def arrived(self, tracked: Tracked) -> None:
        """A request is in the table; samples of one prompt share its key."""
        key = tracked.reestimate_key
        if key is None:
            return
        self._by_key.setdefault(key, []).append(tracked.request_id)
        # kept for the other samples of the prompt, until it is the oldest
        if (estimate := self._early.get(key)) is not None:
            self._replace(tracked, estimate)

    def ended(self, tracked: Tracked) -> None:
        """A request is no longer in the table."""
        key = tracked.reestimate_key
        if key is None or key not in self._by_key:
            return
        names = self._by_key[key]
        if tracked.request_id in names:
            names.remove(tracked.request_id)
        if not names:
            del self._by_key[key]

    def apply(self, said: Sequence[Any]) -> int:
        """Put estimates off the wire in place; how many requests have another length now."""
        replaced = 0
        for one in said:
            estimate = Reestimate.from_wire(one, len(self._intake.priors.levels))
            if estimate is None:
                self.counts["malformed"] += 1
                continue
            names = self._by_key.get(estimate.key)
            if names is None:
                self.counts["early"] += 1
                self._early[estimate.key] = estimate
                while len(self._early) > _MOST_EARLY:
                    self._early.popitem(last=False)
                continue
            for name in names:
                tracked = self._table.get(name)
                replaced += tracked is not None and self._replace(tracked, estimate)
        return replaced

    def _replace(self, tracked: Tracked, estimate: Reestimate) -> bool:
        done = self._intake.reestimated(tracked, estimate.quantiles, estimate.version)
        if done:
            self._table.note_quantiles(tracked)
        self.counts["replaced" if done else "unwanted"] += 1
        return done
