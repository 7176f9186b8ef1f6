"""Length-aware, SLO-driven scheduling for vLLM: a trained length predictor and a planner.

``Scheduler`` and ``Middleware`` are what vLLM is told (``--scheduler-cls lengthwise.Scheduler
--middleware lengthwise.Middleware``); ``fit_predictor`` trains a ``LengthPredictor``. Each is
imported when it is first asked for, so that no process loads another one's half.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lengthwise.predictor.fitting.fit import fit_predictor
    from lengthwise.predictor.model import LengthPredictor
    from lengthwise.scheduler.vllm_adapter.api.vllm_middleware import (
        LengthwiseMiddleware as Middleware,
    )
    from lengthwise.scheduler.vllm_adapter.engine.scheduler import LengthwiseScheduler as Scheduler

    __version__: str

__all__ = ["LengthPredictor", "Middleware", "Scheduler", "__version__", "fit_predictor"]

_HOMES = {
    "LengthPredictor": ("lengthwise.predictor.model", "LengthPredictor"),
    "Middleware": ("lengthwise.scheduler.vllm_adapter.api.vllm_middleware", "LengthwiseMiddleware"),
    "Scheduler": ("lengthwise.scheduler.vllm_adapter.engine.scheduler", "LengthwiseScheduler"),
    "fit_predictor": ("lengthwise.predictor.fitting.fit", "fit_predictor"),
}


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import version

        return version("lengthwise")
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module, attribute = _HOMES[name]
    value = getattr(import_module(module), attribute)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
