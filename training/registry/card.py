"""A predictor's directory as the registry sees it: where it is, its card, its metrics by name."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lengthwise.data.errors import InputError
from lengthwise.data.files import read_object
from lengthwise.training.registry.store import RegistryError

# what tables show of an evaluation: (heading, key, format)
_METRICS = (
    ("MAE", "mae", "{:.1f}"),
    ("within 25 %", "within_25", "{:.1%}"),
    ("tau", "tau", "{:.3f}"),
    ("tau in task", "within_task_tau", "{:.3f}"),
    ("pinball", "pinball", "{:.2f}"),
    ("coverage", "coverage", "{:.1%}"),
)
METRIC_HEADINGS = tuple(heading for heading, _, _ in _METRICS)


def metric_cells(metrics: Mapping[str, Any]) -> list[str]:
    """An evaluation under METRIC_HEADINGS; what it lacks is a dash."""
    values = [(metrics.get(key), pattern) for _, key, pattern in _METRICS]
    return ["-" if value is None else pattern.format(value) for value, pattern in values]


def native_directory(path: Path) -> Path | None:
    """The predictor directory at ``path`` or inside the MLflow model there; None if none."""
    for candidate in (path, *sorted(path.glob("artifacts/*"))):
        if (candidate / "card.json").is_file():
            return candidate
    return None


def read_card(directory: Path) -> dict[str, Any]:
    """The predictor's ``card.json``; RegistryError if it is not a JSON object."""
    try:
        return read_object(directory / "card.json")
    except InputError as error:
        raise RegistryError(str(error)) from error


def estimator_name(card: Mapping[str, Any]) -> str:
    """Which estimator a predictor's card says was asked for."""
    return str(card.get("name") or (card.get("estimator") or {}).get("name", "unknown"))


def headline(metrics: Mapping[str, Any]) -> dict[str, Any]:
    """An evaluation without its tables by task, too many rows for a page of metrics."""
    short = {name: value for name, value in metrics.items() if name != "task_tau"}
    short["baselines"] = {
        name: {key: value for key, value in row.items() if not isinstance(value, Mapping)}
        for name, row in short.get("baselines", {}).items()
    }
    return short


def flatten(metrics: Mapping[str, Any], prefix: str = "") -> dict[str, float]:
    """Nested metrics as ``group/name`` keys MLflow accepts; only finite numbers."""
    flat: dict[str, float] = {}
    for key, value in metrics.items():
        name = prefix + re.sub(r"[^\w\-./ ]", "_", str(key))
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{name}/")
        elif (
            isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
        ):
            flat[name] = float(value)
    return flat
