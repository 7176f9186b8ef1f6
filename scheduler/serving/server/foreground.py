"""A server in the foreground, its signals, run files and live file kept."""

from __future__ import annotations

import contextlib
import math
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from lengthwise.scheduler.serving.live import LiveKeeper, live_state
from lengthwise.scheduler.serving.quick_exit import end_quickly
from lengthwise.scheduler.serving.server.preflight import Address, hold_address
from lengthwise.scheduler.serving.server.run_files import RunFiles, make_run_files
from lengthwise.scheduler.serving.server.server_handle import ServerHandle
from lengthwise.scheduler.serving.server.server_process import (
    STOP_GRACE_S,
    kill_all,
    start_server,
)
from lengthwise.scheduler.serving.settings import ServerSettings

_LIVE_FILE = "live.json"
_HEAL_PERIOD_S = 1.0


def run_in_foreground(
    command: Callable[[], Sequence[str]],
    environment: Callable[[ServerSettings | None, RunFiles], Mapping[str, str]],
    settings: ServerSettings | None,
    address: Address | None,
    home: Path,
    *,
    keeper: LiveKeeper | None = None,
    stop_grace_s: float = STOP_GRACE_S,
    finish_s: float = 0.0,
) -> int:
    """Run a server, output to the terminal, until it ends; returns its exit code.

    SIGINT and SIGTERM are forwarded; a second one kills, and so does the end of ``stop_grace_s``,
    with ``finish_s`` besides once the server takes requests. With a ``keeper`` the server follows a
    live file that is kept here. A server that ends unasked has failed: the code is then never 0
    (vLLM returns 0 when its engine died), so that a supervisor starts it again.

    Raises InputError for an address that is taken, a full disk, and whatever ``command`` refuses.
    """
    end_quickly()
    with contextlib.ExitStack() as until_the_end:
        if address is not None:
            until_the_end.enter_context(hold_address(address))
        line = command()
        files = make_run_files(home / "run", Path(tempfile.gettempdir()))
        until_the_end.callback(files.remove)
        if settings is not None and keeper is not None:
            live_file = files.write(_LIVE_FILE, live_state(settings).model_dump_json(indent=1))
            settings = settings.model_copy(update={"live_file": str(live_file)})
        process, watch = start_server(
            line, environment(settings, files), files, orphan_s=stop_grace_s + finish_s
        )
        handle = ServerHandle(process, "", files.path("none"), files, watch)
        return _until_it_ends(handle, address, stop_grace_s, finish_s, keeper)


def _until_it_ends(
    handle: ServerHandle,
    address: Address | None,
    stop_grace_s: float,
    finish_s: float,
    keeper: LiveKeeper | None,
) -> int:
    process = handle.process
    signals_seen = 0

    def stop() -> None:
        serving = address is None or address.listens()
        process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(stop_grace_s + (finish_s if serving else 0.0))
            return
        _say("lengthwise: the server has not stopped in time: killed")
        kill_all(process)

    def forward(number: int, frame: Any) -> None:
        nonlocal signals_seen
        signals_seen += 1
        if signals_seen == 1:
            threading.Thread(target=stop, name="stop", daemon=True).start()
        else:
            kill_all(process)

    wake, ended = threading.Event(), threading.Event()
    handlers: dict[int, Any] = {signal.SIGINT: forward, signal.SIGTERM: forward}
    if keeper is not None:
        handlers[signal.SIGHUP] = lambda number, frame: wake.set()
    previous = {number: signal.signal(number, handler) for number, handler in handlers.items()}
    threading.Thread(
        target=_keep, args=(handle.files, keeper, wake, ended), name="run-files", daemon=True
    ).start()
    try:
        code = process.wait()
    finally:
        ended.set()
        wake.set()
        for number, handler in previous.items():
            signal.signal(number, handler)
        handle.terminate(stop_grace_s)
    return 0 if signals_seen else code or 1


def _keep(
    files: RunFiles,
    keeper: LiveKeeper | None,
    wake: threading.Event,
    ended: threading.Event,
) -> None:
    """Make run files again that went missing, and have the live file kept."""
    poll_s = math.inf if keeper is None else keeper.poll_s
    next_s = time.monotonic() + poll_s
    while True:
        reread = wake.wait(max(0.0, min(_HEAL_PERIOD_S, next_s - time.monotonic())))
        wake.clear()
        if ended.is_set():
            return
        try:
            for name in files.heal():
                _say(f"lengthwise: {files.path(name)} was missing: made again")
            if keeper is not None and (reread or time.monotonic() >= next_s):
                next_s = time.monotonic() + poll_s
                keeper.keep(files.path(_LIVE_FILE), reread)
        except Exception as error:  # the server goes on with what it has
            _say(f"live file not kept: {error!r}")


def _say(line: str) -> None:
    """A line on stderr; lost where its reader is gone, as nothing else may fail for that."""
    with contextlib.suppress(OSError, ValueError):
        print(line, file=sys.stderr, flush=True)
