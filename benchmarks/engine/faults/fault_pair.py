"""Stock and ours loaded in turn with the same requests, a fault around ours: a row of the table."""

from __future__ import annotations

import asyncio
import contextlib
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.common import note
from benchmarks.engine.accounts import Account, Asked, drive, metric, wait_for_rows
from benchmarks.engine.faults.fault_rows import Book, Metric, Row
from lengthwise.scheduler.serving.server.server_handle import ServerHandle
from lengthwise.training.bench.engines.client import wait_idle

SLOTS = 32


@dataclass
class Pair:
    """Stock and ours, up together."""

    stock: ServerHandle
    ours: ServerHandle
    requests: Callable[[str], list[Asked]]
    log_dir: Path | None
    book: Book
    pairs: int

    def run(
        self,
        fault: str,
        injected: str,
        tells: Metric | str,
        *,
        around: Callable[[], contextlib.AbstractContextManager[Any]] = contextlib.nullcontext,
        change: Callable[[list[Asked]], list[Asked]] = lambda asked: asked,
        rows_each: int | None = 1,
        concurrency: int | None = 2 * SLOTS,
        calm_first: bool = False,
    ) -> None:
        """Load both, several times; ``around`` is entered for ours only. ``rows_each`` None: the
        log is hurt. ``calm_first``: before each, ours serves some requests without the fault."""
        if not self.book.lacks(fault):
            return
        rows = []
        for turn in range(self.pairs):
            if calm_first:
                calm = self.requests(f"calm-{fault.replace(' ', '-')}-{turn}")[: 2 * SLOTS]
                self.load(self.ours, calm, 2 * SLOTS)
            rows.append(
                self._once(fault, injected, tells, turn, around, change, rows_each, concurrency)
            )
        last = rows[-1]
        counts = [row.twice for row in rows if row.twice is not None]
        self.book.add(
            Row(
                fault,
                injected,
                sum(row.sent for row in rows),
                sum(row.lost for row in rows),
                sum(row.lost_stock for row in rows),
                sum(counts) if counts else None,
                last.tells,
                [ratio for row in rows for ratio in row.ratios],
            )
        )

    def _once(
        self,
        fault: str,
        injected: str,
        tells: Metric | str,
        turn: int,
        around: Callable[[], contextlib.AbstractContextManager[Any]],
        change: Callable[[list[Asked]], list[Asked]],
        rows_each: int | None,
        concurrency: int | None,
    ) -> Row:
        name = f"{fault.replace(' ', '-').replace(',', '')}-{turn}"
        accounts: dict[str, Account] = {}
        asked = change(self.requests(f"{name}-ours"))
        ids: list[str] = []
        counted = rows = None
        for arm in ("stock", "ours") if turn % 2 else ("ours", "stock"):
            if arm == "stock":
                accounts[arm] = self.load(self.stock, change(self.requests(name)), concurrency)
                continue
            before = self._count(tells)
            with around():
                accounts[arm] = self.load(self.ours, asked, concurrency)
                counted = self._count(tells) - before
            if self.log_dir is not None:
                patience_s = 15.0 if rows_each else 1.5
                # who hangs up at once may never have reached the engine
                ids = [one.own_id for one in asked if one.leaves_after != 0]
                rows = wait_for_rows(self.log_dir, ids, patience_s, rows_each or 1)
        ours, stock = accounts["ours"], accounts["stock"]
        ratio = ours.loaded_tokens_per_s / stock.loaded_tokens_per_s
        if math.isnan(ratio):  # nobody queued: over the whole load
            ratio = ours.tokens_per_s / stock.tokens_per_s if stock.output_tokens else ratio
        ratios = [] if math.isnan(ratio) else [ratio]
        twice = None
        if rows is not None:
            most = rows_each or 1
            twice = sum(count > most for count in rows.values())
            if rows_each is not None:
                missing = [name for name in ids if rows[name] < most]
                if missing:
                    note(f"{fault}: {len(missing)} without a row, first {missing[0]}")
        for who, account in accounts.items():
            if account.lost:
                first = next(iter((account.errors or account.wrong_lengths).items()))
                note(f"{fault}: {who} lost {account.lost}, first {first}")
        said = tells if isinstance(tells, str) else f"{tells} +{counted:.0f}"
        note(
            f"{fault}, {turn + 1} of {self.pairs}: {ours.elapsed_s:.1f} s against "
            f"{stock.elapsed_s:.1f} s, {said}"
        )
        return Row(fault, injected, len(asked), ours.lost, stock.lost, twice, said, ratios)

    def load(self, server: ServerHandle, asked: list[Asked], concurrency: int | None) -> Account:
        """Load one of the servers; what became of the requests once it is idle again."""

        async def scenario() -> Account:
            account = await drive(server.url, asked, concurrency=concurrency, timeout_s=240)
            await wait_idle(server.url)
            return account

        return asyncio.run(scenario())

    def _count(self, tells: Metric | str) -> float:
        return 0.0 if isinstance(tells, str) else metric(self.ours.url, tells.name, **tells.labels)
