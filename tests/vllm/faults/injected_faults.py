"""Faults for a running server, switched by a file: production code has no hook for them.

The server gets this directory at the front of its ``PYTHONPATH`` (``environment``); every process
of it then wraps the predictor's and the planner's call as their modules are imported. Each call
looks at the control file, so one server serves many faults one after the other::

    {"predictor": "slow" | "raise" | "nan" | "shape" | "rows", "predictor_s": 5.0,
     "planner": "slow" | "raise" | "nonsense", "planner_s": 0.5}

What is absent or null works as it should. Standard library only, until a fault needs numpy.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

CONTROL_VARIABLE = "LENGTHWISE_TEST_FAULTS"
PREDICTOR_FAULTS = ("slow", "raise", "nan", "shape", "rows")
PLANNER_FAULTS = ("slow", "raise", "nonsense")

_POLL_S = 0.02


class InjectedError(RuntimeError):
    """Raised on purpose."""


@dataclass(frozen=True)
class Faults:
    """The control file, as the test writes it."""

    path: Path

    def set(self, **faults: Any) -> None:
        """Switch to exactly these faults; none means all is well."""
        staged = self.path.with_suffix(".new")
        staged.write_text(json.dumps(faults))
        staged.replace(self.path)

    @contextmanager
    def during(self, **faults: Any) -> Iterator[None]:
        """These faults inside the block, none after it."""
        self.set(**faults)
        try:
            yield
        finally:
            self.set()

    def environment(self) -> dict[str, str]:
        """What ``launch_server(env=...)`` needs."""
        inherited = os.environ.get("PYTHONPATH", "").split(os.pathsep)
        paths = [str(Path(__file__).resolve().parent), *filter(None, inherited)]
        return {"PYTHONPATH": os.pathsep.join(paths), CONTROL_VARIABLE: str(self.path)}


def arm() -> None:
    """Wrap the two calls when their modules are imported; nothing without a control file."""
    if CONTROL_VARIABLE in os.environ:
        sys.meta_path.insert(0, _PatchOnImport())


def _wanted(part: str) -> tuple[str | None, float]:
    """The fault of a part and its seconds; read at each call (a file of a few bytes)."""
    try:
        control = json.loads(Path(os.environ[CONTROL_VARIABLE]).read_text())
    except FileNotFoundError:
        return None, 0.0
    return control.get(part), float(control.get(f"{part}_s") or 0.0)


def _slow(part: str) -> None:
    """Sleep as long as the control file says, or until it says otherwise."""
    fault, seconds = _wanted(part)
    end_s = time.monotonic() + seconds
    while time.monotonic() < end_s and _wanted(part) == (fault, seconds):
        time.sleep(min(_POLL_S, seconds))


def _wrap_predictor(module: ModuleType) -> None:
    genuine = module.LengthPredictor.predict

    def predict(self: Any, *args: Any, **kwargs: Any) -> Any:
        fault, _ = _wanted("predictor")
        if fault is None:
            return genuine(self, *args, **kwargs)
        if fault == "raise":
            raise InjectedError("predictor")
        if fault == "slow":
            _slow("predictor")
        found = genuine(self, *args, **kwargs)
        quantiles = found.quantiles
        spoilt = {
            "slow": quantiles,
            "nan": quantiles * float("nan"),
            "shape": quantiles[:, :-1],
            "rows": quantiles[:-1],
        }
        return SimpleNamespace(quantiles=spoilt[fault])

    module.LengthPredictor.predict = predict


class _FaultyPolicy:
    """A policy that obeys the control file first; everything else is the genuine one's."""

    def __init__(self, genuine: Any) -> None:
        self._genuine = genuine

    def __call__(self, problem: Any) -> Any:
        fault, _ = _wanted("planner")
        if fault == "raise":
            raise InjectedError("planner")
        if fault == "slow":
            _slow("planner")
        plan = self._genuine(problem)
        if fault == "nonsense":
            plan.order[:] = plan.order[0]  # the same request, n times
        return plan

    def __getattr__(self, name: str) -> Any:
        return getattr(self._genuine, name)


def _wrap_planner(module: ModuleType) -> None:
    genuine = module.make_policy
    module.make_policy = lambda *args, **kwargs: _FaultyPolicy(genuine(*args, **kwargs))


_PATCHES: dict[str, Callable[[ModuleType], None]] = {
    "lengthwise.predictor.model": _wrap_predictor,
    "lengthwise.scheduler.serving.engine.plans.prepared_policy": _wrap_planner,
}


class _PatchOnImport(MetaPathFinder):
    """Finds the two modules as everybody else would, and patches them once they are loaded."""

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        patch = _PATCHES.get(name)
        if patch is None:
            return None
        for finder in sys.meta_path:
            if finder is self:
                continue
            spec = finder.find_spec(name, path, target)
            if spec is not None and spec.loader is not None:
                spec.loader = _PatchingLoader(spec.loader, patch)
                return spec
        return None


class _PatchingLoader(Loader):
    def __init__(self, genuine: Any, patch: Callable[[ModuleType], None]) -> None:
        self._genuine = genuine
        self._patch = patch

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self._genuine.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        self._genuine.exec_module(module)
        self._patch(module)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._genuine, name)
