"""Array types, and ``njit`` with the compiled code kept on disk, where there is a place for it."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]
BoolArray = npt.NDArray[np.bool_]

F = TypeVar("F", bound=Callable[..., Any])


def _compile(function: F, options: dict[str, Any]) -> F:
    import numba  # a third of a second, which who only names a type need not wait for

    from lengthwise.data.kernel_cache import KernelCache

    compiled = numba.njit(**options)(function)
    # without a writable cache folder (a read-only install and home) every process compiles
    with suppress(RuntimeError):
        compiled._cache = KernelCache(function)
    return compiled


def njit(function: F | None = None, **options: Any) -> Any:
    """``numba.njit`` with a `KernelCache`, or without where numba finds no folder for it."""
    if function is not None:
        return _compile(function, options)
    return lambda f: _compile(f, options)
