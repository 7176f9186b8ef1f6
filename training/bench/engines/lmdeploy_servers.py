"""LMDeploy's servers of a comparison: stock and ours, both up, loaded in turn and never at once."""

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
from typing import Any

import numpy as np

from lengthwise.data.arena.whole_prompts import whole_prompt
from lengthwise.data.errors import InputError
from lengthwise.data.workload import WorkloadRequest
from lengthwise.scheduler.lmdeploy_adapter.inside.cpu_engine_process import STEPS_VARIABLE
from lengthwise.scheduler.lmdeploy_adapter.lmdeploy_environment import start_server
from lengthwise.training.bench.engines.client import BenchError, Call
from lengthwise.training.bench.engines.servers import free_port, leaving_on_sigterm

START_S = 300.0
TRIES = 3  # its API process closes a manager that its engine process may still be using
GRACE_S = 15.0
SERVED = "served"


@dataclass(frozen=True, slots=True)
class LmdeployServers:
    """Two running servers, and the steps of ours as far as they are written."""

    ours: str
    stock: str
    step_log: Path


@contextlib.contextmanager
def start_lmdeploy_servers(
    python: Path, model: Path, directory: Path, **options: Any
) -> Iterator[LmdeployServers]:
    """Start both, wait until they answer, stop them at the end.

    Args:
        python: the interpreter of LMDeploy's environment.
        model: a folder with a model's configuration and tokenizer.
        directory: for logs and timed steps.
        options: further fields of ``ServeOptions``, the same for both.

    Raises:
        BenchError: a server did not start in TRIES tries.
    """
    directory.mkdir(parents=True, exist_ok=True)
    step_log = (directory / "lmdeploy-steps.jsonl").absolute()
    with contextlib.ExitStack() as stack:
        stack.enter_context(leaving_on_sigterm())
        urls = {}
        for planned in (True, False):
            variables = {"HF_HUB_OFFLINE": "1"}
            if planned:
                variables[STEPS_VARIABLE] = str(step_log)
            asked = {"model": str(model), "planned": planned, **options}
            urls[planned] = stack.enter_context(_server(python, asked, directory, variables))
        yield LmdeployServers(urls[True], urls[False], step_log)


@contextlib.contextmanager
def _server(
    python: Path, options: dict[str, Any], directory: Path, variables: dict[str, str]
) -> Iterator[str]:
    kind = "ours" if options["planned"] else "stock"
    log_path = directory / f"lmdeploy-{kind}.log"
    for tried in range(1, TRIES + 1):
        port = free_port()
        with log_path.open("ab") as log:
            process = start_server(python, options | {"port": port}, directory, log, **variables)
        url = f"http://127.0.0.1:{port}"
        try:
            if _wait_ready(process, url):
                yield url
                return
        finally:
            _end(process)
        if tried == TRIES:
            tail = log_path.read_text(errors="replace").strip().splitlines()[-1:]
            raise BenchError(
                f"LMDeploy's server ({kind}) did not start in {TRIES} tries: "
                f"{tail[0] if tail else 'it said nothing'} ({log_path})"
            )


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
    requests: Sequence[WorkloadRequest], quantiles: np.ndarray, max_tokens: int
) -> list[Call]:
    """Encoded calls; bodies are the same for all servers, and each takes what it may know.

    ``quantiles (n, q)`` tokens are what a planner is told. The forced length is put into the
    request behind the planner's back (``pool_middleware``).

    Raises:
        InputError: a request without text, which LMDeploy's completions do not take.
    """
    calls = []
    for i, request in enumerate(requests):
        if not request.prompt:
            raise InputError(
                f"request {i} has no text, and LMDeploy's /v1/completions takes no token ids"
            )
        names = ("ttft_s", "tpot_s", "e2e_s")
        slo = {name: getattr(request.slo, name) for name in names}
        body = {
            "model": SERVED,
            "prompt": whole_prompt(request, i),
            "max_tokens": max_tokens,
            "temperature": 0.0,
            "stream": True,
            "stream_options": {"include_usage": True},
            "lengthwise": {
                "quantiles": [round(float(q), 2) for q in quantiles[i]],
                "slo": {name: value for name, value in slo.items() if value is not None},
                "replay_tokens": request.output_tokens,
            },
        }
        calls.append(Call(request.arrival_s, json.dumps(body).encode()))
    return calls
