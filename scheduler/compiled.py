"""``njit`` with the compiled code kept on disk, where there is a place to keep it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import numba

F = TypeVar("F", bound=Callable[..., Any])


def _compile(function: F, options: dict[str, Any]) -> F:
    try:
        return numba.njit(cache=True, **options)(function)
    except RuntimeError:
        # No writable cache folder (a read-only install and home): compile in every process.
        return numba.njit(**options)(function)


def njit(function: F | None = None, **options: Any) -> Any:
    """``numba.njit(cache=True)``, or without the cache when numba finds no folder for it."""
    if function is not None:
        return _compile(function, options)
    return lambda f: _compile(f, options)
