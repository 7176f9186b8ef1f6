"""The fault table's bookkeeping, without an engine: pairs, intervals, rows that are done."""

from __future__ import annotations

import contextlib
import json
import math
from collections import Counter

import pytest
from request_accounts import Account, ask

from benchmarks.engine.faults import __main__ as faults
from benchmarks.engine.faults import fault_pair
from benchmarks.engine.faults.fault_pair import Pair
from benchmarks.engine.faults.fault_rows import Book, Row
from benchmarks.engine.faults.fault_servers import Bench


class Loads:
    """Stands for two servers: ours is as fast as ``pace`` says, stock 100 tokens a second."""

    def __init__(self, monkeypatch, book, pairs=3, lost=0, queued=True):
        self.queued = queued
        self.order, self.inside, self.pace, self.lost = [], [], iter((80.0, 90.0, 100.0) * 9), lost
        self.pair = Pair("stock", "ours", self.requests, "log", book, pairs)
        monkeypatch.setattr(Pair, "load", lambda _, server, asked, most: self.load(server, asked))
        monkeypatch.setattr(Pair, "_count", lambda *_: 0.0)
        monkeypatch.setattr(
            fault_pair, "wait_for_rows", lambda folder, ids, *_: Counter(dict.fromkeys(ids, 1))
        )
        self.active = False

    def requests(self, prefix):
        return [ask(f"{prefix}-{i}", i, 10) for i in range(10)]

    def load(self, server, asked):
        self.order.append(server)
        self.inside.append(self.active)
        tokens_per_s = next(self.pace) if server == "ours" else 100.0
        errors = {f"r{i}": "x" for i in range(self.lost)} if server == "ours" else {}
        whole = 50 if self.queued else int(tokens_per_s)
        loaded = tokens_per_s if self.queued else math.nan
        return Account(len(asked), len(asked), 0, 1.0, whole, loaded, errors)

    @contextlib.contextmanager
    def fault(self):
        self.active = True
        yield
        self.active = False


@pytest.mark.parametrize("queued", [True, False])
def test_each_pair_is_loaded_in_turn_and_only_ours_under_the_fault(monkeypatch, tmp_path, queued):
    loads = Loads(monkeypatch, Book(tmp_path / "rows.jsonl"), queued=queued)
    loads.pair.run("planner raises", "wrapped", "-", around=loads.fault)
    assert loads.order == ["ours", "stock", "stock", "ours", "ours", "stock"]
    assert loads.inside == [server == "ours" for server in loads.order]
    (row,) = loads.pair.book.rows
    assert row.ratios == [0.8, 0.9, 1.0]
    assert row.shown_ratio == "0.90 ± 0.25"
    assert (row.sent, row.lost, row.twice) == (30, 0, 0)


def test_a_calm_load_goes_before_each_pair(monkeypatch):
    loads = Loads(monkeypatch, Book(None), pairs=2)
    loads.pair.run("turns slow", "wrapped", "-", around=loads.fault, calm_first=True)
    assert loads.order == ["ours", "ours", "stock", "ours", "stock", "ours"]
    assert loads.inside == [False, True, False, False, False, True]


def test_rows_that_are_done_are_not_made_again(monkeypatch, tmp_path):
    path = tmp_path / "rows.jsonl"
    loads = Loads(monkeypatch, Book(path), lost=1)
    loads.pair.run("one", "-", "-")
    again = Loads(monkeypatch, Book(path))
    again.pair.run("one", "-", "-")
    assert again.order == []
    again.pair.run("two", "-", "-")
    assert [json.loads(line)["fault"] for line in path.read_text().splitlines()] == ["one", "two"]
    assert [row.lost for row in Book(path).rows] == [3, 0]
    assert Book(path).lacks("one", "two", "three") == ["three"]


@pytest.mark.parametrize("part", faults.PARTS)
def test_a_part_whose_rows_are_done_starts_no_server(monkeypatch, tmp_path, capsys, part):
    path = tmp_path / "rows.jsonl"
    book = Book(path)
    for name, (_, rows) in faults.PARTS.items():
        for row in rows if name != part else ():
            book.add(Row(row, "-", 1, 0, 0, 0, "-", [1.0, 0.98]))
    started = []
    monkeypatch.setattr(Bench, "__init__", lambda self, *_: None)
    monkeypatch.setattr(
        faults,
        "PARTS",
        {n: (lambda _, n=n: started.append(n), r) for n, (_, r) in faults.PARTS.items()},
    )
    monkeypatch.setattr("sys.argv", ["faults", "--out", str(path)])
    assert faults.main() == 0
    assert started == [part]
    assert "0.99 ± " in capsys.readouterr().out
