"""Downloading the public sets of the catalogue: complete and checked, or absent."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from lengthwise.data.errors import InputError
from lengthwise.data.locations import downloads_root
from lengthwise.data.sources.catalogue import CATALOGUE, PublicSet
from lengthwise.data.table import file_sha256

_PARTIAL = ".partial"  # the folder of what is not whole yet, which the hub's client resumes from
_TIMEOUT_S = 30.0


def fetch(name: str, dest: str | Path | None = None, force: bool = False) -> Path:
    """Download a set of the catalogue into `dest` (default: downloads_root()) and return its file.

    A set that is there is returned at once unless `force`. The licence goes to stderr before
    anything is loaded. Raises InputError for an unknown name, a refusing or failing server (run it
    again to resume), a folder that cannot be written, or a wrong checksum (the file is removed).
    """
    if name not in CATALOGUE:
        raise InputError(f"no public set {name!r}; known: {', '.join(CATALOGUE)}")
    folder, entry = Path(dest or downloads_root()), CATALOGUE[name]
    if (present := fetched_file(name, folder)) and not force:
        return present
    origin = f"the hub's {entry.repository}" if entry.repository else entry.path
    sys.stderr.write(f"{name}: licence {entry.license}; from {origin}\n")
    try:
        (folder / _PARTIAL).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{folder}: cannot be made: {error.strerror}") from error
    try:
        part = (_from_hub if entry.repository else _from_url)(entry, folder / _PARTIAL, force)
    except Exception as error:  # the hub's client has errors of its own and of two HTTP libraries
        raise InputError(f"{name}: cannot be fetched, run it again to resume: {error}") from error
    digest = file_sha256(part)
    if entry.sha256 and digest != entry.sha256:
        part.unlink()
        raise InputError(f"{name}: SHA-256 must be {entry.sha256}, got {digest}")
    return part.replace(folder / entry.file_name)


def fetched_file(name: str, folder: str | Path) -> Path | None:
    """The complete file of a fetched set, or None when it is absent or not as long as it must."""
    entry = CATALOGUE[name]
    file = Path(folder) / entry.file_name
    if not file.is_file() or entry.size_bytes not in (None, file.stat().st_size):
        return None
    return file


def _from_hub(entry: PublicSet, folder: Path, force: bool) -> Path:
    """Resumed and retried by the hub's own client, with its progress bar on a terminal."""
    from huggingface_hub import hf_hub_download

    assert entry.repository is not None
    return Path(
        hf_hub_download(
            entry.repository, entry.path, repo_type="dataset", local_dir=folder,
            endpoint=os.environ.get("HF_ENDPOINT"), force_download=force,
        )
    )  # fmt: skip


def _from_url(entry: PublicSet, folder: Path, _force: bool) -> Path:
    """One small file in one answer."""
    import requests

    answer = requests.get(entry.path, timeout=_TIMEOUT_S)
    answer.raise_for_status()
    part = folder / entry.file_name
    part.write_bytes(answer.content)
    return part
