"""Engine profiles: a step-time model and limits, with where they come from."""

from __future__ import annotations

import difflib
import json
import math
from collections.abc import Mapping
from dataclasses import MISSING, asdict, dataclass, fields, replace
from numbers import Real
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args

from lengthwise.data.errors import InputError, shown
from lengthwise.data.files import read_object
from lengthwise.scheduler.problem import Capacity
from lengthwise.scheduler.step_time import SECONDS, StepTimeModel

Part = TypeVar("Part")
Scale = Literal["fixed", "gpu"]

_HERE = Path(__file__).parent / "profiles"
_MOST_ACCEPTED = 64.0
_MOST_NUMBER = 1e15
_MOST_TOKENS = 1_000_000  # of a block or a draft: the simulator counts them in 64 bits


@dataclass(frozen=True, slots=True)
class PrefixCache:
    """The engine keeps computed beginnings of prompts, in blocks of ``block_tokens``."""

    block_tokens: int = 16

    def __post_init__(self) -> None:
        if not _is_whole(self.block_tokens) or not 1 <= self.block_tokens <= _MOST_TOKENS:
            raise ValueError(
                f"block_tokens must be a whole number from 1 to {_MOST_TOKENS}, got "
                f"{shown(self.block_tokens)}"
            )


@dataclass(frozen=True, slots=True)
class Speculation:
    """A decode step yields ``accepted_tokens`` on the mean, the sampled one included.

    It takes ``1 + draft_tokens`` of the step's token budget; the time of drafting and checking
    is part of the profile's step times. ``draft_tokens`` is by default the least that can give
    the mean.
    """

    accepted_tokens: float
    draft_tokens: int = -1

    def __post_init__(self) -> None:
        accepted = self.accepted_tokens
        if isinstance(accepted, bool) or not isinstance(accepted, int | float):
            raise ValueError(f"accepted_tokens must be a number, got {shown(accepted)}")
        if not 1.0 <= accepted <= _MOST_ACCEPTED:
            raise ValueError(
                f"accepted_tokens must lie from 1 to {_MOST_ACCEPTED:g}: {shown(accepted)}"
            )
        least = math.ceil(accepted) - 1
        if self.draft_tokens == -1:
            object.__setattr__(self, "draft_tokens", least)
        if not _is_whole(self.draft_tokens) or not least <= self.draft_tokens <= _MOST_TOKENS:
            raise ValueError(
                f"draft_tokens must be a whole number from {least} to {_MOST_TOKENS} to give "
                f"{accepted:g} accepted tokens, got {shown(self.draft_tokens)}"
            )


@dataclass(frozen=True, slots=True)
class EngineProfile:
    """What the planner assumes of an engine and the simulator plays.

    ``capacity_scale`` corrects the saturated throughput to a measured one, where both exist.
    ``prefix_cache`` and ``speculation`` are None where the engine has none. ``scale`` says how
    the arena's workloads are asked of it: "fixed" as they stand, "gpu" with prompts and
    objectives of its order (``training/bench/scaling``).
    """

    name: str
    step_time: StepTimeModel
    capacity: Capacity
    provenance: str
    capacity_scale: float = 1.0
    saturated_tokens_per_s: float | None = None
    prefix_cache: PrefixCache | None = None
    speculation: Speculation | None = None
    scale: Scale = "fixed"

    def __post_init__(self) -> None:
        if self.scale not in get_args(Scale):
            raise ValueError(
                f"scale must be one of {', '.join(get_args(Scale))}, got {self.scale!r}"
            )
        for name in ("capacity_scale", "saturated_tokens_per_s"):
            value = getattr(self, name)
            if value is None and name != "capacity_scale":
                continue
            if not (_is_number(value) and 0 < value <= _MOST_NUMBER):
                raise ValueError(f"{name} must be a number above 0, got {shown(value)}")

    @property
    def scaled_step_time(self) -> StepTimeModel:
        """The step-time model with ``capacity_scale`` in it."""
        model, scale = self.step_time, self.capacity_scale
        return replace(model, **{name: getattr(model, name) / scale for name in SECONDS})

    def to_json(self) -> str:
        """The profile file's content."""
        values = asdict(self)
        return json.dumps(values, indent=2) + "\n"


