"""Where LMDeploy lives: a virtual environment of its own, since its torch contradicts vLLM's."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import suppress
from importlib import metadata
from pathlib import Path
from typing import Any

import lengthwise
from lengthwise.data.errors import InputError

VERSION = "0.18.0"
VARIABLE = "LENGTHWISE_LMDEPLOY"  # the environment's folder, where it is not the default one
FOLDER = "lmdeploy"
MAKE = "make lmdeploy"
LOOK_S = 120.0

# The package by its folder: on PYTHONPATH an installed one would bring all its neighbours along.
_START = """
import importlib.util, runpy, sys
at = sys.argv.pop(1)
spec = importlib.util.spec_from_file_location(
    "lengthwise", at + "/__init__.py", submodule_search_locations=[at])
sys.modules["lengthwise"] = module = importlib.util.module_from_spec(spec)
spec.loader.exec_module(module)
runpy.run_module("lengthwise.scheduler.lmdeploy_adapter", run_name="__main__")
"""


def environment_python(cache: Path) -> Path:
    """The interpreter of LMDeploy's environment: of ``$LENGTHWISE_LMDEPLOY``, else in ``cache``.

    Raises:
        InputError: there is none.
    """
    folder = Path(os.environ.get(VARIABLE) or cache / FOLDER)
    python = folder / "bin" / "python"
    if not python.is_file():
        raise InputError(f"no LMDeploy environment in {folder}: `{MAKE}` sets one up")
    return python


# Processes that LMDeploy spawns find the package too, by a link in a folder that holds no other.
_SERVE = """
import runpy, sys
sys.path.append(sys.argv.pop(1))
runpy.run_module("lengthwise.scheduler.lmdeploy_adapter", run_name="__main__")
"""


def server_line(python: Path, directory: Path, *command: str) -> list[str]:
    """The line that runs this adapter with a command; links are put into ``directory``."""
    place = directory.absolute() / "package"
    place.mkdir(parents=True, exist_ok=True)
    wanted = {found.name: found for found in (Path(lengthwise.__file__).parent, *_said_of_it())}
    for link in place.iterdir():
        if wanted.get(link.name) != link.readlink():  # a server that starts reads the others
            link.unlink(missing_ok=True)
    for name, found in wanted.items():
        with suppress(FileExistsError):
            (place / name).symlink_to(found)
    return [str(python), "-I", "-c", _SERVE, str(place), *command]


def _said_of_it() -> Iterator[Path]:
    """The folder that says which version is installed, where one is."""
    with suppress(metadata.PackageNotFoundError):
        for file in metadata.files("lengthwise") or ():
            if file.name == "METADATA":
                yield Path(str(file.locate())).parent


def start(python: Path, command: str, stderr: int | None = None) -> subprocess.Popen[str]:
    """``python -m`` this adapter with ``command``, lines in and out, in the other environment."""
    package = Path(lengthwise.__file__).parent
    return subprocess.Popen(
        [str(python), "-I", "-c", _START, str(package), command],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=stderr,
        text=True,
        env=child_variables(os.environ),
    )


def look_at(python: Path) -> list[dict[str, Any]]:
    """``lmdeploy_contract.probe()`` in the other environment; takes seconds.

    Raises:
        InputError: it does not run there.
    """
    process = start(python, "check", subprocess.PIPE)
    try:
        said, errors = process.communicate(timeout=LOOK_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.communicate()
        raise InputError(f"{python} did not answer within {LOOK_S:g} s") from None
    if process.returncode:
        last = (errors.strip().splitlines() or [f"exit code {process.returncode}"])[-1]
        raise InputError(f"{python} cannot load LMDeploy: {last}")
    return list(json.loads(said))


def child_variables(environ: Mapping[str, str]) -> dict[str, str]:
    """A child's variables on a CPU: no device is looked for, and one thread computes."""
    own = {"LMDEPLOY_ENABLE_CHECK_ENV": "0", "LMDEPLOY_SKIP_WARMUP": "1", "OMP_NUM_THREADS": "1"}
    return {**environ, **own}
