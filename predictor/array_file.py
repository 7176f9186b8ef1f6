"""Files of plain arrays, as an artifact holds them."""

from __future__ import annotations

import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from lengthwise.data.errors import InputError

_FAULTS = (OSError, ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile)


@contextmanager
def arrays_of(path: Path) -> Iterator[dict[str, np.ndarray]]:
    """The arrays of an `.npz` by name; nothing is unpickled.

    InputError names the file where it cannot be read, and where what is made of its arrays in the
    `with` cannot be.
    """
    try:
        # opened here: of a path that is no archive np.load leaves the file open
        with path.open("rb") as raw, np.load(raw, allow_pickle=False) as file:
            yield dict(file)
    except InputError:
        raise
    except _FAULTS as error:
        raise InputError(f"{path}: cannot be read: {error}") from error
