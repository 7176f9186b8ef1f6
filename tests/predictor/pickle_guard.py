"""Whatever would unpickle raises, except numba's cache of this program's own compiled code."""

from __future__ import annotations

import pickle
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import joblib
import numpy as np

_guarding = False
_hooked = False


class Unpickled(BaseException):
    """Not an Exception: no fallback may swallow it."""


@contextmanager
def no_unpickling() -> Iterator[None]:
    """Guards every way in: the modules' functions, and the interpreter's own audit event."""
    global _guarding, _hooked
    if not _hooked:
        sys.addaudithook(_audit)
        _hooked = True
    places: list[tuple[Any, str, Callable[[dict[str, Any]], bool]]] = [
        (pickle, "load", _always),
        (pickle, "loads", _always),
        (pickle, "Unpickler", _always),
        (joblib, "load", _always),
        (np, "load", lambda given: bool(given.get("allow_pickle"))),
    ]
    if "torch" in sys.modules:
        torch = sys.modules["torch"]
        places.append((torch, "load", lambda given: given.get("weights_only") is not True))
    patches = [mock.patch.object(o, name, _refusing(o, name, bad)) for o, name, bad in places]
    for patch in patches:
        patch.start()
    _guarding = True
    try:
        yield
    finally:
        _guarding = False
        for patch in patches:
            patch.stop()


def _always(given: dict[str, Any]) -> bool:
    return True


def _refusing(owner: Any, name: str, bad: Callable[[dict[str, Any]], bool]) -> Any:
    original = getattr(owner, name)

    def guarded(*args: Any, **kwargs: Any) -> Any:
        if bad(kwargs) and not _from_numba():
            raise Unpickled(f"{owner.__name__}.{name}")
        return original(*args, **kwargs)

    return guarded


def _audit(event: str, args: tuple[Any, ...]) -> None:
    if _guarding and event == "pickle.find_class" and not _from_numba():
        raise Unpickled(f"{event}{args}")


def _from_numba() -> bool:
    frame = sys._getframe(2)
    while frame is not None:
        if frame.f_globals.get("__name__", "").startswith("numba."):
            return True
        frame = frame.f_back
    return False
