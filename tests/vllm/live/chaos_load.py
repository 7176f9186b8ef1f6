"""Loads on the server under faults, and what must be true of them afterwards."""

from __future__ import annotations

import asyncio

import httpx
from replayed_lengths import REPLAYED
from request_accounts import Account, ask, drive, logged, wait_for_rows

SMALL_CACHE = [
    "--enforce-eager", "--max-num-seqs", "8", "--block-size", "32",
    "--num-gpu-blocks-override", "64", "--max-model-len", "1536",
]  # fmt: skip


def some(prefix, n=24, **how):
    """Requests of the session's replay table, 1 to 61 tokens long."""
    return [ask(f"{prefix}-{i}", i, REPLAYED[str(i)], **how) for i in range(n)]


def long_ones(prefix, n, **how):
    """Eight of these at once want twice what the cache holds."""
    return [ask(f"{prefix}-{i}", "long", 500, **how) for i in range(n)]


def serve(server, asked, **how) -> Account:
    return asyncio.run(drive(server.url, asked, **how))


def all_once(server, account, asked):
    """Nobody lost, everybody whole, one row each."""
    assert account.errors == {}
    assert account.wrong_lengths == {}
    assert account.answered + account.left == len(asked)
    # who hangs up at once may never have reached the engine
    reached = {request.own_id for request in asked if request.leaves_after != 0}
    assert wait_for_rows(server.log_dir, reached) == dict.fromkeys(reached, 1)
    rows = logged(server.log_dir)
    assert all(rows[request.own_id] <= 1 for request in asked)


def status(server):
    return httpx.get(f"{server.url}/lengthwise/status", timeout=60).json()


def configure(server, **body):
    answer = httpx.post(f"{server.url}/lengthwise/configure", json=body, timeout=60)
    assert answer.status_code == 200, answer.text
