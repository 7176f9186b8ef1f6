"""Starting and stopping vLLM servers: stock, stock with replayed lengths, or lengthwise.

Every server gets a session of its own, so that stopping it takes its engine and workers
along; run files of its own, so that several can run side by side; and a process that ends it when
its launcher is gone.
"""

from __future__ import annotations

import contextlib
import math
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Protocol

from lengthwise.scheduler.vllm_adapter.emulated.options import EmulateOptions
from lengthwise.scheduler.vllm_adapter.live import live_state
from lengthwise.scheduler.vllm_adapter.server import parent_watch
from lengthwise.scheduler.vllm_adapter.server.command import (
    default_cache,
    server_command,
    server_environment,
)
from lengthwise.scheduler.vllm_adapter.server.preflight import Address, address_of, hold_address
from lengthwise.scheduler.vllm_adapter.server.run_files import RunFiles, make_run_files
from lengthwise.scheduler.vllm_adapter.server.vllm_options import given_options
from lengthwise.scheduler.vllm_adapter.settings import ServerSettings

# From the first signal to the end of a server with nothing to finish; with --shutdown-timeout
# SECONDS one that serves has these besides.
STOP_GRACE_S = 10.0
ORPHAN_GRACE_S = 25.0  # of a server whose launcher is gone, whatever it has to finish
_HANDLE_GRACE_S = 20.0
_LIVE_FILE = "live.json"
_HEAL_PERIOD_S = 1.0
_LOG_TAIL_LINES = 25


class ServerStartError(RuntimeError):
    """A server that did not become ready; the message holds the end of its log."""


class ServerHandle:
    """A started server. A context manager: leaving it stops the server and everything it started.

    ``url`` is ready for requests after ``wait_ready``.
    """

    def __init__(
        self,
        process: subprocess.Popen[bytes],
        url: str,
        log_path: Path,
        files: RunFiles,
        watch: ParentWatch,
    ) -> None:
        self.process = process
        self.url = url
        self.log_path = log_path
        self.files = files
        self._watch = watch

    def __enter__(self) -> ServerHandle:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.terminate()

    @property
    def is_running(self) -> bool:
        """Whether the API process lives."""
        return self.process.poll() is None

    def wait_ready(self, timeout_s: float = 300.0) -> ServerHandle:
        """Wait for ``/health``; ServerStartError with the log's tail when it does not come."""
        deadline = time.monotonic() + timeout_s
        while time.monotonic() < deadline:
            if not self.is_running:
                code = self.process.returncode
                raise ServerStartError(f"vLLM ended with exit code {code}:\n{self.log_tail()}")
            if _is_healthy(self.url):
                return self
            time.sleep(0.25)
        raise ServerStartError(f"vLLM was not ready after {timeout_s:g} s:\n{self.log_tail()}")

    def log_tail(self, lines: int = _LOG_TAIL_LINES) -> str:
        """The last lines of the server's log."""
        if not self.log_path.is_file():
            return "(no log)"
        return "\n".join(self.log_path.read_text(errors="replace").splitlines()[-lines:])

    def terminate(self, grace_s: float = _HANDLE_GRACE_S) -> None:
        """Ask the server's first process to stop, kill all after ``grace_s``. Idempotent."""
        if self.is_running:
            self.process.terminate()
            try:
                self.process.wait(grace_s)
            except subprocess.TimeoutExpired:
                _kill_all(self.process)
                self.process.wait()
        # children may outlive the API process
        parent_watch.end_session(self.process.pid, parent_watch.LAST_WORDS_S)
        self._watch.done()
        self.files.remove()


