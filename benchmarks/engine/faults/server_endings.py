"""Servers that end under load, asked to or not: how many clients stay without an answer."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Callable

import psutil

from benchmarks.common import note
from benchmarks.engine.accounts import Account, Asked, drive, wait_for, wait_for_rows
from benchmarks.engine.faults.fault_pair import SLOTS, Pair
from benchmarks.engine.faults.fault_rows import Row
from benchmarks.engine.faults.fault_servers import Bench
from lengthwise.scheduler.serving.server.server_handle import ServerHandle


def terminate(server: ServerHandle) -> None:
    """As an orchestrator does."""
    server.process.send_signal(signal.SIGTERM)


def kill_engine(server: ServerHandle) -> None:
    """The engine process is gone at once, as after an out-of-memory kill."""
    for child in psutil.Process(server.process.pid).children(recursive=True):
        if any("EngineCore" in part for part in child.cmdline()[:1]):
            os.kill(child.pid, signal.SIGKILL)
            return
    raise RuntimeError("no engine process")


def ended(bench: Bench, pair: Pair, fault: str, end: Callable[[ServerHandle], None]) -> Row:
    """Both servers end under the same load: how many clients were left without an answer."""
    accounts: dict[str, Account] = {}
    name = fault.replace(" ", "-")
    asked = bench.requests(f"{name}-ours")[: 3 * SLOTS]

    async def scenario(server: ServerHandle, load: list[Asked]) -> Account:
        driven = asyncio.create_task(drive(server.url, load, timeout_s=90))
        await asyncio.sleep(1.5)
        end(server)
        return await driven

    for arm, server in (("stock", pair.stock), ("ours", pair.ours)):
        load = asked if arm == "ours" else bench.requests(name)[: 3 * SLOTS]
        accounts[arm] = asyncio.run(scenario(server, load))
        wait_for(server.process.poll, lambda code: code is not None, 60)
    code = pair.ours.process.returncode
    rows = wait_for_rows(pair.log_dir, [one.own_id for one in asked], 2)
    twice = sum(count > 1 for count in rows.values())
    ours, stock = accounts["ours"], accounts["stock"]
    note(f"{fault}: lost {ours.lost}, stock {stock.lost}; {len(rows)} of {len(asked)} logged")
    how = "`--shutdown-timeout 60`" if end is terminate else "`kill -9` on the engine process"
    return Row(fault, how, len(asked), ours.lost, stock.lost, twice, f"exit status {code}")
