"""The workload file: one JSON object per request, read by `simulate` and `bench` alike.

Keys: `arrival_s`, `prompt_tokens`, `output_tokens`, and optionally `slo_class`, `slo_ttft_ms`,
`slo_tpot_ms`, `slo_e2e_ms`, `prompt` or `messages`, `task`, `prefix` with `prefix_tokens`,
`session`, `text_tokens` and `max_tokens`. Lines are sorted by arrival.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lengthwise.data.chat import content_text, rendered, role_of, valid_text
from lengthwise.data.errors import InputError, shown
from lengthwise.data.files import whole_file
from lengthwise.data.lines import read_json_lines
from lengthwise.data.slo import DEFAULT_CLASS, OBJECTIVES, Slo, SloTable

MAX_TOKENS = 10_000_000
MAX_ARRIVAL_S = 1e9
_NO_DEFAULTS = SloTable({})
_OBJECTIVE_KEYS = ("slo_class", *(f"slo_{name}_ms" for name in OBJECTIVES))
# what says an objective under another name would make its request best effort, unsaid
_OF_OBJECTIVES = re.compile(r"slo(_|\Z)|(ttft|tpot|e2e)(_ms)?\Z", re.IGNORECASE)
_OPTIONAL = ("prompt", "task", "prefix", "prefix_tokens", "session", "text_tokens", "max_tokens")


@dataclass(frozen=True, slots=True)
class WorkloadRequest:
    """One request of a workload; `output_tokens` is the true length, for replay.

    `prefix` names a beginning of `prefix_tokens` tokens that it shares with others, `session`
    the conversation it is a turn of. `text_tokens` says how many of `prompt_tokens` are in
    `prompt` where that is not the whole (a document or a shared beginning stands before it);
    `max_tokens` is the limit the client set to the answer.
    """

    arrival_s: float
    prompt_tokens: int
    output_tokens: int
    slo: Slo
    prompt: str | None = None
    task: str | None = None
    prefix: str | None = None
    prefix_tokens: int | None = None
    session: str | None = None
    text_tokens: int | None = None
    max_tokens: int | None = None

    @property
    def readable_tokens(self) -> int:
        """Tokens of the text that can be read: all of the prompt's, but for `text_tokens`."""
        return self.prompt_tokens if self.text_tokens is None else self.text_tokens

    def __post_init__(self) -> None:
        object.__setattr__(self, "arrival_s", check_arrival_s(self.arrival_s))
        for name in ("prompt_tokens", "output_tokens"):
            object.__setattr__(self, name, check_tokens(getattr(self, name), name))
        for name in ("prompt", "task", "prefix", "session"):
            value = getattr(self, name)
            if value is not None and not isinstance(value, str):
                raise InputError(f"{name} must be text or absent, got {shown(value)}")
        if (self.prefix is None) != (self.prefix_tokens is None):
            raise InputError(
                "prefix and prefix_tokens come together, got "
                f"prefix {shown(self.prefix)} and prefix_tokens {shown(self.prefix_tokens)}"
            )
        for name in ("prefix_tokens", "text_tokens"):
            if (value := getattr(self, name)) is None:
                continue
            object.__setattr__(self, name, check_tokens(value, name))
            if value > self.prompt_tokens:
                raise InputError(
                    f"{name} must be at most prompt_tokens, got {value} of {self.prompt_tokens}"
                )
        if self.max_tokens is not None:
            object.__setattr__(self, "max_tokens", check_tokens(self.max_tokens, "max_tokens"))
            if self.max_tokens < self.output_tokens:
                raise InputError(
                    f"max_tokens must be at least output_tokens, got {self.max_tokens} "
                    f"of {self.output_tokens}"
                )


