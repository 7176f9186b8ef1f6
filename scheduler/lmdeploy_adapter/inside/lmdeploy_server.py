"""LMDeploy's own API server, started with what an order at its pool needs.

Its routes, sessions, engine process and scheduler are its own. Put in: a middleware, the pool
where an order is asked for, and on a CPU the device. Without the device it is the launcher for a
GPU, with either of LMDeploy's engines.
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from lmdeploy.messages import PytorchEngineConfig, TurbomindEngineConfig
from lmdeploy.serve.core import AsyncEngine
from lmdeploy.serve.managers.session_manager import SessionManager
from lmdeploy.serve.openai import api_server

from lengthwise.data.errors import InputError
from lengthwise.scheduler.lmdeploy_adapter.inside import cpu_device
from lengthwise.scheduler.lmdeploy_adapter.inside.cpu_engine_process import run_cpu_engine
from lengthwise.scheduler.lmdeploy_adapter.inside.live_pool import LivePool
from lengthwise.scheduler.lmdeploy_adapter.pool_middleware import HINTS, PoolMiddleware

PROMPT_TOKENS: ContextVar[int] = ContextVar("lengthwise_prompt_tokens")


@dataclass(frozen=True, slots=True)
class ServeOptions:
    """What is served and how: ``planned`` puts our order at the pool.

    ``device`` is ``cpu`` (ours) or ``gpu``; ``backend`` is LMDeploy's ``pytorch`` or ``turbomind``.
    ``kv_tokens`` 0 leaves the cache's size to LMDeploy.
    """

    model: str
    port: int
    planned: bool
    slots: int = 32
    kv_tokens: int = 65536
    prefill_tokens: int = 2048
    session_tokens: int = 32768
    device: str = "cpu"
    backend: str = "pytorch"
    host: str = "127.0.0.1"

    def __post_init__(self) -> None:
        known = {"device": ("cpu", "gpu"), "backend": ("pytorch", "turbomind")}
        for name, choices in known.items():
            if getattr(self, name) not in choices:
                raise InputError(
                    f"{name} must be one of {', '.join(choices)}, got {getattr(self, name)!r}"
                )
        if self.device == "cpu" and self.backend == "turbomind":
            raise InputError("TurboMind has no CPU engine: --backend pytorch, or a GPU")


def serve(options: ServeOptions) -> None:
    """Serve until told to stop."""
    pools: list[LivePool] = []
    if options.planned:

        def build(self: Any, engine: Any, size: int) -> None:
            pools.append(LivePool(engine, size, options.kv_tokens, options.prefill_tokens, ask))
            self.request_handle_pool = pools[-1]

        SessionManager.build_request_handle_pool = build
        _tell_prompt_tokens()

    def ask() -> tuple[dict[str, Any], int]:
        return HINTS.get({}), PROMPT_TOKENS.get(1)

    def configure(document: dict[str, Any]) -> dict[str, Any]:
        if not pools:
            raise ValueError("this server keeps LMDeploy's own order")
        return pools[-1].configure(document)

    def status() -> dict[str, Any]:
        return pools[-1].status() if pools else {"policy": None}

    run = api_server.uvicorn.run

    def run_behind(app: Any, **settings: Any) -> None:
        run(app=PoolMiddleware(app, configure, status), **settings)

    api_server.uvicorn = SimpleNamespace(run=run_behind)
    if options.device == "cpu":
        from lmdeploy.pytorch.engine.mp_engine.zmq_engine import ZMQMPEngine

        cpu_device.write_random_weights(Path(options.model))
        ZMQMPEngine._mp_proc = staticmethod(run_cpu_engine)
    api_server.serve(
        options.model,
        model_name="served",
        backend=options.backend,
        backend_config=_settings(options),
        server_name=options.host,
        server_port=options.port,
        generation_config="lmdeploy",
        log_level="ERROR",
    )


def _settings(options: ServeOptions) -> Any:
    sizes = {
        "max_batch_size": options.slots,
        "max_prefill_token_num": options.prefill_tokens,
        "session_len": options.session_tokens,
    }
    if options.backend == "turbomind":
        return TurbomindEngineConfig(**sizes)
    blocks = options.kv_tokens // 64 + 1 if options.kv_tokens else 0
    cpu = options.device == "cpu"
    return PytorchEngineConfig(num_gpu_blocks=blocks, eager_mode=cpu, **sizes)


def _tell_prompt_tokens() -> None:
    """The tokens of a prompt are known before its task asks for a handle, which is not told."""
    generate = AsyncEngine.generate

    async def generate_told(
        self: Any, request: Any, stream_response: bool = True
    ) -> AsyncIterator[Any]:
        PROMPT_TOKENS.set(int(request.input_token_len))
        async with contextlib.aclosing(generate(self, request, stream_response)) as answers:
            async for answer in answers:
                yield answer

    AsyncEngine.generate = generate_told
