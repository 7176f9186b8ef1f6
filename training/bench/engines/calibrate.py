"""`lengthwise calibrate`: how long this engine's steps take, and how much it can carry.

Our server, in arrival order, logs every step while we drive it through concurrency levels and
prompt sizes; `fit_step_time` turns the log into the step-time model. Before and after that a
saturating run of a real workload measures the requests/s the engine finishes (`reply_rate.py` says
which counts); its ratio to what the model says for the same requests is `capacity_scale`, by which
every `--load` is later scaled.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from lengthwise.data.slo import Slo
from lengthwise.data.workload import WorkloadRequest
from lengthwise.scheduler.problem import Capacity
from lengthwise.scheduler.profile import EngineProfile, PrefixCache
from lengthwise.scheduler.serving.step_log import read_step_log
from lengthwise.scheduler.simulator.capacity import saturated_rps
from lengthwise.scheduler.step_alignment import aligned
from lengthwise.scheduler.step_fit import fit_step_time
from lengthwise.scheduler.step_time import StepTimeModel
from lengthwise.training.bench.comparison.arms import Arm, configure, post_configure, server_status
from lengthwise.training.bench.comparison.workload_source import WorkloadSource, to_sim
from lengthwise.training.bench.engines.client import BenchError, Reply, drive_closed, wait_idle
from lengthwise.training.bench.engines.reply_rate import (
    STEADY,
    fastest_seen_twice,
    loaded_tokens_per_s,
)
from lengthwise.training.bench.engines.servers import BenchServers
from lengthwise.training.bench.results.provenance import describe_machine, utc_now

PROMPT_TOKENS = (16, 128, 512)
OUTPUT_TOKENS = 48
SATURATED_REQUESTS_PER_SLOT = 6
IN_FLIGHT_PER_SLOT = 2
MOST_RUNS = 5  # of the saturated throughput, where no other run comes near the fastest


@dataclass(frozen=True, slots=True)
class Calibration:
    """A profile, and how well it holds on steps it was not fitted to."""

    profile: EngineProfile
    report: dict[str, Any]


def calibrate_server(
    servers: BenchServers,
    source: WorkloadSource,
    *,
    name: str,
    short: bool = False,
    on_stage: Callable[[str], None] = lambda text: None,
) -> Calibration:
    """Calibrate a running server of ours.

    Args:
        servers: only `ours` is used; it must allow configuration.
        source: workload whose saturated throughput is measured.
        name: of the profile.
        short: half the steps and requests (demo).
        on_stage: told what is going on.

    Raises:
        BenchError: the server was started without a step log or logged no steps, or the
            requests failed.
    """
    url = servers.ours.url
    step_log = servers.step_log
    if step_log is None:
        raise BenchError("the server was started without a step log")
    step_log.unlink(missing_ok=True)
    status = asyncio.run(server_status(url))
    capacity, cache = read_capacity(status), read_prefix_cache(status)
    asyncio.run(configure(url, Arm("fcfs", "none")))
    asyncio.run(post_configure(url, {"log_steps": True}))
    requests = source.sample(capacity.max_num_seqs * SATURATED_REQUESTS_PER_SLOT)
    requests = requests[: len(requests) // 2] if short else requests
    in_flight = IN_FLIGHT_PER_SLOT * capacity.max_num_seqs

    def throughput_rps() -> float:
        on_stage("saturated throughput")
        return asyncio.run(saturate(servers, url, requests, in_flight))

    try:
        before_rps = throughput_rps()
        for level in concurrency_levels(capacity.max_num_seqs):
            on_stage(f"steps with {level} in flight")
            asyncio.run(drive_level(servers, url, level, rounds=1 if short else 2))
        rates_rps = [before_rps, throughput_rps()]
        while fastest_seen_twice(rates_rps) != max(rates_rps) and len(rates_rps) < MOST_RUNS:
            rates_rps.append(throughput_rps())
    finally:
        asyncio.run(post_configure(url, {"log_steps": False}))
    measured_rps = fastest_seen_twice(rates_rps) or float(np.median(rates_rps))
    if min(rates_rps) < STEADY * max(rates_rps):
        each = ", ".join(f"{rate:.2f}" for rate in rates_rps)
        on_stage(f"other work disturbed the machine: {each} requests/s, took {measured_rps:.2f}")
    # columns 1-4: prefill tokens, decoding sequences, context tokens, duration in s
    steps = aligned(read_step_log(step_log)[:, 1:5])
    if not len(steps):
        raise BenchError(f"the server logged no steps to {step_log}")
    machine = describe_machine()
    provenance = (
        f"calibrated {utc_now()} on {machine['processor']}, {machine['cores']} cores, "
        f"{machine['engine']}, model {servers.model}"
    )
    model, fit_report = fit_step_time(steps, name=name, provenance=provenance)
    profile = make_profile(model, capacity, provenance, measured_rps, requests, cache)
    report = {
        "steps": len(steps),
        "fit": fit_report,
        "measured_rps": measured_rps,
        "measured_rps_each": rates_rps,
        "modeled_rps": measured_rps / profile.capacity_scale,
        "workload": source.name,
        "source_label": source.source_label,
    }
    return Calibration(profile, report)


def concurrency_levels(max_num_seqs: int) -> list[int]:
    """1, 4, 16, ... and the engine's own limit."""
    levels = [4**k for k in range(8) if 4**k < max_num_seqs]
    return [*levels, max_num_seqs]


