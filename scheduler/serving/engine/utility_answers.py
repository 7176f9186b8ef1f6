"""What an engine answers to the API process's utility calls, by the names of ``wire``."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

from lengthwise.scheduler.serving.engine.control import Control
from lengthwise.scheduler.serving.engine.core import Core
from lengthwise.scheduler.serving.engine.plans.snapshots import Running
from lengthwise.scheduler.serving.engine.publishing import Publisher
from lengthwise.scheduler.serving.wire.utility_calls import (
    ACTED_METHOD,
    ADMIT_METHOD,
    CONFIGURE_METHOD,
    LEFT_EARLY_METHOD,
    LOAD_METHOD,
    REESTIMATE_METHOD,
    STATUS_METHOD,
    WHOLE_ENDED_METHOD,
    plain,
)


class UtilityAnswers:
    """Answers for one engine; ``running`` says who runs on it now.

    What only tells us something is advice: where it fails, that is counted, and nothing is said.
    """

    def __init__(self, core: Core, publisher: Publisher, running: Callable[[], Running]) -> None:
        self.core = core
        self.control = Control(core)
        self._publisher = publisher
        self._running = running
        self.asks: Mapping[str, Callable[[], Any]] = {
            STATUS_METHOD: self.control.status,
            LOAD_METHOD: self.load,
        }
        self.tells: Mapping[str, Callable[[Any], Any]] = {
            CONFIGURE_METHOD: self.control.configure,
            ADMIT_METHOD: lambda question: self.control.admit(question, self._running()),
            ACTED_METHOD: self._advice("outcome", self.control.acted),
            WHOLE_ENDED_METHOD: self._advice("outcome", core.outcomes.whole_ended),
            REESTIMATE_METHOD: self._advice(
                "reestimate", lambda said: core.reestimated(said, time.monotonic())
            ),
            LEFT_EARLY_METHOD: self._advice("outcome", core.left_early),
        }

    def answer(self, method: str, *said: Any) -> Any:
        """The answer to a call with what was said, if anything; KeyError for one there is not."""
        return self.tells[method](*said) if said else self.asks[method]()

    def load(self) -> dict[str, Any]:
        """Who runs and who waits, for a router over several engines."""
        return dict(plain(self._publisher.message(self._running(), time.monotonic())))

    def _advice(self, where: str, tell: Callable[[Any], None]) -> Callable[[Any], None]:
        def told(said: Any) -> None:
            with self.core.advice(where):
                tell(said)

        return told
