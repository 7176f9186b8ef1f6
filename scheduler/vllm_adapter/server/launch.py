"""Starting and stopping vLLM servers: stock, stock with replayed lengths, or lengthwise.

Every server gets a process group of its own, so that stopping it takes its engine and workers
along, and a fresh metrics directory, so that several can run side by side.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol

from lengthwise.data.errors import InputError
from lengthwise.data.slo import SloTable
from lengthwise.scheduler.policies.make import make_policy
from lengthwise.scheduler.profile import load_profile
from lengthwise.scheduler.vllm_adapter.emulated.options import (
    EMULATE_VARIABLE,
    EmulateOptions,
    server_args,
)
from lengthwise.scheduler.vllm_adapter.live import live_state, write_live
from lengthwise.scheduler.vllm_adapter.priors import load_priors
from lengthwise.scheduler.vllm_adapter.server.tiny import TINY_NAME, build_tiny_model
from lengthwise.scheduler.vllm_adapter.settings import (
    REPLAY_VARIABLE,
    SETTINGS_VARIABLE,
    ServerSettings,
)
from lengthwise.scheduler.vllm_adapter.supported import check_supported

SCHEDULER_CLASS = "lengthwise.Scheduler"
MIDDLEWARE_CLASS = "lengthwise.Middleware"
LOGITS_PROCESSOR = "lengthwise.scheduler.vllm_adapter.worker.replay:ForcedLength"

_CPU_KVCACHE_GIB = "1"
_STOP_GRACE_S = 20.0
_LOG_TAIL_LINES = 25


class ServerStartError(RuntimeError):
    """A server that did not become ready; the message holds the end of its log."""


class ServerHandle:
    """A started server. A context manager: leaving it stops the server and everything it started.

    ``url`` is ready for requests after ``wait_ready``.
    """

    def __init__(
        self, process: subprocess.Popen[bytes], url: str, log_path: Path, scratch: Path
    ) -> None:
        self.process = process
        self.url = url
        self.log_path = log_path
        self._scratch = scratch

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

    def terminate(self, grace_s: float = _STOP_GRACE_S) -> None:
        """Stop the whole process group: ask first, force after ``grace_s``. Idempotent."""
        if self.is_running:
            _signal_group(self.process, signal.SIGTERM)
            try:
                self.process.wait(grace_s)
            except subprocess.TimeoutExpired:
                _signal_group(self.process, signal.SIGKILL)
                self.process.wait()
        _signal_group(self.process, signal.SIGKILL)  # children may outlive the API process
        shutil.rmtree(self._scratch, ignore_errors=True)


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
    scratch = Path(tempfile.mkdtemp(prefix="lengthwise-server-"))
    path = Path(log_path)
    path.parent.mkdir(parents=True, exist_ok=True)
    command = server_command(
        model,
        settings,
        ["--host", host, "--port", str(port), *vllm_args],
        replayed=replay_table is not None,
        cache_dir=cache_dir,
        emulate=emulate,
    )
    environment = server_environment(model, settings, scratch, replay_table, emulate)
    environment |= dict(env or {})
    with path.open("ab") as log:
        process = subprocess.Popen(
            command,
            env=environment,
            stdout=log,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            start_new_session=True,
        )
    return ServerHandle(process, f"http://{host}:{port}", path, scratch)


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
    a second one kills. With a ``keeper`` the server follows a live file that is kept here. A
    server that ends unasked has failed: the code is then never 0 (vLLM returns 0 when its engine
    died), so that a supervisor starts it again.
    """
    scratch = Path(tempfile.mkdtemp(prefix="lengthwise-server-"))
    live_file = scratch / "live.json"
    if settings is not None and keeper is not None:
        write_live(live_file, live_state(settings))
        settings = settings.model_copy(update={"live_file": str(live_file)})
    table = settings.replay_table if settings is not None else None
    command = server_command(
        model,
        settings,
        vllm_args,
        replayed=table is not None,
        cache_dir=cache_dir,
        emulate=emulate,
    )
    environment = server_environment(model, settings, scratch, table, emulate)
    process = subprocess.Popen(command, env=environment, start_new_session=True)
    handle = ServerHandle(process, "", scratch / "none", scratch)
    signals_seen = 0

    def forward(number: int, frame: Any) -> None:
        nonlocal signals_seen
        signals_seen += 1
        _signal_group(process, signal.SIGTERM if signals_seen == 1 else signal.SIGKILL)

    wake, ended = threading.Event(), threading.Event()
    handlers: dict[int, Any] = {signal.SIGINT: forward, signal.SIGTERM: forward}
    if keeper is not None:
        handlers[signal.SIGHUP] = lambda number, frame: wake.set()
    previous = {number: signal.signal(number, handler) for number, handler in handlers.items()}
    if keeper is not None:
        threading.Thread(
            target=_keep, args=(keeper, live_file, wake, ended), name="live-file", daemon=True
        ).start()
    try:
        code = process.wait()
    finally:
        ended.set()
        wake.set()
        for number, handler in previous.items():
            signal.signal(number, handler)
        handle.terminate()
    return 0 if signals_seen else code or 1


