"""The keys of a request-log row and what each may hold.

request_id, status, met   who, how it ended, whether all its objectives held
arrival_unix_s, slo_*     when it came and what it wanted
*_tokens                  prompt, limit, answer; and the answer as predicted (median)
*_s                       TTFT, TPOT, e2e and the wait in the queue, seconds
predictor, quantiles      the version that was obeyed, and what it said
shadow, shadow_*          the version that was not, and what it said
policy, policy_version    what ordered the queue, with a hash of its parameters if it had any
features, text_id         what the predictor read; text only where the server was told to keep it,
                          in files of its own by this id
whole_id                  the client's request that the row is a part of, where it has several
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from lengthwise.data.chat import valid_text
from lengthwise.data.errors import InputError, shown
from lengthwise.data.slo import is_class_name
from lengthwise.data.workload import MAX_TOKENS

COUNTS = ("prompt_tokens", "max_tokens", "output_tokens")
PREDICTIONS = ("predicted_tokens", "shadow_tokens")
NUMBERS = (
    "arrival_unix_s",
    "slo_ttft_ms",
    "slo_tpot_ms",
    "slo_e2e_ms",
    "ttft_s",
    "tpot_s",
    "e2e_s",
    "queue_s",
    *PREDICTIONS,
)
TEXTS = (
    "slo_class",
    "predictor",
    "policy",
    "policy_version",
    "lengths",
    "feature_contract",
    "prompt",
    "text_id",
    "whole_id",
    "tenant",
    "shadow",
    "admission",
)
QUANTILES = ("quantiles", "shadow_quantiles")
ROW_KEYS = (
    "request_id",
    "status",
    *NUMBERS,
    *COUNTS,
    *TEXTS,
    *QUANTILES,
    "met",
    "features",
)
FIXED_LENGTH = "fixed"  # as predictor: of a length that the request left no choice about
STATUSES = (
    *("finished", "length", "stopped", "repetition", "otherwise"),
    *("aborted", "shed", "failed"),
)
FILE_PATTERN = "requests-*.jsonl"
TEXTS_PATTERN = "texts-*.jsonl"


def check_row(row: dict[str, Any]) -> None:
    """InputError for the first key whose value breaks its rule; other keys are not looked at.

    What passes can be learned from, judged and played: no later check of one row refuses them all.
    """
    for name, holds, rule in _RULES:
        if not holds(row.get(name)):
            raise InputError(f"{name} must be {rule}, got {shown(row.get(name))}")


def normal_row(row: dict[str, Any]) -> dict[str, Any]:
    """The row with its texts made valid UTF-8; no class's name is no class."""
    for name in ("request_id", *TEXTS):
        if isinstance(value := row.get(name), str) and not value.isascii():
            row[name] = valid_text(value)
    if row.get("slo_class") == "":
        row["slo_class"] = None
    return row


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e300


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _is_features(value: Any) -> bool:
    return isinstance(value, list) and all(_is_number(v) and abs(v) <= _MOST_FEATURE for v in value)


def _are_lengths(value: Any) -> bool:
    return isinstance(value, dict) and all(map(_is_number, value.values()))


def _optional(holds: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda value: value is None or holds(value)


def _within(low: float, high: float) -> Callable[[Any], bool]:
    return lambda value: value is None or (_is_number(value) and low <= value <= high)


_MOST_FEATURE = 3.0e38  # as 32 bits hold it
_LATEST_S = 1e11  # milliseconds and nanoseconds since 1970 are beyond it
_MOST_PREDICTED = 1e9
_BOUNDS: dict[str, tuple[Callable[[Any], bool], str]] = {
    "arrival_unix_s": (_within(0.0, _LATEST_S), f"seconds since 1970, 0 to {_LATEST_S:.0e}"),
    **dict.fromkeys(
        PREDICTIONS, (_within(0.0, _MOST_PREDICTED), f"tokens from 0 to {_MOST_PREDICTED:.0e}")
    ),
    **dict.fromkeys(
        ("prompt_tokens", "output_tokens"),
        (
            _optional(lambda v: _is_count(v) and v <= MAX_TOKENS),
            f"a whole number from 0 to {MAX_TOKENS}",
        ),
    ),
}

_RULES: tuple[tuple[str, Callable[[Any], bool], str], ...] = (
    ("request_id", lambda v: isinstance(v, str) and v != "", "text"),
    ("status", lambda v: v in STATUSES, f"one of {', '.join(STATUSES)}"),
    *((name, holds, f"{rule} or null") for name, (holds, rule) in _BOUNDS.items()),
    ("max_tokens", _optional(_is_count), "a whole number >= 0 or null"),
    *((n, _optional(_is_number), "a number or null") for n in NUMBERS if n not in _BOUNDS),
    ("slo_class", _optional(is_class_name), "a class's name or null"),
    *((name, _optional(lambda v: isinstance(v, str)), "text or null") for name in TEXTS),
    ("met", _optional(lambda v: isinstance(v, bool)), "true, false or null"),
    *((name, _optional(_are_lengths), "an object of numbers or null") for name in QUANTILES),
    ("features", _optional(_is_features), "a list of numbers of 32 bits or null"),
)
