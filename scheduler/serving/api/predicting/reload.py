"""Hot reload: the live file is followed, and a part of it that cannot serve never does.

Each part (predictor, shadow, policy, SLO table) is checked beside what serves, told to the engine
process and then swapped here in one assignment. What fails leaves the old one in place, counts in
``lengthwise_reloads`` and writes one log line; it is tried again when the file changes or when
somebody asks for a reload.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lengthwise.data.errors import InputError
from lengthwise.data.slo import SloTable
from lengthwise.scheduler.serving.api.api_metrics import ApiMetrics
from lengthwise.scheduler.serving.api.predicting.batching import ServedPredictor
from lengthwise.scheduler.serving.api.predicting.candidate import load_checked
from lengthwise.scheduler.serving.api.predicting.prediction import PredictionService
from lengthwise.scheduler.serving.live import LivePredictor, LiveState, live_state, read_live
from lengthwise.scheduler.serving.priors import load_priors
from lengthwise.scheduler.serving.settings import LOGGER_NAME, ServerSettings

logger = logging.getLogger(LOGGER_NAME)

AskEngine = Callable[[dict[str, Any]], Awaitable[dict[str, Any] | None]]
"""Applies a request in the engine process; its answer, None when it does not answer."""

LOADED, UNCHANGED, REFUSED, FAILED = "loaded", "unchanged", "refused", "failed"
_LOAD_LIMIT_S = 300.0
_RETRY_S = 60.0  # after the engine did not answer, which is nobody's bad file

_Signature = tuple[int, int, int]  # when the file was written, how long it is, which it is
_NEVER = (-1, -1, -1)


@dataclass(frozen=True, slots=True)
class PartOutcome:
    """What became of one part of the file: one of the words above, and why it was not loaded."""

    outcome: str
    reason: str | None = None


Outcomes = dict[str, PartOutcome]


class _EngineSilentError(Exception):
    pass


class LiveReloader:
    """Follows the live file of one API process.

    ``on_table`` is given every new SLO table; predictors go to ``service``. Nothing here raises
    but ``check`` when its caller is cancelled.
    """

    def __init__(
        self,
        settings: ServerSettings,
        service: PredictionService,
        metrics: ApiMetrics,
        on_table: Callable[[SloTable], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        assert settings.live_file is not None
        self.path = Path(settings.live_file)
        self.last: Outcomes = {}
        self._settings = settings
        self._service = service
        self._metrics = metrics
        self._on_table = on_table
        self._clock = clock
        self._levels = load_priors(settings.predictor_dir).levels.tolist()
        self._in_place = _parts(live_state(settings))
        self._refused: dict[str, tuple[Any, PartOutcome]] = {}
        self._seen: _Signature | None = _NEVER
        self._absent = False
        self._retry_at_s = 0.0
        self._lock = asyncio.Lock()
        self._task: asyncio.Task[None] | None = None

    def start(self, ask: AskEngine) -> None:
        """Begin to look at the file now and then, unless that has begun already."""
        if self._task is None or self._task.done():
            self._task = asyncio.get_running_loop().create_task(self._watch(ask))

    async def check(self, ask: AskEngine, again: bool = False) -> Outcomes:
        """Act on the file if it changed; ``again`` also tries what was refused before."""
        async with self._lock:
            signature = self._signature()
            due = signature != self._seen or 0.0 < self._retry_at_s <= self._clock()
            if not (due or again):
                return self.last
            self._retry_at_s = 0.0
            if signature is None:
                self.last = self._note_absent()
            else:
                self._absent = False
                self.last = await self._act(ask, again)
            self._seen = signature
            return self.last

    async def _watch(self, ask: AskEngine) -> None:
        while True:
            try:
                await self.check(ask)
            except Exception:  # the watch must not end: what serves goes on serving
                logger.exception("live file %s: the check failed", self.path)
            await asyncio.sleep(self._settings.live_poll_s)

    def _signature(self) -> _Signature | None:
        try:
            stat = self.path.stat()
        except OSError:
            return None
        return stat.st_mtime_ns, stat.st_size, stat.st_ino

    def _note_absent(self) -> Outcomes:
        outcome = PartOutcome(FAILED, f"live file {str(self.path)!r} is missing")
        if not self._absent:
            self._absent = True
            self._count("file", outcome)
        return {"file": outcome}

    async def _act(self, ask: AskEngine, again: bool) -> Outcomes:
        try:
            state = await asyncio.to_thread(read_live, self.path)
        except InputError as error:
            outcome = PartOutcome(REFUSED, str(error))
            self._count("file", outcome)
            return {"file": outcome}
        outcomes: Outcomes = {}
        for part, value in _parts(state).items():
            if value is None and part != "shadow":  # only a shadow can be taken away
                continue
            refused = self._refused.pop(part, None)
            if value == self._in_place[part]:
                outcomes[part] = PartOutcome(UNCHANGED)
                continue
            if refused is not None and refused[0] == value and not again:
                outcomes[part] = refused[1]
            else:
                outcomes[part] = await self._try(part, state, ask)
            if outcomes[part].outcome == LOADED:
                self._in_place[part] = value
            elif outcomes[part].outcome == REFUSED:
                self._refused[part] = value, outcomes[part]
        return outcomes

    async def _try(self, part: str, state: LiveState, ask: AskEngine) -> PartOutcome:
        try:
            await self._switch(part, state, ask)
            outcome = PartOutcome(LOADED)
        except InputError as error:
            outcome = PartOutcome(REFUSED, str(error))
        except _EngineSilentError:
            self._retry_at_s = self._clock() + _RETRY_S
            outcome = PartOutcome(FAILED, "the engine does not answer")
        self._count(part, outcome)
        return outcome

    async def _switch(self, part: str, state: LiveState, ask: AskEngine) -> None:
        """Put one part in place: check, tell the engine, swap here. Raises before the swap."""
        if part == "predictor":
            assert state.predictor is not None
            served = await self._load(state.predictor, self._settings.predict_timeout_ms)
            await _tell(ask, predictor_dir=served.directory, predictor_version=served.version)
            self._service.replace(served)
        elif part == "shadow":
            shadow = None
            if state.shadow is not None:
                shadow = await self._load(state.shadow, self._settings.shadow_timeout_ms)
            self._service.replace_shadow(shadow)
        elif part == "policy":
            await _tell(ask, policy=state.policy, policy_params=state.policy_params)
        else:
            assert state.slo_table is not None
            table = SloTable.from_dict(state.slo_table)
            await _tell(ask, slo_table=state.slo_table)
            self._on_table(table)

    async def _load(self, wanted: LivePredictor, timeout_ms: float) -> ServedPredictor:
        try:
            async with asyncio.timeout(_LOAD_LIMIT_S):
                return await asyncio.to_thread(load_checked, wanted, self._levels, timeout_ms / 1e3)
        except TimeoutError as error:
            raise InputError(f"{wanted.directory}: not loaded after {_LOAD_LIMIT_S:g} s") from error

    def _count(self, part: str, outcome: PartOutcome) -> None:
        self._metrics.reloads.labels(part, outcome.outcome).inc()
        if outcome.reason is None:
            logger.info("live file: %s %s, %s", part, outcome.outcome, self._now(part))
        else:
            logger.warning("live file: %s %s: %s", part, outcome.outcome, outcome.reason)

    def _now(self, part: str) -> str:
        if part == "predictor":
            return f"now {self._service.version}"
        if part == "shadow":
            shadow = self._service.shadow
            return "now none" if shadow is None else f"now {shadow.served.version}"
        return "in both processes"


def _parts(state: LiveState) -> dict[str, Any]:
    """What is checked and swapped each on its own; None: not said."""
    return {
        "slo_table": state.slo_table,
        "policy": None if state.policy is None else (state.policy, state.policy_params),
        "predictor": state.predictor,
        "shadow": state.shadow,
    }


async def _tell(ask: AskEngine, **request: Any) -> None:
    answer = await ask(request)
    if answer is None:
        raise _EngineSilentError
    if "error" in answer:
        raise InputError(f"the engine refused: {answer['error']}")