async def drive_level(servers: BenchServers, url: str, level: int, *, rounds: int) -> None:
    """`level` requests in flight at each prompt size, answers of slightly different lengths."""
    rng = np.random.default_rng(level)
    for prompt_tokens in PROMPT_TOKENS:
        requests = [
            WorkloadRequest(
                arrival_s=0.0,
                prompt_tokens=int(prompt_tokens * factor),
                output_tokens=int(OUTPUT_TOKENS * factor),
                slo=Slo(),
            )
            for factor in rng.uniform(0.6, 1.4, level * rounds)
        ]
        calls = servers.calls(requests, salt=f"calibrate-{level}-{prompt_tokens}-{time.time_ns()}")
        check(await drive_closed(url, [c.body for c in calls], concurrency=level))


async def saturate(
    servers: BenchServers, url: str, requests: Sequence[WorkloadRequest], in_flight: int
) -> float:
    """Requests/s finished while more wait than fit.

    Each answer that ends brings the next request, as taking requests in costs the server too.
    """
    await wait_idle(url)
    calls = servers.calls(requests, salt=f"saturate-{time.time_ns()}")
    replies = await drive_closed(url, [c.body for c in calls], concurrency=in_flight)
    check(replies)
    mean_tokens = float(np.mean([r.output_tokens for r in requests]))
    return loaded_tokens_per_s(replies) / mean_tokens


def check(replies: Sequence[Reply]) -> None:
    """Raise BenchError if any request of a calibration failed."""
    failed = [r.error for r in replies if r.error]
    if failed:
        count = f"{len(failed)} of {len(replies)}"
        raise BenchError(f"{count} calibration requests failed: {failed[0]}")


def read_capacity(status: dict[str, Any]) -> Capacity:
    """The engine's limits from our server's status."""
    limits = status["capacity"]
    return Capacity(
        max_num_seqs=int(limits["max_num_seqs"]),
        kv_tokens=int(limits["kv_tokens"]),
        max_num_batched_tokens=int(limits["max_num_batched_tokens"]),
    )


def read_prefix_cache(status: dict[str, Any]) -> PrefixCache | None:
    """Whether the engine keeps prompts' beginnings, from our server's status."""
    cache = status.get("prefix_cache")
    return None if cache is None else PrefixCache(int(cache["block_tokens"]))


def make_profile(
    model: StepTimeModel,
    capacity: Capacity,
    provenance: str,
    measured_rps: float,
    requests: Sequence[WorkloadRequest],
    prefix_cache: PrefixCache | None = None,
) -> EngineProfile:
    """Profile whose `capacity_scale` makes the model's throughput the measured one."""
    profile = EngineProfile(
        name=model.name,
        step_time=model,
        capacity=capacity,
        provenance=provenance,
        capacity_scale=1.0,
        prefix_cache=prefix_cache,
    )
    modeled_rps = saturated_rps(to_sim(requests), profile)
    return replace(profile, capacity_scale=measured_rps / modeled_rps)


def write_profile(calibration: Calibration, path: Path) -> None:
    """Write the profile, with the report of its fit beside the fields the planner reads."""
    path.parent.mkdir(parents=True, exist_ok=True)
    document = json.loads(calibration.profile.to_json()) | {"calibration": calibration.report}
    path.write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")


def calibration_rows(calibration: Calibration) -> list[list[str]]:
    """What was found, for the terminal."""
    model, report = calibration.profile.step_time, calibration.report
    one, full = (
        model.step_s(0, seqs, seqs * 256) for seqs in (1, calibration.profile.capacity.max_num_seqs)
    )
    return [
        ["timed steps", f"{report['steps']:,}"],
        ["held-out error, median", f"{report['fit']['median_error']:.1%}"],
        ["held-out error, p90", f"{report['fit']['p90_error']:.1%}"],
        ["step, 1 sequence", f"{one * 1e3:.2f} ms"],
        [f"step, {calibration.profile.capacity.max_num_seqs} sequences", f"{full * 1e3:.2f} ms"],
        ["prefill", f"{model.prefill_token_s * 1e6:.1f} us/token"],
        [f"capacity, {report['workload']}", f"{report['measured_rps']:.2f} requests/s"],
        ["measured / modeled", f"{calibration.profile.capacity_scale:.2f}"],
    ]
