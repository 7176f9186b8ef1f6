"""A cache that is far too small; an engine that is killed, and the server started again."""

from __future__ import annotations

import asyncio

from benchmarks.engine.accounts import drive, wait_for_rows
from benchmarks.engine.faults.fault_pair import SLOTS
from benchmarks.engine.faults.fault_rows import Metric, Row
from benchmarks.engine.faults.fault_servers import Bench, running
from benchmarks.engine.faults.server_endings import ended, kill_engine

SMALL_CACHE = ("--block-size", "32", "--num-gpu-blocks-override", "96", "--max-model-len", "2048")
FAULTS = ("constant preemption", "engine killed", "restart after it")
"""The rows that this part makes."""


def small_memory(bench: Bench) -> None:
    """A cache that holds a tenth of what the slots want; then the engine is killed, restarted."""
    log_dir = bench.scratch / "small-log"
    stock = bench.server("stock-3", None, SMALL_CACHE)
    ours = bench.server("small", bench.settings(log_dir), SMALL_CACHE)
    with running(stock, ours):
        pair = bench.pair(stock, ours, log_dir)
        preempted = Metric("vllm:num_preemptions_total")
        how = "`--num-gpu-blocks-override 96`: 3,072 tokens for 32 slots"
        pair.run("constant preemption", how, preempted)
        if not bench.book.lacks("engine killed", "restart after it"):
            return
        killed = ended(bench, pair, "engine killed", kill_engine)
        if bench.book.lacks("engine killed"):
            bench.book.add(killed)
    again = bench.server("small-again", bench.settings(log_dir), SMALL_CACHE)
    with running(again):
        asked = bench.requests("restarted-ours")[: 2 * SLOTS]
        account = asyncio.run(drive(again.url, asked))
        logged = wait_for_rows(log_dir, [one.own_id for one in asked])
        twice = sum(count > 1 for count in logged.values())
        bench.book.add(
            Row(
                "restart after it", "the same command and log", len(asked), account.lost, 0,
                twice, f"{len(logged)} rows in the log",
            )
        )  # fmt: skip
