"""The real engine as a runner: stock vLLM and ours, both up, loaded in turn and never at once."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from lengthwise.data.workload import WorkloadRequest
from lengthwise.training.bench.comparison.arms import STOCK_ARM, Arm, configure, server_status
from lengthwise.training.bench.comparison.compare import PlanTimes, Run, Tick, no_tick
from lengthwise.training.bench.comparison.workload_source import WorkloadSource, length_rows
from lengthwise.training.bench.engines.client import BenchError, ReplayLog, replay, wait_idle
from lengthwise.training.bench.engines.servers import BenchServers, warm_up
from lengthwise.training.bench.results.provenance import describe_machine, engine_version
from lengthwise.training.bench.results.records import RequestRecord
from lengthwise.training.bench.results.result import Provenance
from lengthwise.training.bench.runners.modeled import median_tokens

if TYPE_CHECKING:
    from lengthwise.predictor.model import LengthPredictor


class EngineRunner:
    """Replays the requests against running servers; stock, where it is up, is the base.

    `predictor` is the one our server uses, only to record what it said (predicted against true).
    `provenance` is "emulated" where the servers' device only takes the time.
    """

    warm_up_requests = 24

    def __init__(
        self,
        servers: BenchServers,
        *,
        predictor: LengthPredictor | None = None,
        timeout_s: float = 600.0,
        provenance: Provenance = "measured",
    ) -> None:
        self.servers = servers
        self.provenance = provenance
        self.engine = engine_version()
        self.base_arms = () if servers.stock is None else (STOCK_ARM,)
        self.timeout_s = timeout_s
        self._predictor = predictor
        # of the requests that were asked last: the arms of one repeat share them
        self._predicted: tuple[Sequence[WorkloadRequest], np.ndarray | None] = ((), None)

    def start(self, source: WorkloadSource) -> None:
        """Warm the servers up."""
        warm = source.sample(self.warm_up_requests)
        for server in (self.servers.ours, self.servers.stock):
            if server is not None:
                asyncio.run(warm_up(self.servers, server.url, warm))

    def run(
        self, arm: Arm, requests: Sequence[WorkloadRequest], repeat: int, tick: Tick = no_tick
    ) -> Run:
        """One run of one arm, from an idle server to an idle server."""
        if self._predicted[0] is not requests:
            self._predicted = requests, predicted_tokens(requests, self._predictor)
        log, status = asyncio.run(self._replay(arm, requests, repeat, tick))
        told = self._predicted[1] if arm.lengths == "learned" else None
        plans = None if status is None else plan_times(status.get("plan") or {})
        return Run(repeat, to_records(requests, log, repeat, told), log.queue, plans)

    def describe(self) -> dict[str, Any]:
        """Model, arguments, limits and machine."""
        limits = asyncio.run(server_status(self.servers.ours.url)).get("capacity")
        return {
            "model": self.servers.model,
            "vllm_args": " ".join(self.servers.vllm_args),
            "engine_limits": limits,
            "machine": describe_machine(),
        }

    async def _replay(
        self, arm: Arm, requests: Sequence[WorkloadRequest], repeat: int, tick: Tick
    ) -> tuple[ReplayLog, dict[str, Any] | None]:
        servers = self.servers
        server = servers.stock if arm.is_stock else servers.ours
        if server is None:
            raise BenchError("no stock server is up")
        for other in (servers.stock, servers.ours):
            if other is not None:
                await wait_idle(other.url)
        if not arm.is_stock:
            await configure(server.url, arm)
        calls = servers.calls(
            requests, salt=f"{arm.label}-{repeat}", tell_length=arm.lengths == "oracle"
        )
        log = await replay(server.url, calls, timeout_s=self.timeout_s, on_done=tick)
        await wait_idle(server.url)
        return log, None if arm.is_stock else await server_status(server.url)


def predicted_tokens(
    requests: Sequence[WorkloadRequest], predictor: LengthPredictor | None
) -> np.ndarray | None:
    """Median predictions (n,) for the report."""
    if predictor is None:
        return None
    rows, levels = length_rows(requests, "learned", predictor)
    return median_tokens(rows, levels)


def plan_times(plan: dict[str, Any]) -> PlanTimes:
    """What our server's status says of its plans."""
    p50, p99 = plan.get("ms_p50"), plan.get("ms_p99")
    return PlanTimes(
        count=int(plan.get("count", 0)),
        ms_p50=None if p50 is None else float(p50),
        ms_p99=None if p99 is None else float(p99),
        fallbacks=sum((plan.get("fallbacks") or {}).values()),
    )


def to_records(
    requests: Sequence[WorkloadRequest],
    log: ReplayLog,
    repeat: int,
    predicted: np.ndarray | None,
) -> list[RequestRecord]:
    """One record a request."""
    return [
        RequestRecord(
            index=i,
            repeat=repeat,
            slo=request.slo,
            arrival_s=request.arrival_s,
            send_s=reply.send_s,
            prompt_tokens=reply.prompt_tokens or request.prompt_tokens,
            target_tokens=request.output_tokens,
            output_tokens=reply.output_tokens,
            ttft_s=reply.ttft_s,
            e2e_s=reply.e2e_s,
            error=reply.error,
            predicted_tokens=None if predicted is None else float(predicted[i]),
            cut=reply.cut,
        )
        for i, (request, reply) in enumerate(zip(requests, log.replies, strict=True))
    ]
