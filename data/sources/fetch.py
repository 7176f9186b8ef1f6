"""Downloading the public sets of the catalogue: resumable, checked, complete or absent.

A file is fetched into `NAME.part`, resumed by an HTTP Range request, verified, renamed, and only
then gets its manifest; so a set counts as present when its manifest is there. The manifest keeps
the SHA-256 for ever: what was trusted on first use must come out the same later.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from lengthwise.data.errors import InputError
from lengthwise.data.locations import downloads_root
from lengthwise.data.sources.catalogue import CATALOGUE, PublicSet
from lengthwise.data.table import file_sha256

if TYPE_CHECKING:
    import requests

_CHUNK_BYTES = 1 << 18
_TIMEOUT_S = 30.0
_ATTEMPTS = 5

Advance = Callable[[int, int | None], None]


def fetch(
    name: str, dest: str | Path | None = None, progress: bool = True, force: bool = False
) -> Path:
    """Download a set of the catalogue into `dest` and return its file.

    `dest`: default downloads_root(). A complete set is returned at once unless `force`.
    The licence goes to stderr before anything is loaded. Raises InputError for an unknown name,
    a refusing or failing server (the partial file is kept for the next try), or a wrong checksum
    (the file is removed).
    """
    if name not in CATALOGUE:
        raise InputError(f"no public set {name!r}; known: {', '.join(CATALOGUE)}")
    return fetch_set(CATALOGUE[name], Path(dest or downloads_root()), progress, force)


def fetch_set(entry: PublicSet, folder: Path, progress: bool = True, force: bool = False) -> Path:
    """As `fetch`, for any PublicSet."""
    present = fetched_file(entry.name, folder)
    if present and not force:
        return present
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{folder}: cannot be made: {error.strerror}") from error
    sys.stderr.write(f"{entry.name}: licence {entry.license}; from {entry.url}\n")
    file = folder / entry.file_name
    part = file.with_name(file.name + ".part")
    with _progress(entry.name, progress) as advance:
        _download(entry, part, advance)
    digest = file_sha256(part)
    expected, origin = _expected_sha256(entry, folder)
    if expected and digest != expected:
        part.unlink()
        raise InputError(f"{entry.name}: SHA-256 must be {expected} ({origin}), got {digest}")
    part.replace(file)
    manifest = {
        "name": entry.name,
        "file": file.name,
        "url": entry.url,
        "license": entry.license,
        "sha256": digest,
        "sha256_origin": origin,
        "bytes": file.stat().st_size,
        "fetched": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    written = _manifest_path(entry.name, folder).with_suffix(".tmp")
    written.write_text(json.dumps(manifest, indent=1) + "\n", encoding="utf-8")
    written.replace(_manifest_path(entry.name, folder))
    return file


def fetched_file(name: str, folder: str | Path) -> Path | None:
    """The complete file of a fetched set, or None when it is absent or only partly there."""
    manifest = read_manifest(name, Path(folder))
    if manifest is None:
        return None
    file = Path(folder) / manifest["file"]
    complete = file.is_file() and file.stat().st_size == manifest["bytes"]
    return file if complete else None


def read_manifest(name: str, folder: Path) -> dict[str, Any] | None:
    """The manifest of a fetched set, or None; InputError when it is damaged."""
    path = _manifest_path(name, folder)
    if not path.is_file():
        return None
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
        if not {"file", "bytes", "sha256"} <= set(manifest):
            raise ValueError("keys are missing")
    except (ValueError, TypeError) as error:
        raise InputError(
            f"{path}: damaged manifest ({error}); delete it and fetch again"
        ) from error
    return dict(manifest)


def _download(entry: PublicSet, part: Path, advance: Advance) -> None:
    """Fill `part`, resuming after broken transfers as long as each try brings bytes."""
    import requests

    failures = 0
    while True:
        before = _size(part)
        try:
            _transfer(entry, part, advance)
            return
        except requests.RequestException as error:
            failures = 0 if _size(part) > before else failures + 1
            broken = isinstance(error, _transient(requests))
            if not broken or failures >= _ATTEMPTS or (failures and before == 0):
                raise InputError(
                    f"{entry.name}: the transfer broke after {_size(part)} bytes ({error}); "
                    f"run it again to resume"
                ) from error
        except OSError as error:
            raise InputError(f"{part}: cannot be written: {error}") from error


def _transient(requests: ModuleType) -> tuple[type[Exception], ...]:
    return (
        requests.ConnectionError,
        requests.Timeout,
        requests.exceptions.ChunkedEncodingError,
    )


def _transfer(entry: PublicSet, part: Path, advance: Advance) -> None:
    """One HTTP request, from where `part` ends; raises requests' errors when it breaks."""
    import requests

    have = _size(part)
    # identity: a compressed transfer has no stable byte positions to resume from
    headers = {"Accept-Encoding": "identity"} | ({"Range": f"bytes={have}-"} if have else {})
    with requests.get(entry.url, headers=headers, stream=True, timeout=_TIMEOUT_S) as response:
        if response.status_code == 416 and have == _total_of_416(response):
            return
        if response.status_code not in (200, 206):
            if response.status_code == 416:
                part.unlink()  # longer than the server's file: it belongs to another version
            raise InputError(
                f"{entry.name}: {entry.url} answered {response.status_code} {response.reason}"
            )
        if response.status_code == 200:
            have = 0  # the server has no Range: start over
        elif not response.headers.get("Content-Range", "").startswith(f"bytes {have}-"):
            raise InputError(f"{entry.name}: the server resumed elsewhere than at byte {have}")
        length = response.headers.get("Content-Length")
        total = have + int(length) if length and length.isdigit() else entry.size_bytes
        with part.open("ab" if have else "wb") as file:
            advance(have, total)
            for chunk in response.iter_content(_CHUNK_BYTES):
                file.write(chunk)
                have += len(chunk)
                advance(have, total)
    if total is not None and have < total:
        raise requests.ConnectionError(f"{have} of {total} bytes came")


def _expected_sha256(entry: PublicSet, folder: Path) -> tuple[str | None, str]:
    if entry.sha256:
        return entry.sha256, "catalogue"
    manifest = read_manifest(entry.name, folder)
    return (manifest["sha256"], "first fetch") if manifest else (None, "first fetch")


def _manifest_path(name: str, folder: Path) -> Path:
    return folder / f"{name}.manifest.json"


def _total_of_416(response: requests.Response) -> int | None:
    total = response.headers.get("Content-Range", "").rpartition("/")[2]
    return int(total) if total.isdigit() else None


def _size(part: Path) -> int:
    return part.stat().st_size if part.is_file() else 0


@contextmanager
def _progress(name: str, shown_on_screen: bool) -> Iterator[Advance]:
    if not (shown_on_screen and sys.stderr.isatty()):
        yield lambda have, total: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TransferSpeedColumn

    columns = ("{task.description}", BarColumn(), DownloadColumn(), TransferSpeedColumn())
    with Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task(name, total=None)
        yield lambda have, total: bar.update(task, completed=have, total=total)