def profile_names() -> list[str]:
    """The profiles that come with the package."""
    return sorted(path.stem for path in _HERE.glob("*.json"))


def load_profile(name_or_path: str | Path) -> EngineProfile:
    """A shipped profile by name or any by path; InputError when it is not one.

    Keys beyond those of EngineProfile are allowed: a profile is also a record.
    """
    path = Path(name_or_path)
    if path.suffix != ".json":
        path = _HERE / f"{name_or_path}.json"
        if not path.is_file():
            raise InputError(
                f"no profile {str(name_or_path)!r}; known are {', '.join(profile_names())}"
            )
    values = read_object(path, "engine profile")
    try:
        for name in ("name", "step_time", "capacity", "provenance"):
            if name not in values:
                raise ValueError(f"needs {name}")
        _no_slips(values)
        return EngineProfile(
            name=str(values["name"]),
            step_time=StepTimeModel.from_dict(_numbers(values, "step_time", StepTimeModel)),
            capacity=Capacity(**_numbers(values, "capacity", Capacity)),
            provenance=str(values["provenance"]),
            capacity_scale=values.get("capacity_scale", 1.0),
            saturated_tokens_per_s=values.get("saturated_tokens_per_s"),
            prefix_cache=_part(PrefixCache, values.get("prefix_cache")),
            speculation=_part(Speculation, values.get("speculation")),
            scale=values.get("scale", "fixed"),
        )
    except (KeyError, TypeError, ValueError) as error:
        what = f"needs {error.args[0]}" if isinstance(error, KeyError) else error
        raise InputError(f"{path} is not an engine profile: {what}") from error


def _numbers(values: Mapping[str, Any], name: str, kind: type) -> dict[str, Any]:
    """A part of a profile that holds numbers under the names of a dataclass's fields."""
    part = values[name]
    if not isinstance(part, Mapping):
        raise ValueError(f"{name} must be an object, got {shown(part)}")
    types = {field.name: str(field.type) for field in fields(kind)}
    _check_keys(kind, name, part)
    for key, value in part.items():
        if types[key] == "str":
            continue
        whole = types[key] == "int"
        if not (_is_whole(value) if whole else _is_number(value)) or abs(value) > _MOST_NUMBER:
            what = "a whole number" if whole else "a number"
            raise ValueError(f"{name}.{key} must be {what} below 1e15, got {shown(value)}")
    return dict(part)


def _no_slips(values: Mapping[str, Any]) -> None:
    """ValueError for a key that is all but one of ours: unread, its default would stand for it."""
    known = [field.name for field in fields(EngineProfile)]
    for name in values:
        near = difflib.get_close_matches(name, known, n=1, cutoff=0.85)
        if near and name not in known:
            raise ValueError(f"has {shown(name)}, which must be {near[0]!r} or of another name")


def _part(kind: type[Part], value: Any) -> Part | None:
    """An optional part: null or false is none, true the part as it comes, or its values."""
    if value is None or value is False:
        return None
    given = {} if value is True else value
    if not isinstance(given, Mapping):
        raise ValueError(
            f"{kind.__name__} must be an object, true, false or null, got {shown(value)}"
        )
    _check_keys(kind, kind.__name__, given)
    return kind(**given)


def _check_keys(kind: type, name: str, given: Mapping[str, Any]) -> None:
    """ValueError names a key that a dataclass has not, or those that it asks for and miss."""
    known = [field.name for field in fields(kind)]
    if unknown := sorted(set(given) - set(known)):
        raise ValueError(f"{name} has no {shown(unknown[0])}; it has {', '.join(known)}")
    asked = [f.name for f in fields(kind) if f.default is MISSING and f.default_factory is MISSING]
    if lacking := [key for key in asked if key not in given]:
        raise ValueError(f"{name} lacks {', '.join(lacking)}")


def _is_number(value: object) -> bool:
    # what is measured may be numpy's
    real = isinstance(value, Real) and not isinstance(value, bool)
    return real and value == value


def _is_whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)
