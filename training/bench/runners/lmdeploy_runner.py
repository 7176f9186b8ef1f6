"""LMDeploy's servers as a runner: its own order, and ours at its pool of request handles."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from lengthwise.data.max_wait import MAX_WAIT_S
from lengthwise.data.workload import WorkloadRequest
from lengthwise.scheduler.lmdeploy_adapter.lmdeploy_environment import VERSION
from lengthwise.scheduler.profile import EngineProfile
from lengthwise.training.bench.comparison.arms import (
    STOCK_ARM,
    Arm,
    post_configure,
    server_status,
)
from lengthwise.training.bench.comparison.compare import Run, Tick, no_tick
from lengthwise.training.bench.comparison.workload_source import WorkloadSource, cut_at_max_tokens
from lengthwise.training.bench.engines.client import BenchError, ReplayLog, drive_closed, replay
from lengthwise.training.bench.engines.lmdeploy_servers import LmdeployServers, calls_of
from lengthwise.training.bench.results.provenance import describe_machine
from lengthwise.training.bench.results.result import Provenance
from lengthwise.training.bench.runners.engine_runner import plan_times, to_records
from lengthwise.training.bench.runners.modeled import median_tokens
from lengthwise.training.bench.runners.simulator_runner import KnownLengths, policy_seed

WARM_UP_REQUESTS = 16


class LmdeployRunner:
    """Replays the requests against running servers; stock is the base.

    Lengths are predicted beforehand by ``lengths`` and handed over with each request. ``profile``
    is what the planner takes the engine for.
    """

    provenance: Provenance = "measured"
    engine = f"lmdeploy {VERSION}, its server and scheduler on a CPU device of ours"
    base_arms = (STOCK_ARM,)

    def __init__(
        self,
        servers: LmdeployServers,
        lengths: KnownLengths,
        profile: EngineProfile,
        *,
        max_tokens: int,
        max_wait_s: float = MAX_WAIT_S,
        timeout_s: float = 600.0,
        seed: int = 0,
    ) -> None:
        self.servers, self.profile = servers, profile
        self._lengths, self._max_tokens = lengths, max_tokens
        self._max_wait_s, self._timeout_s, self._seed = max_wait_s, timeout_s, seed

    def start(self, source: WorkloadSource) -> None:
        """Warm the servers up.

        Raises:
            BenchError: one answers no request.
        """
        requests = source.sample(WARM_UP_REQUESTS)
        rows, levels = self._lengths(Arm("fcfs", "none"), requests)
        asyncio.run(self._configure(Arm("fcfs", "none"), levels, 0))
        bodies = [call.body for call in calls_of(requests, rows, self._max_tokens)]
        for url in (self.servers.ours, self.servers.stock):
            replies = asyncio.run(drive_closed(url, bodies, concurrency=8, timeout_s=120))
            if all(reply.error for reply in replies):
                raise BenchError(f"the server at {url} fails every request: {replies[0].error}")

    def run(
        self, arm: Arm, requests: Sequence[WorkloadRequest], repeat: int, tick: Tick = no_tick
    ) -> Run:
        """One run of one arm, from an idle server to an idle server."""
        known = arm if not arm.is_stock else Arm("fcfs", "none")
        rows, levels = self._lengths(known, requests)
        log, status = asyncio.run(self._replay(arm, requests, (rows, levels), repeat, tick))
        told = median_tokens(rows, levels) if arm.lengths == "learned" else None
        plans = None if arm.is_stock else plan_times(status.get("plan") or {})
        return Run(repeat, to_records(requests, log, repeat, told), log.queue, plans)

    def describe(self) -> dict[str, Any]:
        """Engine, profile and machine."""
        return {
            "lmdeploy": VERSION,
            "profile": self.profile.name,
            "profile_provenance": self.profile.provenance,
            "engine_limits": asdict(self.profile.capacity),
            "lengths_handed_over": True,
            "machine": describe_machine(),
        }

    async def _configure(self, arm: Arm, levels: np.ndarray, repeat: int) -> None:
        body = {
            "policy": arm.policy,
            "seed": policy_seed(arm, self._seed + repeat),
            "levels": levels.tolist(),
            "profile": asdict(self.profile),
            "max_wait_s": self._max_wait_s,
        }
        await post_configure(self.servers.ours, body)

    async def _replay(
        self,
        arm: Arm,
        requests: Sequence[WorkloadRequest],
        known: tuple[np.ndarray, np.ndarray],
        repeat: int,
        tick: Tick,
    ) -> tuple[ReplayLog, dict[str, Any]]:
        rows, levels = known
        calls = calls_of(requests, cut_at_max_tokens(rows, requests), self._max_tokens)
        url = self.servers.stock if arm.is_stock else self.servers.ours
        if not arm.is_stock:
            await self._configure(arm, levels, repeat)
        # its metrics are written every ten seconds only; all answers read is idle enough
        log = await replay(url, calls, timeout_s=self._timeout_s, queue_period_s=None, on_done=tick)
        return log, await server_status(url)
