"""``lengthwise serve --engine lmdeploy``: a server in the foreground, in LMDeploy's environment."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from lengthwise.data.errors import InputError
from lengthwise.scheduler.lmdeploy_adapter.lmdeploy_environment import (
    child_variables,
    server_line,
)
from lengthwise.scheduler.serving.live import LiveKeeper
from lengthwise.scheduler.serving.server.command_options import given_options, without_given
from lengthwise.scheduler.serving.server.foreground import run_in_foreground
from lengthwise.scheduler.serving.server.preflight import Address, port_of
from lengthwise.scheduler.serving.server.run_files import RunFiles
from lengthwise.scheduler.serving.server.server_process import STOP_GRACE_S
from lengthwise.scheduler.serving.settings import SETTINGS_VARIABLE, ServerSettings

DEFAULT_PORT = 23333  # LMDeploy's own
CPU = "cpu"
FORCED_VARIABLE = "LENGTHWISE_LMDEPLOY_FORCED"  # set for servers of a comparison
BACKENDS = ("pytorch", "turbomind")
# vLLM's names, out of habit, for what LMDeploy calls otherwise
_VLLMS = {
    "--port": "--server-port",
    "--host": "--server-name",
    "--served-model-name": "--model-name",
    "--max-num-seqs": "--max-batch-size",
    "--max-num-batched-tokens": "--max-prefill-token-num",
    "--max-model-len": "--session-len",
    "--tensor-parallel-size": "--tp",
    "--api-key": "--api-keys",
}
SHUTDOWN = "--shutdown-timeout"  # ours here, and vLLM's
# What LMDeploy would otherwise ask a GPU.
_ON_CPU: tuple[tuple[str, str | None], ...] = (
    ("--backend", "pytorch"),
    ("--eager-mode", None),
    ("--max-batch-size", "32"),
    ("--num-gpu-blocks", "1025"),
    ("--max-prefill-token-num", "2048"),
    ("--session-len", "32768"),
)


def lmdeploy_address(arguments: Sequence[str]) -> Address:
    """Where a server with these options will listen; InputError for a port that is none."""
    given = given_options(arguments)
    host = given.get("--server-name") or "0.0.0.0"
    port = port_of("--server-port", given, DEFAULT_PORT)
    return Address(host, port, "--server-port and --server-name")


def serve_lmdeploy(
    python: Path,
    model: str,
    settings: ServerSettings,
    arguments: Sequence[str] = (),
    *,
    cache_dir: Path,
    keeper: LiveKeeper | None = None,
    on_cpu: bool = False,
    stop_grace_s: float = STOP_GRACE_S,
) -> int:
    """Serve until told to stop; returns the exit code, see ``run_in_foreground``.

    ``arguments`` are LMDeploy's own (``--server-port 8000``), of which ``--device cpu``, or
    ``on_cpu``, is ours: a CPU device for its PyTorch engine. So is ``--shutdown-timeout``: how long
    what is in flight may take to its end.

    Raises InputError for an address that is taken, a full disk, and what the CPU cannot do.
    """
    finish_s = _seconds(SHUTDOWN, given_options(arguments).get(SHUTDOWN))
    device, rest = device_of(_without(SHUTDOWN, arguments), on_cpu)

    def environment(final: ServerSettings | None, files: RunFiles) -> Mapping[str, str]:
        text = (final or settings).model_dump_json(indent=1)
        own = {SETTINGS_VARIABLE: str(files.write("settings.json", text))}
        return server_variables(model, device) | own

    return run_in_foreground(
        lambda: server_line(python, cache_dir, "serve", device, model, *rest),
        environment,
        settings,
        lmdeploy_address(arguments),
        cache_dir,
        keeper=keeper,
        stop_grace_s=stop_grace_s,
        finish_s=finish_s,
    )


def server_variables(model: str, device: str) -> dict[str, str]:
    """A server's environment; the hub is asked for nothing where the model is on this disk."""
    variables = child_variables(os.environ) if device == CPU else dict(os.environ)
    if Path(model).exists():
        variables.setdefault("HF_HUB_OFFLINE", "1")
    return variables


def device_of(arguments: Sequence[str], on_cpu: bool) -> tuple[str, list[str]]:
    """The device, and the arguments as LMDeploy takes them, which knows nothing of ``cpu``.

    Raises InputError for a backend that there is not, or not on a CPU.
    """
    given = given_options(arguments)
    for name, theirs in _VLLMS.items():
        if name in given:
            raise InputError(f"{name} is vLLM's, LMDeploy's is {theirs}")
    backend = given.get("--backend")
    if backend is not None and backend not in BACKENDS:
        raise InputError(f"--backend must be one of {', '.join(BACKENDS)}, got {backend!r}")
    if not on_cpu and given.get("--device") != CPU:
        return given.get("--device") or "gpu", list(arguments)
    if backend == "turbomind":
        raise InputError("TurboMind has no CPU engine: --backend pytorch, or a GPU")
    kept = _without("--device", arguments)
    return CPU, [*without_given(_ON_CPU, kept), *kept]


def _without(option: str, arguments: Sequence[str]) -> list[str]:
    kept, words = [], iter(arguments)
    for word in words:
        if word == option:
            next(words, None)
        elif not word.startswith(f"{option}="):
            kept.append(word)
    return kept


def _seconds(option: str, said: str | None) -> float:
    """A number of seconds; InputError for anything else."""
    try:
        seconds = float(said or 0.0)
    except ValueError:
        seconds = -1.0
    if not 0.0 <= seconds < float("inf"):
        raise InputError(f"{option} must be a number of seconds, got {said!r}")
    return seconds
