"""An installation that nobody may write to, run by somebody without a home."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
# what is imported only beside packages that are not always there
ADAPTERS = (
    "lengthwise.scheduler.vllm_adapter",
    "lengthwise.scheduler.lmdeploy_adapter",
    "lengthwise.training.registry.pyfunc_model",
)
ENCODERS = (
    "lengthwise.predictor.estimators.encoder",
    "lengthwise.predictor.features.embedding",
    "lengthwise.predictor.features.reader_states",
)

IMPORT = """
import importlib, pkgutil, sys
import lengthwise
skipped = tuple(sys.argv[1:])
names = [m.name for m in pkgutil.walk_packages(lengthwise.__path__, "lengthwise.", onerror=print)
         if not m.name.startswith(skipped) and not m.name.endswith("__main__")]
for name in names:
    importlib.import_module(name)
import numpy as np
from lengthwise.data.lengths import quantile_at
assert round(quantile_at(np.array([0.5, 0.9]), np.array([10.0, 20.0]), 0.5), 9) == 10.0
print(len(names), lengthwise.__file__)
"""


@pytest.fixture
def installed(tmp_path):
    """A copy in which every `__pycache__` is a file: also root cannot write there."""
    packages = tmp_path / "site"
    ignored = shutil.ignore_patterns("__pycache__", "*.egg-info")
    shutil.copytree(ROOT / "src" / "lengthwise", packages / "lengthwise", ignore=ignored)
    for folder in [path for path in packages.rglob("*") if path.is_dir()]:
        (folder / "__pycache__").write_text("")
        folder.chmod(0o555)
    yield packages
    for folder in packages.rglob("*"):
        if folder.is_dir():
            folder.chmod(0o755)


def test_every_package_imports_from_a_folder_that_is_read_only(installed):
    dropped = ("NUMBA_CACHE_DIR", "XDG_CACHE_HOME", "PYTHONPATH", "MPLCONFIGDIR", "LENGTHWISE_HOME")
    env = {name: value for name, value in os.environ.items() if name not in dropped}
    # no home: nothing can be made below a file
    env |= {"HOME": os.devnull, "PYTHONPATH": str(installed), "PYTHONDONTWRITEBYTECODE": "1"}
    env["NUMBA_DISABLE_JIT"] = "0"
    done = subprocess.run(
        [sys.executable, "-c", IMPORT, *ADAPTERS, *ENCODERS],
        capture_output=True, text=True, cwd=os.sep, env=env, check=False, timeout=500,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    count, file = done.stdout.splitlines()[-1].split(maxsplit=1)
    assert file == str(installed / "lengthwise" / "__init__.py")
    assert int(count) > 100
