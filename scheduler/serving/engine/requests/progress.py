"""Requests from their admission to their first token, and how long they waited for it."""

from __future__ import annotations

from collections.abc import Callable

from lengthwise.scheduler.serving.engine.engine_metrics import EngineMetrics
from lengthwise.scheduler.serving.engine.requests.request_table import RequestTable, Tracked


class Progress:
    """Notes admissions and first tokens in the table; ``longest_wait_s`` for a slot so far.

    ``generated_tokens`` are the answer tokens of a request so far, None for one that is gone.
    """

    def __init__(
        self,
        table: RequestTable,
        metrics: EngineMetrics,
        generated_tokens: Callable[[str], int | None],
    ) -> None:
        self._table = table
        self._metrics = metrics
        self._generated_tokens = generated_tokens
        self._without_token: set[str] = set()
        self.longest_wait_s = 0.0

    def admitted(self, tracked: Tracked, now_s: float) -> None:
        """The request was admitted for the first time."""
        tracked.admitted_s = now_s
        wait_s = now_s - tracked.arrival_s
        self._metrics.wait.observe(wait_s)
        self.longest_wait_s = max(self.longest_wait_s, wait_s)
        self._without_token.add(tracked.request_id)

    def note_first_tokens(self, now_s: float) -> None:
        """A step's tokens were booked."""
        for request_id in list(self._without_token):
            generated = self._generated_tokens(request_id)
            tracked = self._table.get(request_id)
            if generated is None or tracked is None:
                self._without_token.discard(request_id)
            elif generated > 0:
                self._table.note_first_token(tracked, now_s)
                self._without_token.discard(request_id)

    def ended(self, request_id: str) -> None:
        """The request ended, with a first token or without."""
        self._without_token.discard(request_id)
