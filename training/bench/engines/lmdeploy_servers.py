"""LMDeploy's servers of a comparison, and how they are asked."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from lengthwise.data.arena.whole_prompts import whole_prompt
from lengthwise.data.errors import InputError
from lengthwise.data.workload import WorkloadRequest
from lengthwise.scheduler.lmdeploy_adapter.inside.cpu_engine_process import STEPS_VARIABLE
from lengthwise.scheduler.lmdeploy_adapter.lmdeploy_environment import server_line
from lengthwise.scheduler.lmdeploy_adapter.lmdeploy_foreground import (
    FORCED_VARIABLE,
    device_of,
    server_variables,
)
from lengthwise.scheduler.problem import Capacity
from lengthwise.scheduler.serving.settings import SETTINGS_VARIABLE, ServerSettings
from lengthwise.training.bench.engines.client import BenchError, Call
from lengthwise.training.bench.engines.servers import free_port

START_S = 600.0  # it starts itself again, if need be
GRACE_S = 15.0
SERVED = "served"
BLOCK_TOKENS = 64


@dataclass(frozen=True, slots=True)
class LmdeployServers:
    """Two running servers, loaded in turn and never at once."""

    ours: str
    stock: str


@contextlib.contextmanager
def lmdeploy_server(
    python: Path,
    model: Path,
    directory: Path,
    capacity: Capacity,
    settings: ServerSettings | None,
    step_log: Path | None = None,
) -> Iterator[str]:
    """A server's address once it answers; it is stopped at the end.

    Args:
        python: the interpreter of LMDeploy's environment.
        model: a folder with a model's configuration and tokenizer.
        directory: for its log.
        capacity: its slots, KV memory and the prompt tokens of a step.
        settings: ours; None is LMDeploy's own order.
        step_log: a file for its timed steps.

    Raises:
        BenchError: it did not start.
    """
    directory.mkdir(parents=True, exist_ok=True)
    kind = "stock" if settings is None else "ours"
    port = free_port()
    sizes = {
        "--max-batch-size": capacity.max_num_seqs,
        "--num-gpu-blocks": capacity.kv_tokens // BLOCK_TOKENS + 1,
        "--max-prefill-token-num": capacity.max_num_batched_tokens,
        "--server-port": port,
    }
    words = [word for option, value in sizes.items() for word in (option, str(value))]
    words += ["--server-name", "127.0.0.1", "--model-name", SERVED]
    words += ["--generation-config", "lmdeploy"]
    device, arguments = device_of(words, on_cpu=True)
    variables = server_variables(str(model), device) | {FORCED_VARIABLE: "1"}
    if step_log is not None:
        variables[STEPS_VARIABLE] = str(step_log.absolute())
    if settings is not None:
        variables[SETTINGS_VARIABLE] = str(settings.write(directory / "settings.json"))
    command = "stock" if settings is None else "serve"
    log_path = directory / f"lmdeploy-{kind}.log"
    with log_path.open("ab") as log:
        process = subprocess.Popen(
            server_line(python, directory, command, device, str(model), *arguments),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            env=variables,
            start_new_session=True,
        )
    url = f"http://127.0.0.1:{port}"
    try:
        if not _wait_ready(process, url):
            tail = log_path.read_text(errors="replace").strip().splitlines()[-1:]
            raise BenchError(
                f"LMDeploy's server ({kind}) did not start: "
                f"{tail[0] if tail else 'it said nothing'} ({log_path})"
            )
        yield url
    finally:
        _end(process)


def _wait_ready(process: subprocess.Popen[bytes], url: str) -> bool:
    """Whether the server came up; False once it ended or START_S are over."""
    deadline = time.monotonic() + START_S
    while time.monotonic() < deadline and process.poll() is None:
        with (
            contextlib.suppress(urllib.error.URLError, OSError),
            urllib.request.urlopen(f"{url}/health", timeout=5) as response,
        ):
            if response.status == 200:
                return True
        time.sleep(0.25)
    return False


def _end(process: subprocess.Popen[bytes]) -> None:
    """End the server's session, which is its own."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, number)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(GRACE_S)
    process.wait()


def calls_of(
    requests: Sequence[WorkloadRequest], max_tokens: int, *, tell_length: bool = False
) -> list[Call]:
    """Encoded calls; bodies are the same for all servers, and each takes what it may know.

    The forced length is put into the request behind the planner's back
    (``lmdeploy_adapter.forced_lengths``); ``tell_length`` tells it to the planner, too.

    Raises:
        InputError: a request without text, which LMDeploy's completions do not take.
    """
    calls = []
    for i, request in enumerate(requests):
        if not request.prompt:
            raise InputError(
                f"request {i} has no text, and LMDeploy's /v1/completions takes no token ids"
            )
        told = {"osl": request.output_tokens} if tell_length else {}
        body = {
            "model": SERVED,
            "prompt": whole_prompt(request, i),
            "max_tokens": max_tokens,
            "temperature": 0.0,
            "stream": True,
            "stream_options": {"include_usage": True},
            "vllm_xargs": request.slo.to_xargs() | told,
            "lengthwise": {"replay_tokens": request.output_tokens},
        }
        calls.append(Call(request.arrival_s, json.dumps(body).encode()))
    return calls
