"""Compiled code on disk: never older than what it calls, and never the end of the process."""

from __future__ import annotations

import os
import pickle
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from lengthwise.data.kernel_cache import kernels_version

ROOT = Path(__file__).parents[2] / "src" / "lengthwise"
CALLEE = """
from lengthwise.data.arrays import njit

@njit
def inner(x):
    return {factor} * x
"""
CALLER = """
from lengthwise.data.arrays import njit
from lengthwise.data.inner_kernel import inner

@njit
def outer(x):
    return inner(x) + 1.0
"""
ASK = """
from lengthwise.data.outer_kernel import outer
print(outer(10.0), sum(outer.stats.cache_hits.values()))
"""


class Package:
    """A copy of what kernels need, with two of them in files of their own."""

    def __init__(self, root: Path) -> None:
        self.root, self.cache = root, root / "kernels"
        self.data = root / "lengthwise" / "data"
        self.data.mkdir(parents=True)
        for name in ("__init__.py", "data/__init__.py", "data/arrays.py", "data/kernel_cache.py"):
            shutil.copy(ROOT / name, root / "lengthwise" / name)
        (self.data / "outer_kernel.py").write_text(CALLER)
        self.inner(2.0)

    def inner(self, factor: float) -> None:
        (self.data / "inner_kernel.py").write_text(CALLEE.format(factor=factor))

    def ask(self) -> list[float]:
        """What the outer kernel says of 10, and how often its code came from the disk."""
        environment = os.environ | {
            "PYTHONPATH": str(self.root), "NUMBA_CACHE_DIR": str(self.cache)
        }  # fmt: skip
        done = subprocess.run(
            [sys.executable, "-c", ASK], capture_output=True, text=True, env=environment,
            cwd=self.root, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        return [float(word) for word in done.stdout.split()]

    def files(self, ending: str) -> list[Path]:
        return sorted(self.cache.rglob(f"*outer*{ending}"))


@pytest.fixture
def package(tmp_path):
    return Package(tmp_path)


def test_a_caller_is_compiled_again_when_a_kernel_it_calls_has_changed(package):
    assert package.ask() == [21.0, 0.0]
    assert package.ask() == [21.0, 1.0]
    package.inner(3.0)
    assert package.ask() == [31.0, 0.0]
    assert package.ask() == [31.0, 1.0]
    assert len(package.files(".nbc")) == 1  # in the place of the old one


def _torn(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def _names_what_has_moved(path: Path) -> None:
    content = path.read_bytes()
    version = pickle.loads(content)  # numba's own, which an index begins with
    path.write_bytes(pickle.dumps(version) + b"clengthwise.no_longer_here\nRows\n.")


@pytest.mark.parametrize(
    ("ending", "spoil"),
    [
        (".nbi", _names_what_has_moved),
        (".nbi", _torn),
        (".nbi", lambda path: path.write_bytes(b"")),
        (".nbi", lambda path: path.write_bytes(b"no pickle")),
        (".nbc", _torn),
        (".nbc", lambda path: path.write_bytes(b"")),
        (".nbc", Path.unlink),
    ],
)
def test_what_cannot_be_read_is_compiled_again(package, ending, spoil):
    package.ask()
    (path,) = package.files(ending)
    spoil(path)
    assert package.ask() == [21.0, 0.0]
    assert package.ask() == [21.0, 1.0]


def test_the_version_is_that_of_all_kernels():
    version = kernels_version()
    kernels_version.cache_clear()
    assert kernels_version() == version
    assert len(version) == 64
