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

from lengthwise.data.errors import InputError, shown

COUNTS = ("prompt_tokens", "max_tokens", "output_tokens")
NUMBERS = (
    "arrival_unix_s",
    "slo_ttft_ms",
    "slo_tpot_ms",
    "slo_e2e_ms",
    "ttft_s",
    "tpot_s",
    "e2e_s",
    "queue_s",
    "predicted_tokens",
    "shadow_tokens",
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
    """InputError for the first key whose value breaks its rule; other keys are not looked at."""
    for name, holds, rule in _RULES:
        if not holds(row.get(name)):
            raise InputError(f"{name} must be {rule}, got {shown(row.get(name))}")


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e300


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _is_features(value: Any) -> bool:
    return isinstance(value, list) and all(map(_is_number, value))


def _optional(holds: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda value: value is None or holds(value)


_RULES: tuple[tuple[str, Callable[[Any], bool], str], ...] = (
    ("request_id", lambda v: isinstance(v, str) and v != "", "text"),
    ("status", lambda v: v in STATUSES, f"one of {', '.join(STATUSES)}"),
    *((name, _optional(_is_count), "a whole number >= 0 or null") for name in COUNTS),
    *((name, _optional(_is_number), "a number or null") for name in NUMBERS),
    *((name, _optional(lambda v: isinstance(v, str)), "text or null") for name in TEXTS),
    ("met", _optional(lambda v: isinstance(v, bool)), "true, false or null"),
    *((name, _optional(lambda v: isinstance(v, dict)), "an object or null") for name in QUANTILES),
    ("features", _optional(_is_features), "a list of numbers or null"),
)
