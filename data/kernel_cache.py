"""Compiled kernels on disk that are never older than any kernel they call.

Numba asks only whether a kernel's own file has changed. What another file's kernel was inlined as
would outlive an upgrade, and an index that names a class which has moved since ends the process
that reads it. Here all kernel files count, and what cannot be read is compiled again.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

from numba.core.caching import FunctionCache, IndexDataCacheFile

ROOMS = ("data", "predictor", "scheduler")  # where kernels are


@cache
def kernels_version() -> str:
    """A digest of every file of this package that has a kernel."""
    root = Path(__file__).resolve().parents[1]
    digest = hashlib.sha256()
    for room in ROOMS:
        for path in sorted((root / room).rglob("*.py")):
            text = path.read_bytes()
            if b"njit" in text:
                digest.update(path.relative_to(root).as_posix().encode() + b"\0" + text)
    return digest.hexdigest()


class _Files(IndexDataCacheFile):
    """Numba's files, where one that cannot be read counts as absent."""

    def _load_index(self) -> dict[Any, Any]:
        try:
            return dict(super()._load_index())
        except OSError:
            raise
        except Exception:  # torn, or of a version whose classes are gone
            return {}

    def _load_data(self, name: str) -> Any:
        try:
            return super()._load_data(name)
        except OSError:
            raise
        except Exception as error:
            raise FileNotFoundError(name) from error  # as one that was removed: compile it


class KernelCache(FunctionCache):
    """Numba's cache of one function; RuntimeError where there is no folder for it."""

    def __init__(self, function: Callable[..., Any]) -> None:
        super().__init__(function)
        stamp = (self._impl.locator.get_source_stamp(), kernels_version())
        self._cache_file = _Files(self._cache_path, self._impl.filename_base, stamp)
