"""An executor for LMDeploy's engine that computes nothing and takes a profile's time for it.

It keeps what a model would know of the running batch: how many tokens each row may still get and
how long its context is. A row is a sequence; LMDeploy says with every step which rows go on.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from lmdeploy.pytorch.engine.executor.base import ExecutorBase
from lmdeploy.pytorch.engine.model_agent import BatchedOutputs

from lengthwise.scheduler.step_time import StepTimeModel

ANY_TOKEN = 5


@dataclass(slots=True)
class StepCounts:
    """What was played: steps, prompts completed, prompt tokens, the largest running context."""

    steps: int = 0
    prompts: int = 0
    prefilled_tokens: int = 0
    context_peak_tokens: int = 0


class TimedExecutor(ExecutorBase):
    """Steps one after another on the loop's clock, queued as on a device."""

    def __init__(self, step_time: StepTimeModel, model_config: Any, **configs: Any) -> None:
        super().__init__("", model_config, **configs)
        self.counts = StepCounts()
        self._step_time = step_time
        self._left = np.zeros(0, dtype=np.int64)
        self._context = np.zeros(0, dtype=np.int64)
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
        """Queue a step: a prefill where there are ``inputs``, else a decode of the rows kept."""
        prefill, delta = inputs["inputs"], inputs["delta"]
        if delta is not None:
            kept = delta.indice_cpu
            self._left, self._context = self._left[kept], self._context[kept]
        if prefill is None:
            step_s, outputs = self._decode()
        else:
            step_s, outputs = self._prefill(prefill, inputs["stopping_criteria"])
        self.counts.steps += 1
        now_s = asyncio.get_running_loop().time()
        self._free_at_s = max(now_s, self._free_at_s) + step_s
        self._done.put_nowait((self._free_at_s, outputs))

    async def get_output_async(self) -> BatchedOutputs:
        """The oldest queued step's tokens, when the step is over."""
        at_s, outputs = await self._done.get()
        wait_s = at_s - asyncio.get_running_loop().time()
        if wait_s > 0:
            await asyncio.sleep(wait_s)
        return outputs

    def _decode(self) -> tuple[float, BatchedOutputs]:
        rows, context = len(self._left), int(self._context.sum())
        self._left, self._context = self._left - 1, self._context + 1
        self.counts.context_peak_tokens = max(self.counts.context_peak_tokens, context)
        # an answer that ended in the step before still takes part in this one, as on a device
        return self._step_time.step_s(0, rows, context), _outputs(self._left <= 0)

    def _prefill(self, inputs: Any, stopping: Any) -> tuple[float, BatchedOutputs]:
        lengths = inputs.seq_length.numpy()
        tokens = int(lengths.sum())
        self.counts.prefilled_tokens += tokens
        step_s = self._step_time.step_s(tokens, 0, 0)
        if inputs.is_chunk and not inputs.is_last_chunk:
            return step_s, _outputs(np.zeros(len(lengths), dtype=np.bool_))
        self.counts.prompts += len(lengths)
        left = stopping.num_appendable_ids.numpy().astype(np.int64) - 1
        self._left = np.concatenate([self._left, left])
        context = lengths + inputs.history_lengths.numpy()
        self._context = np.concatenate([self._context, context])
        return step_s, _outputs(left <= 0)


def _outputs(stopped: np.ndarray[Any, np.dtype[np.bool_]]) -> BatchedOutputs:
    tokens = torch.full((len(stopped),), ANY_TOKEN, dtype=torch.long)
    return BatchedOutputs(next_token_ids=tokens, stopped=torch.from_numpy(stopped))
