"""``lengthwise serve`` is told to stop under load: everybody finishes and nothing stays behind."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import httpx
import psutil
import pytest
from request_accounts import ask, drive, logged

from lengthwise.training.bench.engines.servers import free_port

pytestmark = pytest.mark.vllm

SHARED = Path("/dev/shm")


def test_sigterm_under_load_with_a_shutdown_timeout(tmp_path):
    """Who is in flight and who waits for a slot have whole answers, a row each; exit status 0."""
    before = set(SHARED.glob("psm_*"))
    port = free_port()
    line = [
        sys.executable, "-m", "lengthwise", "serve", "tiny", "--port", str(port), "--predictor",
        "none", "--request-log", str(tmp_path / "log"), "--shutdown-timeout", "120",
        "--enforce-eager", "--max-num-seqs", "4", "--max-model-len", "1024",
    ]  # fmt: skip
    with (tmp_path / "out").open("wb") as out:
        process = subprocess.Popen(
            line, stdout=out, stderr=subprocess.STDOUT, cwd=tmp_path,
            env=os.environ | {"LENGTHWISE_HOME": str(tmp_path)},
        )  # fmt: skip
    url = f"http://127.0.0.1:{port}"
    try:
        wait_ready(url, process)
        family = psutil.Process(process.pid).children(recursive=True)
        asked = [ask(f"term-{i}", None, 120, max_tokens=120) for i in range(12)]

        async def scenario():
            load = asyncio.create_task(drive(url, asked, timeout_s=240))
            await asyncio.sleep(2.0)
            process.send_signal(signal.SIGTERM)
            return await load

        account = asyncio.run(scenario())
        assert process.wait(60) == 0
    finally:
        process.kill()
        process.wait()
    assert (account.errors, account.wrong_lengths, account.answered) == ({}, {}, 12)
    assert set(logged(tmp_path / "log").values()) == {1}
    assert len(logged(tmp_path / "log")) == 12
    assert not [child for child in family if is_alive(child)]
    assert set(SHARED.glob("psm_*")) <= before
    assert list((tmp_path / ".lengthwise" / "run").glob("*")) == []


def test_a_killed_launcher_leaves_no_shared_memory(tmp_path):
    before = set(SHARED.glob("psm_*"))
    port = free_port()
    line = [
        sys.executable, "-m", "lengthwise", "serve", "tiny", "--port", str(port), "--predictor",
        "none", "--enforce-eager", "--max-num-seqs", "4", "--max-model-len", "1024",
    ]  # fmt: skip
    process = subprocess.Popen(
        line, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, cwd=tmp_path,
        env=os.environ | {"LENGTHWISE_HOME": str(tmp_path)},
    )  # fmt: skip
    try:
        wait_ready(f"http://127.0.0.1:{port}", process)
        family = psutil.Process(process.pid).children(recursive=True)
    finally:
        process.kill()
        process.wait()
    deadline_s = time.monotonic() + 40
    while any(map(is_alive, family)) and time.monotonic() < deadline_s:
        time.sleep(0.2)
    assert not [child for child in family if is_alive(child)]
    assert set(SHARED.glob("psm_*")) <= before


def wait_ready(url, process, patience_s=300.0):
    deadline_s = time.monotonic() + patience_s
    while time.monotonic() < deadline_s:
        assert process.poll() is None
        with contextlib.suppress(httpx.HTTPError):
            if httpx.get(f"{url}/health", timeout=2).status_code == 200:
                return
        time.sleep(0.5)
    raise AssertionError("not ready")


def is_alive(process):
    with contextlib.suppress(psutil.Error):
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    return False
