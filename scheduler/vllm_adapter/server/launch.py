"""Starting a vLLM server in the background: stock, stock with replayed lengths, or lengthwise.

Every server has run files of its own, so that several can run side by side.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from lengthwise.scheduler.serving.server.run_files import make_run_files
from lengthwise.scheduler.serving.server.server_handle import ServerHandle
from lengthwise.scheduler.serving.server.server_process import STOP_GRACE_S, start_server
from lengthwise.scheduler.serving.settings import ServerSettings
from lengthwise.scheduler.vllm_adapter.emulated.options import EmulateOptions
from lengthwise.scheduler.vllm_adapter.server.command import (
    drain_s,
    server_command,
    server_environment,
)


def launch_server(
    model: str,
    settings: ServerSettings | None,
    port: int,
    vllm_args: Sequence[str] = (),
    *,
    log_path: Path | str,
    replay_table: Path | str | None = None,
    cache_dir: Path | str | None = None,
    env: Mapping[str, str] | None = None,
    host: str = "127.0.0.1",
    emulate: EmulateOptions | None = None,
) -> ServerHandle:
    """Start a server in the background and return at once; see ``ServerHandle.wait_ready``.

    ``settings`` None means stock vLLM: no scheduler class, no middleware. ``replay_table`` forces
    lengths in either form (for lengthwise it defaults to the settings' own). ``model`` ``"tiny"``
    is built under ``cache_dir`` at first use. ``vllm_args`` are passed through and win.
    ``emulate`` puts the engine on a device that takes a profile's time and computes nothing.
    """
    if replay_table is None and settings is not None:
        replay_table = settings.replay_table
    path = Path(log_path)
    path.parent.mkdir(parents=True, exist_ok=True)
    arguments = ["--host", host, "--port", str(port), *vllm_args]
    command = server_command(
        model,
        settings,
        arguments,
        replayed=replay_table is not None,
        cache_dir=cache_dir,
        emulate=emulate,
    )
    files = make_run_files(Path(tempfile.gettempdir()))
    environment = server_environment(model, settings, files, replay_table, emulate, arguments)
    environment |= dict(env or {})
    with path.open("ab") as log:
        process, watch = start_server(
            command, environment, files, log, orphan_s=STOP_GRACE_S + drain_s(arguments)
        )
    return ServerHandle(process, f"http://{host}:{port}", path, files, watch)
