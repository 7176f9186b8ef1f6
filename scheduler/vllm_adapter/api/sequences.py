"""From an HTTP request to the sequences that the server starts for it, on whatever route.

vLLM's routes differ in how they take extra arguments and in how many sequences they start; all end
in ``engine_client.generate``, one call a sequence group. So what the middleware knows of a request
stays in the API process, in the request's context, and is put into each call's sampling parameters
at that waist, in the order of the prompts. There, too, whatever private keys a client sent are
dropped, on routes we know and on those we do not.
"""

from __future__ import annotations

import copy
import functools
import logging
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from typing import Any, Protocol

from lengthwise.scheduler.serving.api.call import Call, OnUnread, current_call
from lengthwise.scheduler.serving.settings import LOGGER_NAME
from lengthwise.scheduler.serving.wire.hints import Hints
from lengthwise.scheduler.serving.wire.seal import PUBLIC_KEYS, is_private
from lengthwise.scheduler.vllm_adapter.api.stop_strings import tell_of_stop_strings

logger = logging.getLogger(LOGGER_NAME)

_WRAPPED = "lengthwise_wrapped"


class Steering(Protocol):
    """Who chooses the engine of each sequence, where there are several."""

    def new_key(self) -> int:
        """A name for a sequence."""
        ...

    def stream(
        self,
        generate: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        hints: Hints,
        call: Call | None,
    ) -> AsyncIterator[Any]:
        """What ``generate(*args, **kwargs)`` yields, on the engine chosen for these hints."""
        ...


def attach(engine_client: Any, on_unread: OnUnread, steering: Steering | None = None) -> bool:
    """Put ourselves before this client's ``generate``, once; whether we stand there.

    Without ``generate``, or where it cannot be replaced, nothing is changed.
    """
    generate = getattr(engine_client, "generate", None)
    if generate is None:
        return False
    if getattr(generate, _WRAPPED, False):
        return True

    teller = tell_of_stop_strings(engine_client)

    @functools.wraps(generate)
    def prepared(*args: Any, **kwargs: Any) -> Any:
        hints = None
        try:
            key = None if steering is None else steering.new_key()
            told = teller is not None
            args, kwargs, hints = _with_hints(args, kwargs, on_unread, key, told)
            if teller is not None and hints is not None and hints.may_stop:
                teller.expect()
            _tell_of(args, kwargs, hints)
        except Exception as error:  # what we add must never cost a request
            logger.warning("a sequence goes on without its hints: %r", error)
        if steering is None or hints is None:
            return generate(*args, **kwargs)
        return steering.stream(generate, args, kwargs, hints, current_call())

    setattr(prepared, _WRAPPED, True)
    try:
        engine_client.generate = prepared
    except AttributeError:
        return False
    return True


def _with_hints(
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    on_unread: OnUnread,
    key: int | None,
    tells_stops: bool,
) -> tuple[tuple[Any, ...], dict[str, Any], Hints | None]:
    """The arguments of ``generate(prompt, sampling_params, ...)`` with our own put in."""
    named = "sampling_params" in kwargs
    if not named and len(args) < 2:
        return args, kwargs, None
    given = kwargs["sampling_params"] if named else args[1]
    params, hints = prepared_params(given, on_unread, key, tells_stops)
    if named:
        return args, kwargs | {"sampling_params": params}, hints
    return (args[0], params, *args[2:]), kwargs, hints


def _tell_of(args: tuple[Any, ...], kwargs: dict[str, Any], hints: Hints | None) -> None:
    """Say to the call by what name, ``generate``'s third argument, its sequence group begins."""
    call = current_call()
    name = kwargs.get("request_id", args[2] if len(args) > 2 else None)
    if call is not None and call.hints is not None and hints is not None and isinstance(name, str):
        call.begun(name, hints)
        call.follow()


def prepared_params(
    params: Any, on_unread: OnUnread, fleet_key: int | None = None, tells_stops: bool = False
) -> tuple[Any, Hints]:
    """The sampling parameters with this call's hints and without what only we may set; the hints.

    ``tells_stops``: the engine will hear of answers that a stop string ended. A copy where
    anything changes: the server shares one object, or its ``extra_args``, among the sequences of a
    request.
    """
    given = getattr(params, "extra_args", None)
    given = given if isinstance(given, dict) else {}
    call = current_call()
    may_stop = tells_stops and bool(getattr(params, "stop", None))
    if call is None or call.hints is None:
        on_unread("none" if call is None else call.route)
        hints = Hints(fleet_key=fleet_key, may_stop=may_stop)
        kept = {key: value for key, value in given.items() if not is_private(key)}
        if fleet_key is not None or may_stop:
            kept |= hints.to_xargs() | kept
        elif len(kept) == len(given):
            return params, hints
    else:
        kept = {
            key: value
            for key, value in given.items()
            if not is_private(key) and key not in PUBLIC_KEYS
        }
        hints = call.next(params, fleet_key)
        if may_stop:
            hints = replace(hints, may_stop=True)
        kept |= hints.to_xargs()
    changed = copy.copy(params)
    changed.extra_args = kept or None
    return changed, hints
