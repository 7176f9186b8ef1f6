"""A disk that fills up: a small tmpfs, which needs the right to mount (root, in a container)."""

from __future__ import annotations

import contextlib
import errno
import subprocess
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def small_disk(path: Path, size: str) -> Iterator[bool]:
    """A tmpfs of ``size`` at ``path``; False, and a plain directory, where mounting is refused."""
    path.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(path)]
    try:
        mounted = subprocess.run(mount, capture_output=True, check=False).returncode == 0
    except FileNotFoundError:
        mounted = False
    try:
        yield mounted
    finally:
        if mounted:
            subprocess.run(["umount", "-l", str(path)], check=True)


@contextlib.contextmanager
def full(disk: Path) -> Iterator[None]:
    """Not a byte left on the disk inside the block."""
    filler = disk / "filler"
    try:
        with filler.open("wb", buffering=0) as file:
            _write_on(file.write)
        yield
    finally:
        filler.unlink()


def _write_on(write) -> None:  # type: ignore[no-untyped-def]
    try:
        while True:
            write(b"x" * 512)
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
