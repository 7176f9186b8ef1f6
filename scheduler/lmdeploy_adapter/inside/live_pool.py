"""The planned pool of a running server: rows as requests come, their answers read in passing."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any

import numpy as np

from lengthwise.data.max_wait import MAX_WAIT_S
from lengthwise.scheduler.lmdeploy_adapter.inside.planned_pool import ROW, PlannedPool
from lengthwise.scheduler.lmdeploy_adapter.live_requests import LiveRequests
from lengthwise.scheduler.lmdeploy_adapter.play_messages import profile_of
from lengthwise.scheduler.lmdeploy_adapter.pool_order import PoolOrder, pool_policy_of
from lengthwise.scheduler.problem import Capacity
from lengthwise.scheduler.profile import EngineProfile
from lengthwise.scheduler.step_time import StepTimeModel

PLAN_BUDGET_S = 0.02
# of a request that comes without quantiles: it may be of any length
ANY_LENGTH_TOKENS = (16.0, 2048.0)
OBJECTIVES = ("ttft_s", "tpot_s", "e2e_s", "weight")


class LivePool(PlannedPool):
    """``ask`` gives what the asking task's request carries: its hints, and its prompt's tokens.

    It begins in the order of arrival; `configure` sets a policy.
    """

    def __init__(
        self,
        engine: Any,
        size: int,
        kv_tokens: int,
        prefill_tokens: int,
        ask: Callable[[], tuple[dict[str, Any], int]],
    ) -> None:
        self._ask = ask
        self.requests = LiveRequests(np.array([0.1, 0.5, 0.9]))
        capacity = Capacity(size, kv_tokens or 1, prefill_tokens)
        nothing = StepTimeModel(0.01, 0.0, 0.0, 0.0, 0.0)
        profile = EngineProfile("not told", nothing, capacity, "not told")
        super().__init__(engine, size, PoolOrder(self.requests, pool_policy_of("fcfs"), profile))
        self._free = [TrackedHandle(handle, self) for handle in self.handles]

    async def get(self) -> Any:
        """A handle, once the order names the request."""
        hints, prompt_tokens = self._ask()
        levels = self.requests.workload.levels
        quantiles = hints.get("quantiles")
        if quantiles is None:
            quantiles = np.geomspace(*ANY_LENGTH_TOKENS, len(levels))
        arrival_s = asyncio.get_running_loop().time()
        slo = hints.get("slo", {})
        objectives = {name: float(slo[name]) for name in OBJECTIVES if slo.get(name) is not None}
        known = np.asarray(quantiles, dtype=np.float64)
        ROW.set(self.requests.add(arrival_s, prompt_tokens, known, **objectives))
        return await super().get()

    def put(self, handle: Any) -> None:
        """The handle is free again."""
        if handle is not None and id(handle) in self._row_of:
            now_s = asyncio.get_running_loop().time()
            self.requests.ended(self._row_of[id(handle)], now_s)
        super().put(handle)

    def read(self, handle: Any, tokens: int) -> None:
        """So many tokens came by the handle."""
        row = self._row_of.get(id(handle))
        if row is not None and tokens:
            self.order.read(row, tokens, asyncio.get_running_loop().time())

    def configure(self, document: dict[str, Any]) -> dict[str, Any]:
        """Begin anew with a policy, a profile and the levels of what will be known of lengths.

        Raises:
            ValueError: somebody is being served, or there is no such policy.
        """
        if self.num_dispatched or self.order.waiting:
            raise ValueError("the pool is in use; configure it when nobody is served")
        policy = pool_policy_of(
            document["policy"],
            budget_s=document.get("budget_s", PLAN_BUDGET_S),
            seed=int(document.get("seed", 0)),
        )
        policy.warm_up()
        self.requests = LiveRequests(np.asarray(document["levels"], dtype=np.float64))
        profile = profile_of(document["profile"])
        max_wait_s = float(document.get("max_wait_s", MAX_WAIT_S))
        self.order = PoolOrder(self.requests, policy, profile, max_wait_s=max_wait_s, paced=True)
        return self.status()

    def status(self) -> dict[str, Any]:
        """Policy, plans and who is where."""
        plan_ms = 1e3 * np.array(self.order.plan_s)
        p50, p99 = np.quantile(plan_ms, [0.5, 0.99]).tolist() if len(plan_ms) else (None, None)
        return {
            "policy": self.order.policy.name,
            "waiting": len(self.order.waiting),
            "running": len(self.order.running),
            "measured_over_modelled": self.order.clock.ratio,
            "plan": {"count": len(plan_ms), "ms_p50": p50, "ms_p99": p99},
        }


class TrackedHandle:
    """LMDeploy's request handle; what it streams is counted."""

    def __init__(self, handle: Any, pool: LivePool) -> None:
        self._handle, self._pool = handle, pool

    def __getattr__(self, name: str) -> Any:
        return getattr(self._handle, name)

    async def async_stream_infer(self, *args: Any, **kwargs: Any) -> AsyncIterator[Any]:
        """The handle's own stream."""
        answers = self._handle.async_stream_infer(*args, **kwargs)
        try:
            async for answer in answers:
                self._pool.read(self, len(answer.token_ids))
                yield answer
        finally:
            await answers.aclose()
