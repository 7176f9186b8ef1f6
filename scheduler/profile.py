"""Engine profiles: a step-time model and limits, with where they come from."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from lengthwise.scheduler.problem import Capacity
from lengthwise.scheduler.step_time import COEFFICIENTS, StepTimeModel

_HERE = Path(__file__).parent / "profiles"


@dataclass(frozen=True, slots=True)
class EngineProfile:
    """What the planner assumes of an engine and the simulator plays.

    ``capacity_scale`` corrects the saturated throughput to a measured one, where both exist.
    """

    name: str
    step_time: StepTimeModel
    capacity: Capacity
    provenance: str
    capacity_scale: float = 1.0
    saturated_tokens_per_s: float | None = None

    @property
    def scaled_step_time(self) -> StepTimeModel:
        """The step-time model with ``capacity_scale`` in it."""
        model, scale = self.step_time, self.capacity_scale
        return replace(model, **{c: getattr(model, c) / scale for c in COEFFICIENTS})

    def to_json(self) -> str:
        """The profile file's content."""
        values = asdict(self)
        return json.dumps(values, indent=2) + "\n"


def profile_names() -> list[str]:
    """The profiles that come with the package."""
    return sorted(path.stem for path in _HERE.glob("*.json"))


def load_profile(name_or_path: str | Path) -> EngineProfile:
    """A shipped profile by name or any by path; ValueError when it is not one.

    Keys beyond those of EngineProfile are allowed: a profile is also a record.
    """
    path = Path(name_or_path)
    if path.suffix != ".json":
        path = _HERE / f"{name_or_path}.json"
        if not path.is_file():
            raise ValueError(
                f"no profile {str(name_or_path)!r}; known are {', '.join(profile_names())}"
            )
    try:
        values: dict[str, Any] = json.loads(path.read_text())
        return EngineProfile(
            name=str(values["name"]),
            step_time=StepTimeModel.from_dict(values["step_time"]),
            capacity=Capacity(**values["capacity"]),
            provenance=str(values["provenance"]),
            capacity_scale=float(values.get("capacity_scale", 1.0)),
            saturated_tokens_per_s=values.get("saturated_tokens_per_s"),
        )
    except (OSError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path} is not an engine profile: {error!r}") from error
