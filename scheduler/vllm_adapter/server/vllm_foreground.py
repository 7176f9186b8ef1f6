"""``lengthwise serve`` on vLLM: a server in the foreground."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from lengthwise.scheduler.serving.live import LiveKeeper
from lengthwise.scheduler.serving.server.foreground import run_in_foreground
from lengthwise.scheduler.serving.server.preflight import address_of
from lengthwise.scheduler.serving.server.server_process import STOP_GRACE_S
from lengthwise.scheduler.serving.settings import ServerSettings
from lengthwise.scheduler.vllm_adapter.emulated.options import EmulateOptions
from lengthwise.scheduler.vllm_adapter.server.command import (
    default_cache,
    drain_s,
    server_command,
    server_environment,
)


def serve_forever(
    model: str,
    settings: ServerSettings | None,
    vllm_args: Sequence[str] = (),
    *,
    cache_dir: Path | str | None = None,
    keeper: LiveKeeper | None = None,
    emulate: EmulateOptions | None = None,
    stop_grace_s: float = STOP_GRACE_S,
) -> int:
    """Serve until told to stop; see ``run_in_foreground``.

    Host and port are vLLM's own arguments (``--port 8000``), and so is ``--shutdown-timeout``, in
    which it may finish what is in flight. Raises InputError for a model that is none, too.
    """
    table = settings.replay_table if settings is not None else None
    return run_in_foreground(
        lambda: server_command(
            model,
            settings,
            vllm_args,
            replayed=table is not None,
            cache_dir=cache_dir,
            emulate=emulate,
        ),
        lambda final, files: server_environment(model, final, files, table, emulate, vllm_args),
        settings,
        address_of(vllm_args),
        Path(cache_dir) if cache_dir is not None else default_cache(),
        keeper=keeper,
        stop_grace_s=stop_grace_s,
        finish_s=drain_s(vllm_args),
    )