def read_workload(path: str | Path) -> list[WorkloadRequest]:
    """The requests of a workload file (.jsonl, also packed), sorted by `arrival_s`.

    Raises InputError with file and line number for a bad line, an unsorted arrival, or no lines.
    """
    requests: list[WorkloadRequest] = []
    for number, row in read_json_lines(path):
        try:
            request = _request(row)
        except InputError as error:
            raise InputError(f"{path}:{number}: {error}") from error
        if requests and request.arrival_s < requests[-1].arrival_s:
            raise InputError(
                f"{path}:{number}: arrival_s must not decrease, got {request.arrival_s:g} "
                f"after {requests[-1].arrival_s:g}"
            )
        requests.append(request)
    if not requests:
        raise InputError(f"{path}: a workload needs at least one request, got an empty file")
    return requests


def write_workload(path: str | Path, requests: Iterable[WorkloadRequest]) -> None:
    """Write a workload file; `read_workload` returns equal requests."""
    with whole_file(path) as file:
        for request in requests:
            file.write(json.dumps(_row(request), ensure_ascii=False) + "\n")


def check_tokens(value: Any, name: str) -> int:
    """A whole number of tokens from 1 to MAX_TOKENS, or InputError."""
    # numpy's integers come from tables, Python's from JSON; neither bool nor 3.0 is a count
    is_whole = hasattr(value, "__index__") and not isinstance(value, bool)
    if not (is_whole and 1 <= int(value) <= MAX_TOKENS):
        raise InputError(
            f"{name} must be a whole number from 1 to {MAX_TOKENS}, got {shown(value)}"
        )
    return int(value)


def check_arrival_s(value: Any) -> float:
    """A finite, non-negative number of seconds, or InputError."""
    numeric = isinstance(value, int | float) and not isinstance(value, bool)
    if not (numeric and 0 <= value <= MAX_ARRIVAL_S):
        raise InputError(f"arrival_s must lie from 0 to {MAX_ARRIVAL_S:g}, got {shown(value)}")
    return float(value)


def _request(row: dict[str, Any]) -> WorkloadRequest:
    for name in ("arrival_s", "prompt_tokens", "output_tokens"):
        if name not in row:
            raise InputError(f"{name} is required")
    for name in row:
        if name not in _OBJECTIVE_KEYS and _OF_OBJECTIVES.match(name):
            known = ", ".join(_OBJECTIVE_KEYS)
            raise InputError(f"unknown key {shown(name)}; objectives and class are {known}")
    texts = {name: _text(row.get(name)) for name in _OPTIONAL}
    if texts["prompt"] is None and row.get("messages") is not None:
        texts["prompt"] = _text_of_messages(row["messages"])
    given = {f"{name}_ms": row.get(f"slo_{name}_ms") for name in OBJECTIVES}
    return WorkloadRequest(
        arrival_s=row["arrival_s"],
        prompt_tokens=row["prompt_tokens"],
        output_tokens=row["output_tokens"],
        slo=_NO_DEFAULTS.resolve(row.get("slo_class"), given),
        **texts,
    )


def _text(value: Any) -> Any:
    return valid_text(value) if isinstance(value, str) else value


def _text_of_messages(messages: Any) -> str:
    """The conversation as the server reads it; InputError where it is none."""
    listed = isinstance(messages, list) and bool(messages)
    if not (listed and all(isinstance(message, dict) for message in messages)):
        raise InputError(f"messages must be a list of messages, got {shown(messages)}")
    turns = [(role_of(message.get("role")), content_text(message)) for message in messages]
    for (role, _), message in zip(turns, messages, strict=True):
        if role is None:
            raise InputError(f"the role of a message must be known, got {shown(message)}")
    return valid_text(rendered([(str(role), text) for role, text in turns]))


def _row(request: WorkloadRequest) -> dict[str, Any]:
    row: dict[str, Any] = {
        "arrival_s": request.arrival_s,
        "prompt_tokens": request.prompt_tokens,
        "output_tokens": request.output_tokens,
    }
    # rounding to a picosecond undoes the dust of the conversion, so that a round trip is exact
    row |= {
        key: round(value, 9) if isinstance(value, float) else value
        for key, value in request.slo.to_xargs().items()
    }
    if request.slo.slo_class == DEFAULT_CLASS:
        del row["slo_class"]
    row |= {name: value for name in _OPTIONAL if (value := getattr(request, name)) is not None}
    assert math.isfinite(row["arrival_s"])
    return row
