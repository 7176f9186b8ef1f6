"""Run by every Python process that has this directory on its path: arms the faults.

Another ``sitecustomize`` further down the path runs first, as it would have without this one.
"""

import sys
from importlib.machinery import PathFinder
from importlib.util import module_from_spec
from pathlib import Path

_HERE = Path(__file__).resolve().parent


def _run_next() -> None:
    rest = [entry for entry in sys.path if Path(entry or ".").resolve() != _HERE]
    spec = PathFinder.find_spec("sitecustomize", rest)
    if spec is not None and spec.loader is not None:
        spec.loader.exec_module(module_from_spec(spec))


_run_next()

import injected_faults  # noqa: E402 (beside this file)

injected_faults.arm()
