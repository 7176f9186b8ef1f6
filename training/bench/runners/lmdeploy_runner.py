"""LMDeploy's servers as a runner: its own order, and ours at its pool of request handles."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from lengthwise.data.workload import WorkloadRequest
from lengthwise.scheduler.lmdeploy_adapter.lmdeploy_environment import VERSION
from lengthwise.scheduler.profile import EngineProfile
from lengthwise.training.bench.comparison.arms import STOCK_ARM, Arm, configure, server_status
from lengthwise.training.bench.comparison.compare import Run, Tick, no_tick
from lengthwise.training.bench.comparison.workload_source import WorkloadSource
from lengthwise.training.bench.engines.client import BenchError, ReplayLog, drive_closed, replay
from lengthwise.training.bench.engines.lmdeploy_servers import LmdeployServers, calls_of
from lengthwise.training.bench.results.provenance import describe_machine
from lengthwise.training.bench.results.result import Provenance
from lengthwise.training.bench.runners.engine_runner import (
    plan_times,
    predicted_tokens,
    to_records,
)

if TYPE_CHECKING:
    from lengthwise.predictor.model import LengthPredictor

WARM_UP_REQUESTS = 16


class LmdeployRunner:
    """Replays the requests against running servers; stock is the base.

    ``predictor`` is the one our server uses, only to record what it said. ``profile`` is what its
    planner took the engine for at its start.
    """

    provenance: Provenance = "measured"
    engine = f"lmdeploy {VERSION}, its server and scheduler on a CPU device of ours"
    base_arms = (STOCK_ARM,)

    def __init__(
        self,
        servers: LmdeployServers,
        predictor: LengthPredictor | None,
        profile: EngineProfile,
        *,
        max_tokens: int,
        timeout_s: float = 600.0,
    ) -> None:
        self.servers, self.profile = servers, profile
        self._predictor, self._max_tokens, self._timeout_s = predictor, max_tokens, timeout_s

    def start(self, source: WorkloadSource) -> None:
        """Warm the servers up.

        Raises:
            BenchError: one answers no request.
        """
        bodies = [c.body for c in calls_of(source.sample(WARM_UP_REQUESTS), self._max_tokens)]
        for url in (self.servers.ours, self.servers.stock):
            replies = asyncio.run(drive_closed(url, bodies, concurrency=8, timeout_s=120))
            if all(reply.error for reply in replies):
                raise BenchError(f"the server at {url} fails every request: {replies[0].error}")

    def run(
        self, arm: Arm, requests: Sequence[WorkloadRequest], repeat: int, tick: Tick = no_tick
    ) -> Run:
        """One run of one arm, from an idle server to an idle server."""
        log, status = asyncio.run(self._replay(arm, requests, tick))
        learned = arm.lengths == "learned"
        told = predicted_tokens(requests, self._predictor) if learned else None
        plans = None if status is None else plan_times(status.get("plan") or {})
        return Run(repeat, to_records(requests, log, repeat, told), log.queue, plans)

    def describe(self) -> dict[str, Any]:
        """Engine, profile and machine."""
        return {
            "lmdeploy": VERSION,
            "profile": self.profile.name,
            "profile_provenance": self.profile.provenance,
            "engine_limits": asdict(self.profile.capacity),
            "machine": describe_machine(),
        }

    async def _replay(
        self, arm: Arm, requests: Sequence[WorkloadRequest], tick: Tick
    ) -> tuple[ReplayLog, dict[str, Any] | None]:
        url = self.servers.stock if arm.is_stock else self.servers.ours
        calls = calls_of(requests, self._max_tokens, tell_length=arm.lengths == "oracle")
        if not arm.is_stock:
            await configure(url, arm)
        # its metrics are written every ten seconds only; all answers read is idle enough
        log = await replay(url, calls, timeout_s=self._timeout_s, queue_period_s=None, on_done=tick)
        return log, None if arm.is_stock else await server_status(url)