def _keep(
    keeper: LiveKeeper, live_file: Path, wake: threading.Event, ended: threading.Event
) -> None:
    while True:
        reread = wake.wait(keeper.poll_s)
        wake.clear()
        if ended.is_set():
            return
        try:
            keeper.keep(live_file, reread)
        except Exception as error:  # the server goes on with what it has
            print(f"live file not kept: {error!r}", file=sys.stderr)


def server_command(
    model: str,
    settings: ServerSettings | None,
    vllm_args: Sequence[str] = (),
    *,
    replayed: bool = False,
    cache_dir: Path | str | None = None,
    emulate: EmulateOptions | None = None,
) -> list[str]:
    """The command line, for either distribution; ``settings`` None is stock vLLM."""
    name, extra = model, list(vllm_args)
    if emulate is not None:
        extra = [*_without_given(server_args(emulate), extra), *extra]
    if model.startswith(("/", "./", "../", "~")) and not Path(model).expanduser().exists():
        raise InputError(f"model {model!r}: there is no such directory")
    if model == TINY_NAME:
        name = str(build_tiny_model(Path(cache_dir or _default_cache()) / TINY_NAME))
        extra = [*_without_given(_TINY_ARGS, extra), *extra]
    command = _entry_point(name)
    if settings is not None:
        check_startable(settings)
        command += ["--scheduler-cls", SCHEDULER_CLASS, "--middleware", MIDDLEWARE_CLASS]
    if replayed and emulate is None:  # an emulated device reads the table itself
        command += ["--logits-processors", LOGITS_PROCESSOR]
    return command + extra


def check_startable(settings: ServerSettings) -> None:
    """Find out in a second what a server would only find out after loading its model.

    Raises InputError (or the scheduler core's ValueError) for a vLLM outside the supported range,
    a malformed SLO table, a predictor directory without a card, an unknown profile or an unknown
    policy.
    """
    check_supported()
    SloTable.from_dict(settings.slo_table)
    load_priors(settings.predictor_dir)
    if settings.profile is not None:
        load_profile(settings.profile)
    make_policy(settings.policy, **settings.policy_params)


def server_environment(
    model: str,
    settings: ServerSettings | None,
    scratch: Path,
    replay_table: Path | str | None = None,
    emulate: EmulateOptions | None = None,
) -> dict[str, str]:
    """The environment of a server, its settings file and metrics directory made in ``scratch``.

    What the caller's environment sets already wins, except for those files.
    """
    environment = dict(os.environ)
    metrics_dir = scratch / "metrics"
    metrics_dir.mkdir(parents=True, exist_ok=True)
    environment["PROMETHEUS_MULTIPROC_DIR"] = str(metrics_dir)
    if settings is not None:
        environment[SETTINGS_VARIABLE] = str(settings.write(scratch / "settings.json"))
    if replay_table is not None:
        environment[REPLAY_VARIABLE] = str(Path(replay_table).absolute())
    if emulate is not None:
        environment[EMULATE_VARIABLE] = str(emulate.write(scratch / "emulate.json"))
    defaults = {
        "PYTHONHASHSEED": "0",
        "VLLM_CPU_KVCACHE_SPACE": _CPU_KVCACHE_GIB,
        "VLLM_NO_USAGE_STATS": "1",
    }
    if model == TINY_NAME or Path(model).is_dir():
        defaults["HF_HUB_OFFLINE"] = "1"
    return defaults | environment


_TINY_ARGS: tuple[tuple[str, str | None], ...] = (
    ("--load-format", "dummy"),
    ("--dtype", "float32"),
    ("--served-model-name", TINY_NAME),
    ("--max-num-seqs", "32"),
)


def _default_cache() -> Path:
    return Path(os.environ.get("LENGTHWISE_HOME") or Path.cwd()).absolute() / ".lengthwise"


def _entry_point(model: str) -> list[str]:
    """``vllm serve`` where the ``vllm`` distribution is installed; under ``vllm-cpu`` its command
    line does not start, the server module does."""
    try:
        metadata.version("vllm")
    except metadata.PackageNotFoundError:
        return [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", model]
    return [sys.executable, "-m", "vllm.entrypoints.cli.main", "serve", model]


def _without_given(defaults: Sequence[tuple[str, str | None]], given: Sequence[str]) -> list[str]:
    named = {arg.split("=")[0] for arg in given}
    kept = (pair for pair in defaults if pair[0] not in named)
    return [part for pair in kept for part in pair if part is not None]


def _is_healthy(url: str) -> bool:
    try:
        with urllib.request.urlopen(f"{url}/health", timeout=5) as response:
            return bool(response.status == 200)
    except (urllib.error.URLError, OSError):
        return False


def _signal_group(process: subprocess.Popen[bytes], number: int) -> None:
    try:
        os.killpg(process.pid, number)
    except ProcessLookupError:
        return  # the whole group is gone
