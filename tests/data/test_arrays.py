import os
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]

COMPILED = """
import numpy as np
from lengthwise.data.arrays import njit
from lengthwise.predictor.estimators import trees
from lengthwise.predictor.features.scan import encode, scan
from lengthwise.scheduler.plan import search

@njit(nogil=True)
def twice(x):
    return 2 * x

assert twice(21) == 42 and len(scan(encode("one two"))[0]) == 2
print(trees.__file__)
"""


def test_compiled_code_needs_no_place_for_a_cache(tmp_path):
    # root writes where rights forbid it, so the places themselves cannot be folders
    package = tmp_path / "lengthwise"
    shutil.copytree(
        ROOT / "src" / "lengthwise", package, ignore=shutil.ignore_patterns("__pycache__")
    )
    for folder in [package, *(path for path in package.rglob("*") if path.is_dir())]:
        (folder / "__pycache__").write_text("no folder")
    environment = {
        name: value
        for name, value in os.environ.items()
        if name not in ("NUMBA_CACHE_DIR", "XDG_CACHE_HOME")
    }
    environment |= {"PYTHONPATH": str(tmp_path), "HOME": str(package / "__pycache__")}
    done = subprocess.run(
        [sys.executable, "-c", COMPILED],
        capture_output=True, text=True, env=environment, cwd=tmp_path, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip().startswith(str(package))
