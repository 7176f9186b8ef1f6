"""Answers that a stop string ends: the engine is told that they are whole.

vLLM finds stop strings where it turns tokens into text, in this process, and then has the engine
abort the request, which to the engine looks like a client that hung up. So what is aborted is
followed by a word on what it was: of an answer that a stop string ended the tokens up to there,
which the engine may have gone beyond.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from lengthwise.scheduler.serving.api.engines import Telling
from lengthwise.scheduler.serving.settings import LOGGER_NAME
from lengthwise.scheduler.serving.wire.left_early import LeftEarly
from lengthwise.scheduler.serving.wire.utility_calls import LEFT_EARLY_METHOD

logger = logging.getLogger(LOGGER_NAME)

_QUIET_STEPS = 1000  # without an output of a request with stop strings
_MOST_WHOLE = 100_000  # far beyond what is ever between being found and being aborted


class StopTeller:
    """Looks on where one engine client finds stop strings, and where it aborts."""

    def __init__(self, core: Any) -> None:
        self._core = core
        self._expected = False
        self._quiet_steps = 0
        self._whole: dict[str, int] = {}  # tokens of answers found whole, not yet aborted
        self._telling = Telling()

    def looked_on(self, process: Callable[..., Any], states: Any) -> Callable[..., Any]:
        """vLLM's ``process_outputs``, whose stop strings are noted."""

        @functools.wraps(process)
        def processed(outputs: Sequence[Any], *args: Any, **kwargs: Any) -> Any:
            if not self._expected:
                return process(outputs, *args, **kwargs)
            stopping = _stopping([output.request_id for output in outputs], states)
            made = process(outputs, *args, **kwargs)
            if stopping:
                self._quiet_steps = 0
                self._note(stopping, getattr(made, "reqs_to_abort", None) or ())
            else:
                self._rest(states)
            return made

        return processed

    def expect(self) -> None:
        """A request with stop strings comes: from now on outputs are looked at."""
        self._expected, self._quiet_steps = True, 0

    def _rest(self, states: Any) -> None:
        """Look no longer where no such request is left, which may wait for long."""
        self._quiet_steps += 1
        if self._quiet_steps >= _QUIET_STEPS:
            self._quiet_steps = 0
            self._expected = bool(_stopping(list(states), states))

    def followed(self, abort: Callable[[list[str]], Any]) -> Callable[[list[str]], Any]:
        """vLLM's ``abort_requests_async``, after which the engine is told what these were."""

        @functools.wraps(abort)
        async def aborted(request_ids: list[str]) -> None:
            await abort(request_ids)
            if request_ids:
                self._say(request_ids)

        return aborted

    def _note(self, stopping: dict[str, Any], aborted: Iterable[str]) -> None:
        if len(self._whole) > _MOST_WHOLE:
            self._whole.clear()
        for name in aborted:
            detokenizer = stopping.get(name)
            if detokenizer is not None:
                self._whole[name] = int(detokenizer.num_output_tokens())

    def _say(self, request_ids: Iterable[str]) -> None:
        said = [LeftEarly(name, self._whole.pop(name, None)).to_wire() for name in request_ids]
        self._telling.tell(self._core, LEFT_EARLY_METHOD, said)


def tell_of_stop_strings(engine_client: Any) -> StopTeller | None:
    """Who tells the engine of this client's stop strings; None where that cannot be done."""
    core: Any = getattr(engine_client, "engine_core", None)
    processor: Any = getattr(engine_client, "output_processor", None)
    abort = getattr(core, "abort_requests_async", None)
    process = getattr(processor, "process_outputs", None)
    states = getattr(processor, "request_states", None)
    if abort is None or process is None or not hasattr(states, "get"):
        return None
    teller = StopTeller(core)
    try:
        core.abort_requests_async = teller.followed(abort)
        processor.process_outputs = teller.looked_on(process, states)
    except AttributeError:
        return None
    return teller


def _stopping(names: Iterable[str], states: Any) -> dict[str, Any]:
    """The detokenizers, by request, of those of these that look for stop strings; a finished
    request is in nobody's states any more."""
    found = {}
    try:
        for name in names:
            detokenizer = getattr(states.get(name), "detokenizer", None)
            if detokenizer is not None and getattr(detokenizer, "stop", None):
                found[name] = detokenizer
    except Exception as error:  # vLLM's state is not ours to rely on
        logger.debug("stop strings are not seen: %r", error)
    return found
