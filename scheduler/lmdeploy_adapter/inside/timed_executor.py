"""An executor for LMDeploy's engine that computes nothing and takes a profile's time for it."""

from __future__ import annotations

import asyncio
from typing import Any

import torch
from lmdeploy.pytorch.engine.executor.base import ExecutorBase
from lmdeploy.pytorch.engine.model_agent import BatchedOutputs

from lengthwise.scheduler.lmdeploy_adapter.batch_rows import BatchRows
from lengthwise.scheduler.step_time import StepTimeModel

ANY_TOKEN = 5


class TimedExecutor(ExecutorBase):
    """Steps one after another on the loop's clock, queued as on a device."""

    def __init__(self, step_time: StepTimeModel, model_config: Any, **configs: Any) -> None:
        super().__init__("", model_config, **configs)
        self.steps = 0
        self.batch = BatchRows()
        self._step_time = step_time
        self._free_at_s = 0.0

    def init(self) -> None:
        """Nothing to load."""

    def get_input_processor(self) -> None:
        """Text only."""

    def start(self, forward_event: Any) -> None:
        """The loop begins."""
        self._done: asyncio.Queue[tuple[float, BatchedOutputs]] = asyncio.Queue()

    async def wait_tasks(self) -> None:
        """It has none that could fail."""
        await asyncio.Event().wait()

    def stop(self) -> None:
        """Nothing runs by itself."""

    def release(self) -> None:
        """Nothing is held."""

    async def forward_async(self, inputs: dict[str, Any]) -> None:
        """Queue a step."""
        prefill_tokens, decodes, context, left = self.batch.step(inputs)
        if left is None:
            stopped = torch.zeros(inputs["inputs"].seq_length.numel(), dtype=torch.bool)
        else:
            stopped = torch.from_numpy(left <= 0)
        self.steps += 1
        now_s = asyncio.get_running_loop().time()
        step_s = self._step_time.step_s(prefill_tokens, decodes, context)
        self._free_at_s = max(now_s, self._free_at_s) + step_s
        tokens = torch.full((len(stopped),), ANY_TOKEN, dtype=torch.long)
        outputs = BatchedOutputs(next_token_ids=tokens, stopped=stopped)
        self._done.put_nowait((self._free_at_s, outputs))

    async def get_output_async(self) -> BatchedOutputs:
        """The oldest queued step's tokens, when the step is over."""
        at_s, outputs = await self._done.get()
        wait_s = at_s - asyncio.get_running_loop().time()
        if wait_s > 0:
            await asyncio.sleep(wait_s)
        return outputs
