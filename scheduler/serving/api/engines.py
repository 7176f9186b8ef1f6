"""The engines behind one API process: one, or the several of vLLM's data parallel.

vLLM's own utility calls answer for the first engine only. What is asked here is asked of each, and
one that is slow or fails keeps nobody waiting for the others.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping, Sequence
from typing import Any

from lengthwise.scheduler.serving.settings import LOGGER_NAME

logger = logging.getLogger(LOGGER_NAME)

ANSWER_S = 30.0


class VllmEngines:
    """The engines of vLLM's client, by their data-parallel rank."""

    def __init__(self, core: Any) -> None:
        self._core = core
        several = getattr(core, "core_engines", None) or ()
        self._several = list(several) if hasattr(core, "_call_utility_async") else []
        self._names = [str(rank) for rank in range(max(1, len(self._several)))]

    @property
    def names(self) -> Sequence[str]:
        """The ranks."""
        return self._names

    async def ask(self, name: str, method: str, *args: Any) -> Any:
        """Call a utility method of the engine of this rank."""
        if len(self._names) == 1:
            return await self._core.call_utility_async(method, *args)
        engine = self._several[int(name)]
        return await self._core._call_utility_async(method, *args, engine=engine)


def engine_client_of(scope: Mapping[str, Any]) -> Any:
    """The engine client behind an ASGI call's application, or None."""
    return getattr(getattr(scope.get("app"), "state", None), "engine_client", None)


def engine_core_of(engine_client: Any) -> Any:
    """The client of the engine core, or None before there is one."""
    return getattr(engine_client, "engine_core", None)


async def ask_all(
    core: Any, method: str, *args: Any, timeout_s: float = ANSWER_S
) -> dict[str, Any]:
    """Every engine's answer by name; an exception in place of one that failed or was late.

    A ``core`` that has an ``ask_all`` of its own knows a better way.
    """
    if hasattr(core, "ask_all"):
        return dict(await core.ask_all(method, *args, timeout_s=timeout_s))
    engines = VllmEngines(core)
    names = list(engines.names)
    answers = await asyncio.gather(
        *(_asked(engines, name, method, args, timeout_s) for name in names)
    )
    return dict(zip(names, answers, strict=True))


class Telling:
    """Tells every engine in the background: nobody waits, and what fails leaves all as it was."""

    def __init__(self) -> None:
        self._telling: set[asyncio.Task[None]] = set()

    def tell(
        self, core: Any, method: str, said: Any, loop: asyncio.AbstractEventLoop | None = None
    ) -> None:
        """Call a utility method of every engine in this loop, or else in the one that runs."""
        task = (loop or asyncio.get_running_loop()).create_task(_told(core, method, said))
        self._telling.add(task)
        task.add_done_callback(self._telling.discard)


async def _told(core: Any, method: str, said: Any) -> None:
    for name, answer in (await ask_all(core, method, said)).items():
        if isinstance(answer, Exception):
            logger.debug("%s of engine %s: %r", method, name, answer)


async def _asked(
    engines: VllmEngines, name: str, method: str, args: tuple[Any, ...], timeout_s: float
) -> Any:
    try:
        # not wait_for, which in 3.11 may swallow the cancellation that ends the server
        async with asyncio.timeout(timeout_s):
            return await engines.ask(name, method, *args)
    except Exception as error:  # an engine fault must not become a traceback at the client
        return error


def one_answer(method: str, answers: Mapping[str, Any]) -> dict[str, Any] | None:
    """What all engines say together: an error of any, else the first's answer.

    None where one does not answer: nobody knows then what holds there.
    """
    for name, answer in answers.items():
        if isinstance(answer, Exception):
            logger.warning("%s of engine %s: %r", method, name, answer)
    if not answers or any(isinstance(answer, Exception) for answer in answers.values()):
        return None
    said = [dict(answer) for answer in answers.values()]
    return next((one for one in said if "error" in one), said[0])


def status_of_all(
    method: str, answers: Mapping[str, Any], *, always: bool = False
) -> dict[str, Any] | None:
    """The first engine's status, and that of each in ``instances`` where there are several.

    ``always``: also where there is one, since there may be more at another time.
    One that does not answer has its error there; None where none answers.
    """
    found = {
        name: {"error": repr(answer)} if isinstance(answer, Exception) else dict(answer)
        for name, answer in answers.items()
    }
    for name, one in found.items():
        if "error" in one:
            logger.warning("%s of engine %s: %s", method, name, one["error"])
    first = next((one for one in found.values() if "error" not in one), None)
    if first is None or (len(found) == 1 and not always):
        return first
    return first | {"instances": [{"name": name} | one for name, one in found.items()]}
