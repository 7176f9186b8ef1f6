"""What goes to LMDeploy's process and comes back: one JSON document a line.

JSON keeps a float's every bit, so a run depends on its task alone, whoever reads it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any

import numpy as np

from lengthwise.data.max_wait import MAX_WAIT_S
from lengthwise.scheduler.problem import Capacity
from lengthwise.scheduler.profile import EngineProfile, PrefixCache, Speculation
from lengthwise.scheduler.simulator.sim_workload import SimResult, SimWorkload
from lengthwise.scheduler.step_time import StepTimeModel

_WHOLE = {
    "prompt_tokens", "output_tokens", "class_id", "tenant_id", "prefix_id", "prefix_tokens",
}  # fmt: skip
_TIMES = ("admitted_s", "first_token_s", "finish_s")


@dataclass(frozen=True, slots=True)
class PoolTask:
    """One run of a workload; ``policy`` orders the pool of request handles, None leaves it as is.

    ``params`` and ``seed`` go to the policy; without ``budget_s``, seconds a plan may take, a run
    depends on the task alone. ``nominal_s``, where given, is what a plan is expected to take.
    """

    workload: SimWorkload
    profile: EngineProfile
    policy: str | None = None
    params: Mapping[str, Any] = field(default_factory=dict)
    seed: int = 0
    budget_s: float | None = None
    nominal_s: float | None = None
    max_wait_s: float = MAX_WAIT_S


def task_line(task: PoolTask) -> str:
    """The task in one line."""
    workload = {
        column.name: None if (array := getattr(task.workload, column.name)) is None
        else array.tolist()
        for column in fields(task.workload)
    }  # fmt: skip
    rest = {
        f.name: getattr(task, f.name)
        for f in fields(task)
        if f.name not in ("workload", "profile", "params")
    }
    document = {
        **rest,
        "params": dict(task.params),
        "profile": asdict(task.profile),
        "workload": workload,
    }
    return json.dumps(document)


def read_task(line: str) -> PoolTask:
    """The inverse of `task_line`."""
    values = json.loads(line)
    workload: dict[str, Any] = {
        name: None if column is None else np.asarray(column, dtype=_dtype(name))
        for name, column in values.pop("workload").items()
    }
    rows = len(workload["arrival_s"])
    workload["quantiles"] = workload["quantiles"].reshape(rows, len(workload["levels"]))
    params = {
        name: tuple(value) if isinstance(value, list) else value
        for name, value in values.pop("params").items()
    }
    profile = profile_of(values.pop("profile"))
    return PoolTask(SimWorkload(**workload), profile, params=params, **values)


def result_line(result: SimResult) -> str:
    """The outcome in one line; of it nothing is lost but admission control's actions, its own."""
    values = {f.name: getattr(result, f.name) for f in fields(result) if f.name != "actions"}
    arrays = {n: v.tolist() for n, v in values.items() if isinstance(v, np.ndarray)}
    return json.dumps(values | arrays)


def read_result(values: dict[str, Any]) -> SimResult:
    """The inverse of `result_line`, its JSON read."""
    times: dict[str, Any] = {
        name: np.asarray(values.pop(name), dtype=np.float64) for name in _TIMES
    }
    tokens = np.asarray(values.pop("output_tokens"), dtype=np.int64)
    queue_len = [(float(at_s), int(count)) for at_s, count in values.pop("queue_len")]
    return SimResult(**times, output_tokens=tokens, queue_len=queue_len, **values)


def _dtype(name: str) -> type:
    return np.int64 if name in _WHOLE else np.float64


def profile_of(values: dict[str, Any]) -> EngineProfile:
    """A profile from ``dataclasses.asdict`` of it."""
    parts = {"prefix_cache": PrefixCache, "speculation": Speculation}
    optional = {n: kind(**values[n]) if values[n] else None for n, kind in parts.items()}
    step_time = StepTimeModel.from_dict(values["step_time"])
    given = {**values, **optional, "step_time": step_time}
    return EngineProfile(**given | {"capacity": Capacity(**values["capacity"])})
