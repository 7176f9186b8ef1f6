"""A server without middleware, its log on a disk of 256 KiB: a full disk, and the server's end."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
from types import SimpleNamespace

import psutil
import pytest
from chaos_load import SMALL_CACHE, all_once, long_ones, serve, some
from replayed_lengths import REPLAYED
from request_accounts import drive, logged, metric, wait_for
from small_disk import full, small_disk

from lengthwise.scheduler.serving.settings import SETTINGS_VARIABLE, ServerSettings
from lengthwise.scheduler.vllm_adapter.server.launch import launch_server
from lengthwise.scheduler.vllm_adapter.vllm_config import SCHEDULER_CLASS
from lengthwise.training.bench.engines.servers import free_port

pytestmark = pytest.mark.vllm


@pytest.fixture(scope="module")
def bare(tmp_path_factory):
    """Only ``--scheduler-cls``: requests reach the engine without SLO and prediction."""
    root = tmp_path_factory.mktemp("bare")
    table = root / "replay.json"
    table.write_text(json.dumps(REPLAYED))
    with small_disk(root / "disk", "256k") as mounted:
        settings = ServerSettings(request_log=str(root / "disk" / "log"))
        with launch_server(
            "tiny",
            None,
            free_port(),
            [*SMALL_CACHE, "--scheduler-cls", SCHEDULER_CLASS, "--shutdown-timeout", "60"],
            log_path=root / "server.log",
            replay_table=table,
            cache_dir=tmp_path_factory.mktemp("cache"),
            env={SETTINGS_VARIABLE: str(settings.write(root / "settings.json"))},
        ) as handle:
            handle.wait_ready(240)
            yield SimpleNamespace(
                url=handle.url,
                log_dir=root / "disk" / "log",
                server_log=root / "server.log",
                handle=handle,
                small=mounted,
            )


def test_without_middleware_the_scheduler_still_serves(bare):
    asked = some("bare")
    all_once(bare, serve(bare, asked), asked)
    assert metric(bare.url, "lengthwise_fallbacks_total", cause="no-prediction") == len(asked)


def test_a_full_disk_costs_rows_of_the_log_only(bare):
    if not bare.small:
        pytest.skip("mounting a tmpfs is not allowed here")
    assert "loses rows" not in bare.server_log.read_text(errors="replace")
    with full(bare.log_dir.parent):
        for turn in range(3):
            asked = some(f"full-{turn}")
            account = serve(bare, asked)
            assert (account.answered, account.lost) == (len(asked), 0)
        said = wait_for(
            lambda: bare.server_log.read_text(errors="replace"), lambda text: "loses rows" in text
        )
        assert "No space left" in said
        assert all(file.stat().st_size for file in bare.log_dir.iterdir())
    asked = some("freed")
    all_once(bare, serve(bare, asked), asked)
    assert max(logged(bare.log_dir).values()) == 1


def test_sigterm_under_load_lets_everybody_finish(bare):
    """With vLLM's ``--shutdown-timeout``; without it vLLM kills its engine at once."""
    asked = some("term") + long_ones("term-long", 8)

    async def scenario():
        load = asyncio.create_task(drive(bare.url, asked))
        await asyncio.sleep(1.5)
        bare.handle.process.send_signal(signal.SIGTERM)
        return await load

    account = asyncio.run(scenario())
    bare.handle.process.wait(60)
    assert wait_for(lambda: _group(bare.handle.process.pid), lambda left: not left) == []
    all_once(bare, account, asked)


def _group(leader: int) -> list[str]:
    """Processes that still live in the server's group."""
    left = []
    for process in psutil.process_iter(["status"]):
        with contextlib.suppress(ProcessLookupError, psutil.Error):
            if os.getpgid(process.pid) == leader and process.status() != psutil.STATUS_ZOMBIE:
                left.append(process.name())
    return left
