"""A CPU as a device of LMDeploy's PyTorch engine, which has none.

The way its other non-CUDA devices go: a backend class for the operators, and ``torch.cuda`` made to
mean the device. Streams and events become no-ops, since CPU work is done when a call returns. Its
scheduler, batching, paging and model code are LMDeploy's; only device and attention are ours, so
what is measured on it compares orders inside this engine and never ranks it beside another.

One engine a process: LMDeploy leaves ``torch.inference_mode`` on.
"""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

import psutil
import torch


class _Event:
    """An event that has always happened."""

    def __init__(self, *_: Any, **__: Any) -> None: ...

    def record(self, *_: Any) -> None: ...

    def wait(self, *_: Any) -> None: ...

    def synchronize(self) -> None: ...

    def query(self) -> bool:
        return True


class _Stream:
    """A stream on which everything is done at once."""

    def __init__(self, *_: Any, **__: Any) -> None: ...

    def wait_event(self, _: Any) -> None: ...

    def wait_stream(self, _: Any) -> None: ...

    def synchronize(self) -> None: ...

    def record_event(self, event: Any = None) -> Any:
        return event or _Event()

    def query(self) -> bool:
        return True


def install() -> None:
    """Make this process's LMDeploy compute on the CPU in float32; before an engine is built."""
    _replace_cuda()
    import lmdeploy.pytorch.backends.selector as selector
    import lmdeploy.pytorch.config as config
    import lmdeploy.pytorch.engine.executor as executor
    import lmdeploy.utils as utils
    from lmdeploy.pytorch.engine.cache_engine.plan import BlockCachePlan
    from lmdeploy.pytorch.engine.model_agent import agent

    from lengthwise.scheduler.lmdeploy_adapter.inside.cpu_attention import CpuOpsBackend

    selector._get_backend = lambda: CpuOpsBackend
    utils.is_bf16_supported = config.is_bf16_supported = lambda *_, **__: True
    agent._try_to_cuda = _stay
    build_agent = agent.BaseModelAgent.__init__

    def build_cpu_agent(self: Any, *args: Any, **kwargs: Any) -> None:
        build_agent(self, *args, **kwargs)
        self.device = "cpu"

    agent.BaseModelAgent.__init__ = build_cpu_agent
    allocate = BlockCachePlan.allocate

    def allocate_here(self: Any, *, num_logical_blocks: int, device: Any) -> Any:
        return allocate(self, num_logical_blocks=num_logical_blocks, device="cpu")

    BlockCachePlan.allocate = allocate_here
    read_config = executor.ModelConfig.from_pretrained.__func__

    def read_float32(cls: Any, *args: Any, **kwargs: Any) -> Any:
        model_config = read_config(cls, *args, **kwargs)
        model_config.dtype = torch.float32  # what the settings may ask for has no such choice
        return model_config

    executor.ModelConfig.from_pretrained = classmethod(read_float32)


def engine_settings(slots: int, blocks: int, prefill_tokens: int, **settings: Any) -> Any:
    """Settings of an engine on this device: nothing is asked of a GPU."""
    from lmdeploy.messages import PytorchEngineConfig

    return PytorchEngineConfig(
        max_batch_size=slots,
        num_gpu_blocks=blocks,
        max_prefill_token_num=prefill_tokens,
        eager_mode=True,
        **settings,
    )


def write_random_weights(model: Path, seed: int = 0) -> Path:
    """``model.safetensors`` beside a Llama's ``config.json``; LMDeploy loads no dummy weights."""
    from safetensors.torch import save_file
    from transformers import AutoConfig, AutoModelForCausalLM

    file = model / "model.safetensors"
    if not file.is_file():
        torch.manual_seed(seed)
        models: Any = AutoModelForCausalLM
        llama = models.from_config(AutoConfig.from_pretrained(model))
        staged = file.with_suffix(".part")
        tensors = {name: tensor.contiguous() for name, tensor in llama.state_dict().items()}
        save_file(tensors, staged, metadata={"format": "pt"})
        staged.rename(file)
    return file


def _stay(value: Any, non_blocking: bool = False) -> Any:
    """What LMDeploy would move to the device."""
    return value if value is None or isinstance(value, torch.Tensor) else value.to_device("cpu")


def _replace_cuda() -> None:
    memory = psutil.virtual_memory
    stream = _Stream()
    replaced: dict[str, Any] = {
        "Event": _Event,
        "Stream": _Stream,
        "stream": lambda _: contextlib.nullcontext(),
        "current_stream": lambda *_, **__: stream,
        "default_stream": lambda *_, **__: stream,
        "synchronize": lambda *_, **__: None,
        "empty_cache": lambda: None,
        "current_device": lambda: 0,
        "set_device": lambda _: None,
        "mem_get_info": lambda *_: (memory().available, memory().total),
    }
    for name, value in replaced.items():
        setattr(torch.cuda, name, value)
    torch._C._cuda_clearCublasWorkspaces = lambda: None  # at the end of an engine
