"""Faults inside our processes and at their edges: all that one pair of servers can bear."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from benchmarks.engine.accounts import Asked, Faults, ask, full, small_disk
from benchmarks.engine.faults.fault_pair import Pair
from benchmarks.engine.faults.fault_rows import Metric, Row
from benchmarks.engine.faults.fault_servers import Bench, running

QUEUED_POSTS, PROMPTS_A_POST = 1000, 20
QUEUED = f"{QUEUED_POSTS * PROMPTS_A_POST:,} queued"
PREDICTOR_KINDS = {
    "predictor raises": "raise",
    "predictor gives NaN": "nan",
    "predictor gives a level too few": "shape",
    "predictor gives a row too few": "rows",
}
LEAVE_EVERY = 10
FAULTS = (
    "none", *PREDICTOR_KINDS, "predictor turns slow", "predictor slow", "planner raises",
    "planner over budget", "clients leave", "log disk full", QUEUED,
)  # fmt: skip
"""The rows that this part makes."""


def injected_faults(bench: Bench) -> None:
    """Everything that one pair of servers can bear."""
    with small_disk(bench.scratch / "disk", "256m") as limited:
        log_dir = bench.scratch / "disk" / "log"
        faults = Faults(bench.scratch / "faults.json")
        stock = bench.server("stock", None, [])
        ours = bench.server("ours", bench.settings(log_dir), [], faults.environment())
        with running(stock, ours):
            _on_one_pair(bench.pair(stock, ours, log_dir), faults, limited)


def _on_one_pair(pair: Pair, faults: Faults, limited: bool) -> None:
    failed = Metric("lengthwise_predictions_total", {"outcome": "failed"})
    late = Metric("lengthwise_predictions_total", {"outcome": "timeout|skipped"})
    planner = Metric("lengthwise_fallbacks_total", {"cause": "planner"})
    planned = Metric("lengthwise_plan_seconds_count")
    aborted = Metric("lengthwise_requests_total", {"status": "aborted"})
    ended = Metric("lengthwise_requests_total", {"status": "length"})

    def during(**said: Any) -> Callable[[], contextlib.AbstractContextManager[None]]:
        return lambda: faults.during(**said)

    pair.run("none", "-", planned)
    for fault, kind in PREDICTOR_KINDS.items():
        pair.run(fault, "wrapped `predict`", failed, around=during(predictor=kind))
    stuck = during(predictor="slow", predictor_s=5.0)
    how = "wrapped `predict`: 5 s a call"
    pair.run("predictor turns slow", f"{how}, from one to the next", late, around=stuck,
             calm_first=True)  # fmt: skip
    pair.run("predictor slow", f"{how}, not waited for any more", late, around=stuck)
    pair.run("planner raises", "wrapped policy", planner, around=during(planner="raise"))
    pair.run("planner over budget", "wrapped policy: 100 ms a plan, 20 ms allowed", planned,
             around=during(planner="slow", planner_s=0.1))  # fmt: skip
    pair.run("clients leave", "a tenth hangs up, before the first token or midway", aborted,
             change=some_leave)  # fmt: skip
    if limited:
        pair.run(
            "log disk full", "the log's tmpfs filled to its last byte",
            Metric("lengthwise_log_rows_dropped_total"),
            around=lambda: full(pair.log_dir.parent), rows_each=None,
        )  # fmt: skip
    elif pair.book.lacks("log disk full"):
        how = "not run: mounting a tmpfs is not allowed here"
        pair.book.add(Row("log disk full", how, 0, 0, 0, None, "-"))
    replace(pair, requests=short_prompts).run(
        QUEUED, f"{QUEUED_POSTS} posts at once, {PROMPTS_A_POST} prompts each, one token an answer",
        ended, rows_each=PROMPTS_A_POST, concurrency=None,
    )  # fmt: skip


def some_leave(asked: list[Asked]) -> list[Asked]:
    """Every tenth leaves, by turns before the first token and after the second piece."""
    return [
        replace(one, leaves_after=2 * (i // LEAVE_EVERY % 2)) if i % LEAVE_EVERY == 0 else one
        for i, one in enumerate(asked)
    ]


def short_prompts(prefix: str) -> list[Asked]:
    """Each post holds several requests of a few tokens."""
    return [
        ask(
            f"{prefix}-{i}",
            None,
            PROMPTS_A_POST,
            prompt=[f"Say {i} and {k}." for k in range(PROMPTS_A_POST)],
            max_tokens=1,
        )
        for i in range(QUEUED_POSTS)
    ]
