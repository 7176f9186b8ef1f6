"""Where data lies: folders named by the environment, never by the code."""

from __future__ import annotations

import os
from pathlib import Path

from lengthwise.data.errors import InputError, shown

DATA_VARIABLE = "LENGTHWISE_DATA"
HOME_VARIABLE = "LENGTHWISE_HOME"


def data_root() -> Path | None:
    """The folder $LENGTHWISE_DATA (packs/, traces/), or None when unset.

    InputError where it names no folder: nobody who set it wants the built-in corpus instead.
    """
    folder = os.environ.get(DATA_VARIABLE)
    if folder and not Path(folder).is_dir():
        raise InputError(f"${DATA_VARIABLE} must name a folder, got {shown(folder)}")
    return Path(folder) if folder else None


def downloads_root() -> Path:
    """Where fetched sets are kept: $LENGTHWISE_HOME (or here) / .lengthwise / downloads."""
    return Path(os.environ.get(HOME_VARIABLE) or ".") / ".lengthwise" / "downloads"


def pack_path(name: str) -> Path | None:
    """The file of a pack, or None when it is not there."""
    root = data_root()
    is_name = Path(name).name == name  # a path with folders is a file, not a pack
    path = root / "packs" / f"{name}.jsonl.gz" if root and is_name else None
    return path if path and path.is_file() else None


def trace_path(file_name: str) -> Path:
    """A file of the traces folder; InputError says what to set when it is missing."""
    root = data_root()
    if root is None:
        raise InputError(
            f"trace {file_name} needs ${DATA_VARIABLE} to name a data folder; it is unset"
        )
    path = root / "traces" / file_name
    if not path.is_file():
        raise InputError(f"{path}: no such trace")
    return path
