"""One request of a client on its way through the server, in the context of its task.

What the middleware knows of a request stays in the API process until the server starts a sequence
for it, which then takes the hints of the next prompt (``Call.next``).
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import KW_ONLY, dataclass, field, replace
from typing import Any

from lengthwise.data.request_log.schema import FIXED_LENGTH
from lengthwise.data.slo import SLO_LIMIT_MS, Slo
from lengthwise.scheduler.serving.wire.answer_length import TOLD_LENGTHS, fixed_tokens
from lengthwise.scheduler.serving.wire.hints import Hints, Whole

OnUnread = Callable[[str], None]
"""Told of the route of every sequence that no middleware prepared ("none" outside of requests)."""


@dataclass(slots=True)
class Call:
    """One request of a client on its way through the server.

    ``hints`` are those of its prompts, in order; None on a route that is passed on unread, whose
    ASGI scope is ``scope``.
    ``instance`` is where a router put the first of them, ``placing`` held while it decides.
    ``others`` are told to sequences beyond them. ``texts`` are what ``keep(text_id, text)`` is
    given of the prompts that are started, and ``read(key, text, slo_class)``, which tells whether a
    better estimate may follow under this key. ``watch(request_id, text, slo_class)`` is told of
    those whose answers may be estimated anew once they have begun. ``over`` is called when a task
    that works on after the client was answered has ended. ``levels`` is the width of a
    prediction, 0 where lengths that the parameters fix are not to be told. ``max_tokens`` is the
    client's limit.
    """

    hints: Sequence[Hints] | None = None
    _: KW_ONLY
    scope: Mapping[str, Any] | None = None
    others: Hints = field(default_factory=Hints)
    texts: Sequence[str | None] = ()
    keep: Callable[[str, str], None] | None = None
    read: Callable[[str, str, str], bool] | None = None
    watch: Callable[[str, str, str], None] | None = None
    over: Callable[[Call], None] | None = None
    worker: asyncio.Task[Any] | None = None
    whole_id: str = ""
    is_open: bool = False
    levels: int = 0
    max_tokens: int | None = None
    began_s: float = field(default_factory=time.monotonic)
    started: int = 0
    announced: bool = False
    placing: asyncio.Lock = field(default_factory=asyncio.Lock)
    instance: str | None = None

    @property
    def route(self) -> str:
        """The route's path as the server declares it."""
        scope = self.scope or {}
        return str(getattr(scope.get("route"), "path", None) or scope.get("path") or "none")

    def next(self, params: Any, fleet_key: int | None = None) -> Hints:
        """The hints of the next sequence group, which these parameters sample.

        ``fleet_key`` is a router's name for it, where none was given before.
        """
        assert self.hints is not None
        index, self.started = self.started, self.started + 1
        further = index >= len(self.hints)
        hints = self.others if further else self.hints[index]
        if further and self.hints:
            hints = replace(hints, slo=_left(hints.slo, time.monotonic() - self.began_s))
        elif not further:
            hints = self._with_text(hints, index)
        changed: dict[str, Any] = {}
        known = _fixed(params) if self.levels else None
        if known is not None:
            changed = {"quantiles": (float(known),) * self.levels, "version": FIXED_LENGTH,
                       "features": None, "contract": None}  # fmt: skip
        elif hints.version == FIXED_LENGTH:
            changed = {"quantiles": None, "version": None}  # the server read it otherwise
        samples = getattr(params, "n", 1) or 1
        parts = 0 if self.is_open or further else len(self.hints) * samples
        if parts != 1:
            self.announced = True
            changed["whole"] = Whole(self.whole_id, parts)
        if fleet_key is not None:
            changed["fleet_key"] = fleet_key
        return replace(hints, **changed) if changed else hints

    def begun(self, request_id: str, hints: Hints) -> None:
        """The last sequence group that was given its hints goes to the engine under this name."""
        place = self.started - 1
        text = self.texts[place] if 0 <= place < len(self.texts) else None
        known = hints.quantiles is None or hints.version in TOLD_LENGTHS
        if self.watch is not None and text is not None and not known:
            self.watch(request_id, text, hints.slo.slo_class)

    def follow(self) -> None:
        """Find out when the task that starts a sequence now is over, where that is asked for."""
        over = self.over
        task = None if over is None else asyncio.current_task()
        if over is not None and task is not None and task is not self.worker:
            self.worker = task
            task.add_done_callback(lambda _: over(self))

    def all_hints(self) -> list[Hints]:
        """Those of all prompts at once, for a process that starts the sequences elsewhere."""
        hints = self.hints if self.hints is not None else ()
        return [self._with_text(hints[place], place) for place in range(len(hints))]

    def _with_text(self, hints: Hints, index: int) -> Hints:
        text = self.texts[index] if index < len(self.texts) else None
        if text is None:
            return hints
        key = f"{self.whole_id}-{index}"
        changed: dict[str, Any] = {}
        if self.keep is not None:
            self.keep(key, text)
            changed["text_id"] = key
        told = hints.version in TOLD_LENGTHS
        if self.read is not None and not told and self.read(key, text, hints.slo.slo_class):
            changed["reestimate_key"] = key
        return replace(hints, **changed) if changed else hints


_current: ContextVar[Call | None] = ContextVar("lengthwise_call", default=None)


def current_call() -> Call | None:
    """The call that this task works for."""
    return _current.get()


@contextmanager
def calling(call: Call) -> Iterator[Call]:
    """While inside, and in every task started there, sequences belong to this call."""
    token = _current.set(call)
    try:
        yield call
    finally:
        _current.reset(token)


def _fixed(params: Any) -> int | None:
    may_stop = any(
        getattr(params, name, None) for name in ("stop", "stop_token_ids", "repetition_detection")
    )
    return fixed_tokens(
        getattr(params, "max_tokens", None),
        getattr(params, "min_tokens", 0),
        getattr(params, "ignore_eos", False),
        may_stop,
    )


def _left(slo: Slo, elapsed_s: float) -> Slo:
    """What is left of a request's objectives for a sequence that it starts later.

    Its first token is a later token of the whole, so TTFT becomes what TPOT allows, if anything.
    """
    least_s = SLO_LIMIT_MS[0] / 1e3
    e2e_s = None if slo.e2e_s is None else max(least_s, slo.e2e_s - elapsed_s)
    return Slo(ttft_s=slo.tpot_s, tpot_s=slo.tpot_s, e2e_s=e2e_s, slo_class=slo.slo_class)
