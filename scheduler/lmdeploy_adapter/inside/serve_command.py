"""LMDeploy's own server command, with our middleware before its routes and our order at its pool.

Its command line, routes, sessions, engines and schedulers are its own. In the engine's process
nothing of ours runs, but for the CPU device where that is asked for.
"""

from __future__ import annotations

import logging
import multiprocessing
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from lmdeploy.cli.entrypoint import run as run_command
from lmdeploy.serve.managers.session_manager import SessionManager
from lmdeploy.serve.openai import api_server

from lengthwise.scheduler.lmdeploy_adapter.forced_lengths import ForcedLengths
from lengthwise.scheduler.lmdeploy_adapter.inside import cpu_device
from lengthwise.scheduler.lmdeploy_adapter.inside.cpu_engine_process import run_cpu_engine
from lengthwise.scheduler.lmdeploy_adapter.inside.served_pool import (
    ServedPool,
    come_before_generate,
    force_lengths,
)
from lengthwise.scheduler.lmdeploy_adapter.lmdeploy_foreground import FORCED_VARIABLE
from lengthwise.scheduler.lmdeploy_adapter.lmdeploy_middleware import LmdeployMiddleware
from lengthwise.scheduler.lmdeploy_adapter.pool_client import PoolClient
from lengthwise.scheduler.lmdeploy_adapter.pool_engine import BLOCK_TOKENS, PoolEngine
from lengthwise.scheduler.problem import Capacity
from lengthwise.scheduler.serving.engine.engine_metrics import engine_metrics
from lengthwise.scheduler.serving.installed import installed_version
from lengthwise.scheduler.serving.settings import (
    LOGGER_NAME,
    ServerSettings,
    settings_from_environment,
)

TRIES_VARIABLE = "LENGTHWISE_LMDEPLOY_TRIES"
MOST_TRIES = 3  # its API process closes a manager that its engine process may still be using

logger = logging.getLogger(LOGGER_NAME)


def serve_command(model: str, arguments: Sequence[str], device: str, *, planned: bool) -> None:
    """``lmdeploy serve api_server MODEL`` with these arguments, until told to stop.

    ``device`` ``cpu`` is ours; any other is LMDeploy's to have. ``planned`` puts our middleware and
    our order in, with settings from the environment; without, all is LMDeploy's own.
    """
    lines = logging.StreamHandler()
    lines.setFormatter(logging.Formatter("%(levelname)s %(asctime)s lengthwise: %(message)s"))
    logger.addHandler(lines)
    logger.setLevel(logging.INFO)
    logger.propagate = False
    forces = bool(os.environ.get(FORCED_VARIABLE))
    if forces:
        force_lengths()
    settings = settings_from_environment()
    clients: list[PoolClient] = []
    if planned:
        _plan_at_pool(settings, clients)
    if device == "cpu":
        _compute_here(Path(model))
    serving = False
    run = api_server.uvicorn.run

    def run_behind(app: Any, **options: Any) -> None:
        nonlocal serving
        serving = True
        if planned:
            stand_before(app, settings, clients[0])
        if forces:
            app.add_middleware(ForcedLengths)
        run(app=app, **options)

    api_server.uvicorn = SimpleNamespace(run=run_behind)
    sys.argv = ["lmdeploy", "serve", "api_server", model, *arguments]
    try:
        run_command()
    except Exception as error:
        if serving:
            raise
        _start_again(error)
    finally:
        for client in clients:
            client.engine.close()


def stand_before(app: Any, settings: ServerSettings, client: PoolClient) -> None:
    """Put the middleware into LMDeploy's application, and the engine where it is asked for."""
    app.state.engine_client = client
    guards = [layer.kwargs.get("tokens") for layer in app.user_middleware]
    app.state.args = SimpleNamespace(api_key=next((keys for keys in guards if keys), None))
    app.add_middleware(LmdeployMiddleware, settings=settings)


def _plan_at_pool(settings: ServerSettings, clients: list[PoolClient]) -> None:
    def build(self: Any, engine: Any, size: int) -> None:
        if isinstance(self.request_handle_pool, ServedPool):  # it slept: who waits, waits on
            self.request_handle_pool.renew(engine)
            return
        clients.append(PoolClient(_pool_engine(settings, engine.engine_config, size)))
        self.request_handle_pool = ServedPool(engine, size, clients[-1].engine)

    SessionManager.build_request_handle_pool = build
    come_before_generate(lambda: clients[0])


def _pool_engine(settings: ServerSettings, config: Any, size: int) -> PoolEngine:
    """``config`` is LMDeploy's engine configuration, sizes as the engine has them."""
    longest = int(config.session_len)
    blocks = int(getattr(config, "num_gpu_blocks", 0) or 0)
    block_tokens = int(getattr(config, "block_size", 0) or BLOCK_TOKENS)
    # TurboMind does not say; what all slots can hold binds nobody
    kv_tokens = (blocks - 1) * block_tokens if blocks > 1 else longest * size
    prefill_tokens = int(config.max_prefill_token_num)
    return PoolEngine(
        settings,
        Capacity(size, kv_tokens, prefill_tokens),
        engine_metrics("lmdeploy"),
        max_model_len=longest,
        versions={name: installed_version(name) for name in ("lengthwise", "lmdeploy")},
    )


def _compute_here(model: Path) -> None:
    from lmdeploy.pytorch.engine.mp_engine.zmq_engine import ZMQMPEngine

    if not list(model.glob("*.safetensors")):
        cpu_device.write_random_weights(model)
    ZMQMPEngine._mp_proc = staticmethod(run_cpu_engine)


def _start_again(error: Exception) -> None:
    """Once more from the beginning, a few times; then the error."""
    tried = int(os.environ.get(TRIES_VARIABLE, "1"))
    if tried >= MOST_TRIES:
        raise error
    logger.warning("LMDeploy did not start (%r): once more", error)
    for child in multiprocessing.active_children():
        child.kill()
    os.environ[TRIES_VARIABLE] = str(tried + 1)
    os.execv(sys.executable, sys.orig_argv)