class ParentWatch:
    """The process that ends a server when this one is gone; see ``parent_watch.py``."""

    def __init__(self, files: RunFiles, grace_s: float) -> None:
        script = str(Path(parent_watch.__file__).absolute())
        arguments = [str(os.getpid()), str(grace_s), str(files.folder)]
        self._process = subprocess.Popen(
            [sys.executable, "-I", "-S", script, *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )

    def over(self, server_pid: int) -> None:
        """The server it watches over."""
        self._say(str(server_pid))

    def done(self) -> None:
        """The server has ended, or was never started. Idempotent."""
        self._say(parent_watch.DONE)
        if self._process.stdin is not None:
            with contextlib.suppress(OSError):
                self._process.stdin.close()
        self._process.wait()

    def _say(self, word: str) -> None:
        if self._process.stdin is not None and not self._process.stdin.closed:
            with contextlib.suppress(OSError):  # it was killed: nobody watches any more
                self._process.stdin.write(f"{word}\n".encode())
                self._process.stdin.flush()


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
        process, watch = _start(command, environment, files, arguments, log)
    return ServerHandle(process, f"http://{host}:{port}", path, files, watch)


class LiveKeeper(Protocol):
    """Who keeps a server's live file: called every ``poll_s`` seconds, and on SIGHUP."""

    poll_s: float

    def keep(self, live_file: Path, reread: bool) -> None:
        """Rewrite the file if need be; ``reread``: somebody asks for everything anew."""
        ...


def serve_forever(
    model: str,
    settings: ServerSettings | None,
    vllm_args: Sequence[str] = (),
    *,
    cache_dir: Path | str | None = None,
    keeper: LiveKeeper | None = None,
    emulate: EmulateOptions | None = None,
) -> int:
    """Run a server in the foreground, output to the terminal; returns its exit code.

    Host and port are vLLM's own arguments (``--port 8000``). SIGINT and SIGTERM are forwarded;
    a second one kills, and so does the end of ``STOP_GRACE_S``, with ``--shutdown-timeout`` besides
    once the server takes requests. With a ``keeper`` the server follows a live file that is kept
    here. A server that ends unasked has failed: the code is then never 0 (vLLM returns 0 when its
    engine died), so that a supervisor starts it again.

    Raises InputError for an address that is taken, a model that is none and a full disk.
    """
    table = settings.replay_table if settings is not None else None
    address = address_of(vllm_args)
    with contextlib.ExitStack() as until_the_end:
        if address is not None:
            until_the_end.enter_context(hold_address(address))
        command = server_command(
            model,
            settings,
            vllm_args,
            replayed=table is not None,
            cache_dir=cache_dir,
            emulate=emulate,
        )
        home = Path(cache_dir) if cache_dir is not None else default_cache()
        files = make_run_files(home / "run", Path(tempfile.gettempdir()))
        until_the_end.callback(files.remove)
        if settings is not None and keeper is not None:
            live_file = files.write(_LIVE_FILE, live_state(settings).model_dump_json(indent=1))
            settings = settings.model_copy(update={"live_file": str(live_file)})
        environment = server_environment(model, settings, files, table, emulate, vllm_args)
        process, watch = _start(command, environment, files, vllm_args)
        handle = ServerHandle(process, "", files.path("none"), files, watch)
        return _until_it_ends(handle, address, _drain_s(vllm_args), keeper)


def _until_it_ends(
    handle: ServerHandle, address: Address | None, drain_s: float, keeper: LiveKeeper | None
) -> int:
    process = handle.process
    signals_seen = 0

    def stop() -> None:
        serving = address is None or address.listens()
        process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(STOP_GRACE_S + (drain_s if serving else 0.0))
            return
        print("lengthwise: vLLM has not stopped in time: killed", file=sys.stderr)
        _kill_all(process)

    def forward(number: int, frame: Any) -> None:
        nonlocal signals_seen
        signals_seen += 1
        if signals_seen == 1:
            threading.Thread(target=stop, name="stop", daemon=True).start()
        else:
            _kill_all(process)

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
        handle.terminate(STOP_GRACE_S)
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
                print(f"lengthwise: {files.path(name)} was missing: made again", file=sys.stderr)
            if keeper is not None and (reread or time.monotonic() >= next_s):
                next_s = time.monotonic() + poll_s
                keeper.keep(files.path(_LIVE_FILE), reread)
        except Exception as error:  # the server goes on with what it has
            print(f"live file not kept: {error!r}", file=sys.stderr)


def _start(
    command: Sequence[str],
    environment: Mapping[str, str],
    files: RunFiles,
    vllm_args: Sequence[str],
    log: IO[bytes] | None = None,
) -> tuple[subprocess.Popen[bytes], ParentWatch]:
    """Start the server, and what ends it when this process is gone."""
    watch = ParentWatch(files, min(ORPHAN_GRACE_S, STOP_GRACE_S + _drain_s(vllm_args)))
    try:
        process = subprocess.Popen(
            list(command),
            env=dict(environment),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=None if log is None else subprocess.STDOUT,
            start_new_session=True,
        )
    except BaseException:
        watch.done()
        raise
    watch.over(process.pid)
    return process, watch


def _drain_s(vllm_args: Sequence[str]) -> float:
    """How long vLLM may finish what is in flight once it is asked to stop."""
    given = given_options(vllm_args).get("--shutdown-timeout")
    try:
        return max(0.0, float(given or 0))
    except ValueError:
        return 0.0  # vLLM will refuse it


def _is_healthy(url: str) -> bool:
    try:
        with urllib.request.urlopen(f"{url}/health", timeout=5) as response:
            return bool(response.status == 200)
    except (urllib.error.URLError, OSError):
        return False


def _kill_all(process: subprocess.Popen[bytes]) -> None:
    parent_watch.end_session(process.pid, 0.0)
