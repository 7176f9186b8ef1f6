"""What an emulated run says of itself, and whether this machine can carry one over HTTP."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Sequence
from typing import Any

from lengthwise.scheduler.profile import EngineProfile
from lengthwise.scheduler.vllm_adapter.emulated.emulated_steps import LARGEST_RATIO, StepSummary
from lengthwise.training.bench.results.result import Emulation

# Processor time a streamed token, us, on a contended core (docs/emulated.md): the API process's,
# and that of API, engine and client together. A message every tenth token or rarer costs less.
_API_US, _ALL_US = 90.0, 130.0
_SPARSE_INTERVAL, _SPARSE_API_US, _SPARSE_ALL_US = 10, 42.0, 81.0
_LARGEST_SHARE = 0.7


def profile_sha256(profile: EngineProfile) -> str:
    """The first 12 hexadecimal digits of the hash of the profile's values."""
    return hashlib.sha256(profile.to_json().encode()).hexdigest()[:12]


def emulation_of(
    profile: EngineProfile,
    summaries: Iterable[StepSummary],
    *,
    load_average: float,
    instances: int = 1,
    host_factor: float | None = None,
) -> Emulation:
    """The facts of a run with these steps, one summary an arm and engine."""
    known = list(summaries)
    ratios = [s.step_ratio for s in known if s.step_ratio is not None]
    steps = sum(s.steps for s in known)
    over = sum(s.over_5_percent * s.steps for s in known)
    return Emulation(
        profile=profile.name,
        profile_sha256=profile_sha256(profile),
        steps=steps,
        step_ratio=max(ratios, default=None),
        late_steps=sum(s.late_steps for s in known),
        over_5_percent=over / steps if steps else 0.0,
        load_average=load_average,
        valid=all(s.valid for s in known),
        instances=instances,
        host_factor=host_factor,
    )


def load_average() -> float:
    """Processes that ran or waited to over the last minute; 0 where the system does not say."""
    try:
        return os.getloadavg()[0]
    except OSError:
        return 0.0


def caution(emulation: Emulation) -> str | None:
    """What a reader of the figures must be told, if anything."""
    if emulation.valid or emulation.step_ratio is None:
        return None
    return (
        f"INVALID: steps took {emulation.step_ratio:.3f} times what profile "
        f"{emulation.profile} says (at most {LARGEST_RATIO:g} stands for its engine; load average "
        f"{emulation.load_average:.1f}): these figures show this machine"
    )


def throughput_warning(
    tokens_per_s: float, vllm_args: Sequence[str], cores: int | None = None
) -> str | None:
    """Why this machine may not stream so many tokens/s in real time; None where it should."""
    cores = cores or os.cpu_count() or 1
    api_us, all_us = _API_US, _ALL_US
    if stream_interval(vllm_args) >= _SPARSE_INTERVAL:
        api_us, all_us = _SPARSE_API_US, _SPARSE_ALL_US
    api_share, all_share = api_us * tokens_per_s / 1e6, all_us * tokens_per_s / 1e6 / cores
    if api_share < _LARGEST_SHARE and all_share < _LARGEST_SHARE:
        return None
    return (
        f"about {tokens_per_s:,.0f} tokens/s cost the API process {100 * api_share:.0f} % of a "
        f"core and all processes {100 * all_share:.0f} % of {cores}; above "
        f"{100 * _LARGEST_SHARE:.0f} % answers queue up behind the engine and latencies are "
        "wrong: lower the load, or use --warp"
    )


def stream_interval(vllm_args: Sequence[str]) -> int:
    """Tokens a message of a stream, as given to vLLM; 1 by default."""
    interval = 1
    for index, arg in enumerate(vllm_args):
        name, equals, value = arg.partition("=")
        if name != "--stream-interval":
            continue
        if not equals and index + 1 < len(vllm_args):
            value = vllm_args[index + 1]
        if value.isdigit():
            interval = int(value)
    return interval


def step_figures(runs: Sequence[StepSummary]) -> dict[str, Any]:
    """An arm's steps over its runs, for the document's diagnostics."""
    ratios = [s.step_ratio for s in runs if s.step_ratio is not None]
    return {
        "steps": sum(s.steps for s in runs),
        "step_ratio": max(ratios, default=None),
        "late_steps": sum(s.late_steps for s in runs),
    }
