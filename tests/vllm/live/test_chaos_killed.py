"""The engine's process is killed under `lengthwise serve`, which is then started again."""

from __future__ import annotations

import asyncio
import contextlib
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import psutil
import pytest
from chaos_load import SMALL_CACHE
from request_accounts import ask, drive, logged, wait_for, wait_for_rows

from lengthwise.training.bench.engines.servers import free_port

pytestmark = pytest.mark.vllm


def engine_of(pid: int) -> psutil.Process:
    """The engine process under a server's or a command's process."""
    for child in psutil.Process(pid).children(recursive=True):
        if "EngineCore" in (child.cmdline() or [""])[0]:
            return child
    raise AssertionError("no engine process")


def healthy(url: str) -> bool:
    with contextlib.suppress(httpx.HTTPError):
        return httpx.get(f"{url}/health", timeout=5).status_code == 200
    return False


@contextlib.contextmanager
def lengthwise_serve(home: Path, *options: str) -> Iterator[tuple[subprocess.Popen, str]]:
    """Our own command, until it is ready; ended with everything it started."""
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    program = "from lengthwise.training.cli.app import app; app()"
    command = [sys.executable, "-c", program, "serve", "tiny", "--port", str(port), *options]
    with (home / "serve.log").open("ab") as log:
        process = subprocess.Popen(
            [*command, *SMALL_CACHE], stdout=log, stderr=log, cwd=Path(__file__).parents[3]
        )
    try:
        assert wait_for(lambda: healthy(url) or process.poll() is not None, bool, 300)
        assert process.poll() is None, (home / "serve.log").read_text()[-2000:]
        yield process, url
    finally:
        if process.poll() is None:
            process.terminate()
            process.wait(60)


@pytest.mark.chaos
def test_the_engine_is_killed_and_started_again(home, predictor_dir):
    """The command ends with an error instead of hanging, and starts again on the same log."""
    log_dir = home / "log"
    options = ("--predictor", str(predictor_dir), "--request-log", str(log_dir))

    def of_length(prefix, n, tokens):
        return [ask(f"{prefix}-{i}", None, tokens, max_tokens=tokens) for i in range(n)]

    with lengthwise_serve(home, *options) as (process, url):
        before = of_length("before", 16, 20)
        account = asyncio.run(drive(url, before))
        assert (account.answered, account.lost) == (16, 0)
        wait_for_rows(log_dir, [one.own_id for one in before])

        async def scenario():
            load = asyncio.create_task(drive(url, of_length("during", 24, 400), timeout_s=60))
            await asyncio.sleep(1.5)
            engine_of(process.pid).kill()
            return await load

        account = asyncio.run(scenario())
        assert account.answered + account.lost == 24
        assert account.lost > 0
        assert process.wait(60) != 0
    with lengthwise_serve(home, *options) as (process, url):
        after = of_length("after", 16, 20)
        account = asyncio.run(drive(url, after))
        assert (account.answered, account.lost) == (16, 0)
        wait_for_rows(log_dir, [one.own_id for one in after])
    rows = logged(log_dir)
    assert max(rows.values()) == 1
    assert {one.own_id for one in before + after} <= rows.keys()
