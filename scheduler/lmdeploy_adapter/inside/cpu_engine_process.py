"""LMDeploy's engine process on a CPU: the device is put in, then its own process runs.

With ``$LENGTHWISE_LMDEPLOY_STEPS`` every step is timed into that file, a JSON list a line: prompt
tokens, decoding rows, their context, seconds. What a step took is the time from its start, or from
the end of the step before if that was later, to its tokens.
"""

from __future__ import annotations

import json
import os
import time
from collections import deque
from pathlib import Path
from typing import Any

from lengthwise.scheduler.lmdeploy_adapter.batch_rows import BatchRows

STEPS_VARIABLE = "LENGTHWISE_LMDEPLOY_STEPS"


def run_cpu_engine(*args: Any, **kwargs: Any) -> None:
    """What LMDeploy's server starts in a process of its own."""
    import torch
    from lmdeploy.pytorch.engine.mp_engine.zmq_engine import ZMQMPEngine

    from lengthwise.scheduler.lmdeploy_adapter.inside import cpu_device

    torch.set_num_threads(1)
    cpu_device.install()
    if path := os.environ.get(STEPS_VARIABLE):
        time_steps(Path(path))
    ZMQMPEngine._mp_proc(*args, **kwargs)


def time_steps(path: Path) -> None:
    """Time the steps of every engine that is built from here on."""
    from lmdeploy.pytorch.engine import engine as engine_module

    build = engine_module.build_executor

    def build_timed(*args: Any, **kwargs: Any) -> Any:
        executor = build(*args, **kwargs)
        _StepTimer(executor, path)
        return executor

    engine_module.build_executor = build_timed


class _StepTimer:
    """Stands between an engine's loop and its executor."""

    def __init__(self, executor: Any, path: Path) -> None:
        self._batch, self._begun = BatchRows(), deque[tuple[float, tuple[int, int, int]]]()
        self._file = path.open("a", encoding="utf-8", buffering=1)
        self._ended_s = 0.0
        self._forward, self._output = executor.forward_async, executor.get_output_async
        executor.forward_async, executor.get_output_async = self.forward, self.output

    async def forward(self, inputs: dict[str, Any]) -> Any:
        prefill_tokens, decodes, context, _ = self._batch.step(inputs)
        self._begun.append((time.perf_counter(), (prefill_tokens, decodes, context)))
        return await self._forward(inputs)

    async def output(self) -> Any:
        outputs = await self._output()
        now_s = time.perf_counter()
        begun_s, step = self._begun.popleft()
        print(json.dumps([*step, now_s - max(begun_s, self._ended_s)]), file=self._file)
        self._ended_s = now_s
        return outputs
