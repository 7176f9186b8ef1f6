"""Better estimates of lengths than the ones that requests arrived with, put in their place.

The API process sends them as they come. One made of the prompt may come before the request itself,
and waits here. One made of the answer's opening is of a sequence that runs: where it has ended
meanwhile nobody wants it, and of those of one sequence only the one that has seen most counts.
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Sequence
from typing import Any

from lengthwise.scheduler.serving.engine.requests.intake import Intake
from lengthwise.scheduler.serving.engine.requests.request_table import RequestTable, Tracked
from lengthwise.scheduler.serving.wire.reestimate import Reestimate

_MOST_EARLY = 1024  # beyond, the oldest was for a request that has ended


class Reestimates:
    """The estimates of one engine; ``counts`` says what became of them."""

    def __init__(self, table: RequestTable, intake: Intake) -> None:
        self._table = table
        self._intake = intake
        self._by_key: dict[str, list[str]] = {}
        self._early: OrderedDict[str, Reestimate] = OrderedDict()
        self._seen_tokens: dict[str, int] = {}  # of the answers whose openings have told
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
        self._seen_tokens.pop(tracked.request_id, None)
        key = tracked.reestimate_key
        if key is None or key not in self._by_key:
            return
        names = self._by_key[key]
        if tracked.request_id in names:
            names.remove(tracked.request_id)
        if not names:
            del self._by_key[key]

    def apply(self, said: Sequence[Any]) -> int:
        """Put estimates off the wire in place; how many requests are to be planned for anew.

        An opening is not a reason to plan: every answer has some, and the next plan knows them.
        """
        replaced = 0
        for one in said:
            estimate = Reestimate.from_wire(one, len(self._intake.priors.levels))
            if estimate is None:
                self.counts["malformed"] += 1
                continue
            if estimate.after_tokens:
                self.counts[self._opened(estimate)] += 1
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

    def _opened(self, estimate: Reestimate) -> str:
        """What became of an estimate that has seen an answer's opening: a word of ``counts``."""
        tracked = self._table.get(estimate.key)
        if tracked is None:
            return "gone"
        if estimate.after_tokens <= self._seen_tokens.get(estimate.key, 0):
            return "stale"
        if not self._intake.opened(tracked, estimate.quantiles, estimate.version):
            return "unwanted"
        self._seen_tokens[estimate.key] = estimate.after_tokens
        self._table.note_quantiles(tracked)
        return "opened"

    def _replace(self, tracked: Tracked, estimate: Reestimate) -> bool:
        if tracked.request_id in self._seen_tokens:  # what knows the prompt alone comes late
            self.counts["stale"] += 1
            return False
        done = self._intake.reestimated(tracked, estimate.quantiles, estimate.version)
        if done:
            self._table.note_quantiles(tracked)
        self.counts["replaced" if done else "unwanted"] += 1
        return done
