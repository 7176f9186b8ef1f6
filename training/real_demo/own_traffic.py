"""The prompts whose answers are learned from: sent once each, and not again after a stop."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from lengthwise.data.errors import InputError
from lengthwise.data.request_log import answered, read_request_log
from lengthwise.data.workload import WorkloadRequest
from lengthwise.scheduler.profile import load_profile
from lengthwise.training.bench.comparison.workload_source import WorkloadSource, open_workload
from lengthwise.training.bench.engines.client import BenchError, Reply, drive_closed
from lengthwise.training.bench.engines.generation import CHAT_PATH, Generation, chat_body
from lengthwise.training.bench.runners.generated_runner import asked_of

LEARNED_SPLIT = "train"
WAITING_PER_SLOT = 1.5
_LOST_SHARE = 0.05


def real_prompts(workload: str, source: str | None, profile: Path | str) -> WorkloadSource:
    """The workload as this engine is asked it; of its table the side that is not judged on."""
    engine = load_profile(profile)
    opened = open_workload(workload, source=source)
    return replace(asked_of(opened, engine), split=LEARNED_SPLIT)


def left_to_send(requests: Sequence[WorkloadRequest], log: Path) -> list[WorkloadRequest]:
    """The requests whose prompts the log has no answer to yet, each prompt once."""
    known: set[str | None] = set()
    try:
        frame = read_request_log(log)
        known = set(frame[answered(frame)]["prompt"])
    except InputError:
        pass  # no log yet, or no row in it
    left = []
    for request in requests:
        if request.prompt not in known:
            known.add(request.prompt)
            left.append(request)
    return left


def ask(
    url: str,
    model: str,
    requests: Sequence[WorkloadRequest],
    generation: Generation,
    *,
    slots: int,
    on_done: Callable[[], None] = lambda: None,
) -> tuple[Reply, ...]:
    """Their answers in their order, somewhat more in flight than the engine has slots.

    Raises:
        BenchError: more than one in twenty got no answer.
    """
    bodies = [chat_body(r, i, generation, model=model) for i, r in enumerate(requests)]
    replies = asyncio.run(
        drive_closed(
            url,
            bodies,
            concurrency=max(1, round(WAITING_PER_SLOT * slots)),
            on_done=on_done,
            path=CHAT_PATH,
        )
    )
    lost = [r.error for r in replies if r.error]
    if len(lost) > _LOST_SHARE * len(replies):
        raise BenchError(f"{len(lost)} of {len(replies)} prompts got no answer: {lost[0]}")
    return replies


def send(
    url: str,
    model: str,
    requests: Sequence[WorkloadRequest],
    generation: Generation,
    *,
    slots: int,
    on_done: Callable[[], None] = lambda: None,
) -> dict[str, Any]:
    """Have them answered for the server's log; how it went, in figures.

    Raises:
        BenchError: more than one in twenty got no answer.
    """
    if not requests:
        return {"sent": 0, "lost": 0, "tokens_per_s": None}
    replies = ask(url, model, requests, generation, slots=slots, on_done=on_done)
    done = [r for r in replies if not r.error]
    tokens = sum(r.output_tokens for r in done)
    ends = [r.send_s + (r.e2e_s or 0.0) for r in done]
    return {
        "sent": len(replies), "lost": len(replies) - len(done), "tokens_per_s": tokens / max(ends),
    }  # fmt: skip


def log_figures(log: Path) -> dict[str, Any]:
    """How many answers a log holds, how many were cut at the limit, and how long they are."""
    frame = read_request_log(log)
    frame = frame[answered(frame)]
    tokens = frame["output_tokens"].to_numpy(float)
    return {
        "answered": len(frame),
        "cut_at_max_tokens": int((frame["status"] == "length").sum()),
        "mean_tokens": float(tokens.mean()),
        "quartiles_tokens": [float(q) for q in np.quantile(tokens, (0.25, 0.5, 0.75))],
    }
