"""What is said of an answer's length: predicted, told by the client, or fixed by the limits."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from lengthwise.data.arrays import FloatArray
from lengthwise.data.request_log.schema import FIXED_LENGTH

DEFAULT_LEVELS = (0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99)
MAX_TOKENS_LIMIT = 10_000_000

CLIENT_LENGTH = "osl"  # the version of a length that the client gave
TOLD_LENGTHS = frozenset((CLIENT_LENGTH, FIXED_LENGTH))
"""Versions of lengths that no predictor said: nothing is learned from them."""


@dataclass(frozen=True, slots=True)
class Prediction:
    """What is said of a prompt: quantiles in tokens on the predictor's levels, and from which
    features, (f,), under which contract."""

    quantiles: Sequence[float]
    version: str | None
    features: np.ndarray | None = None
    contract: str | None = None


def rounded(quantiles: Sequence[float]) -> tuple[float, ...]:
    """Quantiles in tokens for the wire: hundredths, at least 1, at most MAX_TOKENS_LIMIT."""
    return tuple(min(max(1.0, round(value, 2)), float(MAX_TOKENS_LIMIT)) for value in quantiles)


def fixed_tokens(
    max_tokens: Any, min_tokens: Any = 0, ignore_eos: Any = False, may_stop: Any = False
) -> int | None:
    """The length of an answer that cannot have another, or None.

    ``may_stop``: stop strings, tokens or patterns may end it before ``max_tokens``.
    """
    if not isinstance(max_tokens, int) or isinstance(max_tokens, bool) or max_tokens < 1:
        return None
    least = min_tokens if isinstance(min_tokens, int) else 0
    endless = ignore_eos is True and not may_stop
    return max_tokens if max_tokens == 1 or least >= max_tokens or endless else None


def quantile_row(values: Any, count: int) -> tuple[float, ...] | None:
    """A prediction off the wire as non-decreasing tokens >= 1, (q,); None when malformed.

    Of a dozen numbers Python's own calls take a fifth of numpy's time.
    """
    if not isinstance(values, list | tuple) or len(values) != count:
        return None
    try:
        row = tuple(map(float, values))
    except (TypeError, ValueError, OverflowError):
        return None
    in_order = all(map(operator.le, row, row[1:]))  # which NaN is with nothing
    return row if in_order and row[0] >= 1 and row[-1] <= MAX_TOKENS_LIMIT else None


def check_quantiles(values: Any, count: int) -> FloatArray | None:
    """`quantile_row` as an array."""
    row = quantile_row(values, count)
    return None if row is None else np.array(row)


def clip_to_max_tokens(quantiles: FloatArray, max_tokens: int | None) -> FloatArray:
    """An answer cannot be longer than the client allows."""
    return quantiles if not max_tokens else np.minimum(quantiles, float(max(1, max_tokens)))
