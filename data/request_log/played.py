"""A request log as a workload: the traffic that came, to be played again.

What is played needs a true length, so requests that were aborted, shed or failed are left out and
counted. Each sequence of a request that became several is a request of its own.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

from lengthwise.data.errors import InputError, shown
from lengthwise.data.lines import Watch
from lengthwise.data.request_log.log_files import join_texts, log_files
from lengthwise.data.request_log.newest import newest_first
from lengthwise.data.skipped import NoAnswerError, Skipped
from lengthwise.data.slo import SloTable, parse_slo
from lengthwise.data.workload import MAX_TOKENS, WorkloadRequest

_ANSWERED = ("finished", "length", "stopped", "repetition", "otherwise")
_LONGEST_S = 366 * 86_400.0  # a log is no longer to either side of its middle: else a clock was off
_NO_DEFAULTS = SloTable({})
_KEPT = ("request_id", "arrival_unix_s", "prompt", "text_id")
_MADE = "workload request"  # beside a row's own keys, which have no blanks


def logged_workload(
    folder: str | Path,
    most: int | None = None,
    *,
    with_prompts: bool = False,
    watch: Watch | None = None,
) -> tuple[list[WorkloadRequest], Skipped]:
    """The newest answered requests of a log folder or file, by arrival, and what was left out.

    The first arrives at 0. `with_prompts`: with the texts that the server kept. The log is read
    from its new end, no further than for `most` requests. InputError where nothing can be played
    or most rows break a rule.
    """
    files, skipped = log_files(folder), Skipped()

    def can_be_played(row: dict[str, Any]) -> bool:
        try:
            row[_MADE] = as_request(row)
        except InputError as error:
            skipped.add(f"request {row['request_id']}", error)
            return False
        return True

    rows: list[dict[str, Any]] = []
    requests: list[WorkloadRequest] = []
    for row in newest_first(files.rows, skipped, most=most, wanted=can_be_played, watch=watch):
        requests.append(row[_MADE])
        rows.append({name: row.get(name) for name in _KEPT})
        if len(rows) == most:
            break
    if with_prompts:
        join_texts(rows, files.texts, skipped, watch)
    kept = _in_order(rows, requests, skipped, with_prompts)
    skipped.check(str(folder), len(kept))
    return kept, skipped


def as_request(row: Mapping[str, Any]) -> WorkloadRequest:
    """A log's row as a request without its text, arriving at 0.

    InputError says why it cannot be played.
    """
    if row["status"] not in _ANSWERED:
        raise NoAnswerError(f"{row['status']}: its length is not known")
    if not row.get("output_tokens"):
        raise NoAnswerError("needs output_tokens of at least 1")
    if row.get("arrival_unix_s") is None:
        raise InputError("needs its arrival_unix_s")
    limit = row.get("max_tokens")
    said = {key: value for key, value in row.items() if key.startswith("slo_")}
    return WorkloadRequest(
        0.0,
        row.get("prompt_tokens") or 0,
        row["output_tokens"],
        parse_slo(said, None, _NO_DEFAULTS),
        # a limit that the answer exceeds was not in force
        max_tokens=min(limit, MAX_TOKENS) if limit and limit >= row["output_tokens"] else None,
    )


def _in_order(
    rows: list[dict[str, Any]],
    requests: list[WorkloadRequest],
    skipped: Skipped,
    with_prompts: bool,
) -> list[WorkloadRequest]:
    if not rows:
        return []
    middle_s = median(row["arrival_unix_s"] for row in rows)
    pairs = []
    for row, request in zip(rows, requests, strict=True):
        if abs(row["arrival_unix_s"] - middle_s) <= _LONGEST_S:
            pairs.append((row, request))
        else:
            rule = "arrival_unix_s must lie within a year of the other rows'"
            error = InputError(f"{rule}, got {shown(row['arrival_unix_s'])}")
            skipped.add(f"request {row['request_id']}", error)
    pairs.sort(key=lambda pair: pair[0]["arrival_unix_s"])
    first_s = pairs[0][0]["arrival_unix_s"]
    return [
        _arriving(request, row["arrival_unix_s"] - first_s, row["prompt"] if with_prompts else None)
        for row, request in pairs
    ]


def _arriving(request: WorkloadRequest, arrival_s: float, prompt: Any) -> WorkloadRequest:
    text = prompt if isinstance(prompt, str) and prompt.strip() else None
    return replace(request, arrival_s=round(arrival_s, 6), prompt=text)
