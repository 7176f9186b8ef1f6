"""The result document of `bench` and `simulate`: its shape, checked on writing and on reading."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from lengthwise.data.errors import InputError

Share = float | None
Provenance = Literal["measured", "emulated", "emulated, warped", "modeled"]


class ClassResult(BaseModel):
    """Outcome of one service class within an arm."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)

    requests: int = Field(ge=0)
    lost: int = Field(ge=0)
    attainment: Share = Field(ge=0, le=1)
    attainment_ci95: tuple[float, float] | None
    mean_e2e_s: float | None
    p99_e2e_s: float | None
    mean_ttft_s: float | None
    p99_ttft_s: float | None
    mean_tpot_s: float | None


class ArmResult(ClassResult):
    """Outcome of one arm: a policy with a source of lengths, or stock vLLM; behind a `router`
    where there are several instances."""

    policy: str
    lengths: str
    name: str | None = None
    router: str | None = None
    goodput_rps: float
    g_per_s: float
    output_tokens_per_s: float
    max_wait_s: float | None
    plan_ms_p50: float | None
    plan_ms_p99: float | None
    per_class: dict[str, ClassResult]

    @property
    def label(self) -> str:
        """How the arm is called on the command line and in tables."""
        kind = self.policy if self.policy == "stock" else f"{self.policy}:{self.lengths}"
        return self.name or (kind if self.router is None else f"{self.router}/{kind}")


class Emulation(BaseModel):
    """How true an emulated run was to the profile of the engine that it stands for.

    `step_ratio` is the time of the steps over what the profile says, the worst of the arms'.
    """

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)

    profile: str
    profile_sha256: str
    steps: int = Field(ge=0)
    step_ratio: float | None
    late_steps: int = Field(ge=0)
    over_5_percent: float = Field(ge=0, le=1)
    load_average: float
    valid: bool
    instances: int = Field(default=1, ge=1)
    host_factor: float | None = None


class BenchResult(BaseModel):
    """The last line of stdout of `bench` and `simulate`.

    `provenance` is `measured` where the real engine computed, `emulated` where the real server
    and scheduler ran on a device that only takes the time, `emulated, warped` where they did
    without a server and faster than time, `modeled` in the simulator; `engine`
    is the engine's version, or the profile that was played. `source_label` is `synthetic` where
    the built-in corpus stood in for data; `bound` is the attainment that no scheduler can exceed
    on these requests, if computed; `run` says where and how (machine, versions, rates, seeds);
    `diagnostics` holds per arm what supports the figures (send lag, length mismatches, throughput
    under load); `against_base` paired differences; `emulation` says how far an emulated run may
    be believed.
    """

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)

    provenance: Provenance
    engine: str | None = None
    workload: str
    load: float | None
    predictor: str | None
    source_label: str
    arms: list[ArmResult]
    bound: Share = Field(default=None, ge=0, le=1)
    emulation: Emulation | None = None
    run: dict[str, Any] = {}
    diagnostics: dict[str, dict[str, Any]] = {}
    against_base: dict[str, dict[str, Any]] = {}

    def to_line(self) -> str:
        """The document on one line."""
        document = self.model_dump(mode="json")
        # what an arm is first, then its figures
        document["arms"] = [
            {"policy": arm["policy"], "lengths": arm["lengths"]}
            | {k: v for k, v in arm.items() if k not in ("name", "router") or v is not None}
            for arm in document["arms"]
        ]
        return json.dumps(document, allow_nan=False)


def read_result(path: Path) -> BenchResult:
    """Read a result file.

    Raises:
        InputError: missing, not JSON, or not of this shape.
    """
    try:
        return BenchResult.model_validate_json(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"cannot read result file {path}: {error.strerror}") from error
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(p) for p in first["loc"])
        raise InputError(f"{path} is not a bench result: {where}: {first['msg']}") from error
