"""An answer's length as a quantile row: the arithmetic, compiled, for predictor and planner alike.

A row holds the lengths (tokens) at ``levels``. Between two levels the logarithm of the length is
linear in the level; below the first level it falls to one token at level 0. Above the last level
the survival is a power of the length (a Pareto tail) through the last two quantiles, cut at
``cap``: no answer is longer. Without a cap (0) the tail ends at ``TAIL_CAP`` times the last
quantile:

    T(v) = q_k * v ** -s,   v = (1 - p) / (1 - l_k),
    s = log(q_k / q_{k-1}) / log((1 - l_{k-1}) / (1 - l_k))
"""

from __future__ import annotations

import math

import numpy as np

from lengthwise.data.arrays import FloatArray, njit

TAIL_CAP = 4.0
# Between two levels logarithms are read, so what is a limit may lie this share below it.
READING = 1e-4
# A request past everything its row allows: what is left is taken as this share of what it wrote.
OUTLIVED_SHARE = 0.5
STRATA = (0.1, 0.3, 0.5, 0.7, 0.9)
_PLACES = np.array(STRATA)
_OUTLIVED = 1e-6  # chance of an answer that long, below which the row is taken to be wrong


@njit
def _tail_slope(levels: FloatArray, row: FloatArray) -> float:
    """d log(tokens) / d log(1 / survival) between the last two levels."""
    last = len(levels) - 1
    if last == 0:
        return 0.0
    rise = math.log(row[last] / row[last - 1]) if row[last] > row[last - 1] else 0.0
    return float(rise / math.log((1.0 - levels[last - 1]) / (1.0 - levels[last])))


@njit
def quantile_at(levels: FloatArray, row: FloatArray, p: float, cap: float = 0.0) -> float:
    """Tokens not exceeded with probability ``p`` in [0, 1]."""
    last = len(levels) - 1
    if p <= levels[0]:
        return float(math.exp(math.log(row[0]) * max(p, 0.0) / levels[0]))
    if p > levels[last]:
        longest = cap if cap > 0.0 else TAIL_CAP * row[last]
        if p >= 1.0:
            return float(longest) if _tail_slope(levels, row) > 0.0 else float(row[last])
        grown = row[last] * ((1.0 - levels[last]) / (1.0 - p)) ** _tail_slope(levels, row)
        return float(min(longest, grown))
    k = 1
    while levels[k] < p:
        k += 1
    share = (p - levels[k - 1]) / (levels[k] - levels[k - 1])
    low = math.log(row[k - 1])
    return float(math.exp(low + share * (math.log(row[k]) - low)))


@njit
def cdf_at(levels: FloatArray, row: FloatArray, tokens: float, cap: float = 0.0) -> float:
    """P(length <= tokens); at a jump (equal quantiles) the upper level."""
    last = len(levels) - 1
    if tokens >= row[last]:
        slope = _tail_slope(levels, row)
        if slope <= 0.0 or tokens >= (cap if cap > 0.0 else TAIL_CAP * row[last]):
            return 1.0
        return float(1.0 - (1.0 - levels[last]) * (row[last] / tokens) ** (1.0 / slope))
    if tokens < row[0]:
        if tokens <= 1.0:
            return 0.0
        return float(levels[0] * math.log(tokens) / math.log(row[0]))
    k = 1
    while row[k] <= tokens:
        k += 1
    share = math.log(tokens / row[k - 1]) / math.log(row[k] / row[k - 1])
    return float(levels[k - 1] + share * (levels[k] - levels[k - 1]))


@njit
def _log_mean(low: float, high: float) -> float:
    """Mean of a quantity whose log is uniform on [log low, log high]."""
    return float((high - low) / math.log(high / low)) if high > low * (1.0 + 1e-9) else float(high)


@njit
def remaining_mean(
    levels: FloatArray, row: FloatArray, generated: float, cap: float = 0.0
) -> float:
    """E[length - generated | length > generated], at least 1 token."""
    last = len(levels) - 1
    survival = 1.0 - cdf_at(levels, row, generated, cap) if generated > 0 else 1.0
    if survival <= _OUTLIVED:
        return max(1.0, OUTLIVED_SHARE * generated)
    total = 0.0
    below_p, below = 0.0, 1.0
    for k in range(last + 1):
        if row[k] > generated:
            start_p, start = below_p, below
            if generated > below:
                start_p, start = 1.0 - survival, generated
            total += (levels[k] - start_p) * _log_mean(start, row[k])
        below_p, below = levels[k], row[k]
    slope = _tail_slope(levels, row)
    start = max(row[last], generated)
    tail_p = min(survival, 1.0 - levels[last])
    if slope <= 0.0:
        total += tail_p * start
    else:
        longest = cap if cap > 0.0 else TAIL_CAP * row[last]
        decay = 1.0 / slope
        grown = math.log(longest / start)
        if abs(1.0 - decay) > 1e-9:
            grown = (math.exp((1.0 - decay) * grown) - 1.0) / (1.0 - decay)
        total += tail_p * start * (1.0 + grown)
    return max(1.0, float(total / survival - generated))


@njit
def fresh_mean(levels: FloatArray, row: FloatArray, logs: FloatArray) -> float:
    """remaining_mean before the first token, from the row and its logarithms: a third the time."""
    last = len(levels) - 1
    total, below_p, below, below_log = 0.0, 0.0, 1.0, 0.0
    for k in range(last + 1):
        rise = logs[k] - below_log
        total += (levels[k] - below_p) * ((row[k] - below) / rise if rise > 1e-9 else row[k])
        below_p, below, below_log = levels[k], row[k], logs[k]
    tail = 1.0
    if last > 0 and logs[last] > logs[last - 1]:
        fall = math.log((1.0 - levels[last - 1]) / (1.0 - levels[last]))
        decay = fall / (logs[last] - logs[last - 1])
        grown = math.log(TAIL_CAP)
        if abs(1.0 - decay) > 1e-9:
            grown = (math.exp((1.0 - decay) * grown) - 1.0) / (1.0 - decay)
        tail += grown
    return max(1.0, total + (1.0 - levels[last]) * row[last] * tail)


@njit
def quantile_rows(
    levels: FloatArray, rows: FloatArray, caps: FloatArray, p: FloatArray
) -> FloatArray:
    """quantile_at of each row: ``(n, q)``, ``(n,)``, ``(s, n)`` -> ``(s, n)``."""
    out = np.empty_like(p)
    for s in range(p.shape[0]):
        for i in range(p.shape[1]):
            out[s, i] = quantile_at(levels, rows[i], p[s, i], caps[i])
    return out


@njit
def cdf_rows(
    levels: FloatArray, rows: FloatArray, caps: FloatArray, tokens: FloatArray
) -> FloatArray:
    """cdf_at of each row: ``(n, q)``, ``(n,)``, ``(n,)`` -> ``(n,)``."""
    out = np.empty(len(rows))
    for i in range(len(rows)):
        out[i] = cdf_at(levels, rows[i], tokens[i], caps[i])
    return out


@njit
def remaining_means(
    levels: FloatArray, rows: FloatArray, caps: FloatArray, generated: FloatArray
) -> FloatArray:
    """remaining_mean of each row: ``(n, q)``, ``(n,)``, ``(n,)`` -> ``(n,)``."""
    out = np.empty(len(rows))
    for i in range(len(rows)):
        out[i] = remaining_mean(levels, rows[i], generated[i], caps[i])
    return out


@njit
def remaining_rows(
    levels: FloatArray, rows: FloatArray, caps: FloatArray, generated: FloatArray
) -> tuple[FloatArray, FloatArray]:
    """Quantiles ``(n, q)`` and caps of ``length - generated``, the answer being that long already.

    Quantile l of the rest is Q(F(g) + l (1 - F(g))) - g, at least one token. A row that was
    outlived has told that it was wrong: OUTLIVED_SHARE of g is left.
    """
    left, most = np.empty_like(rows), np.empty(len(rows))
    for i in range(len(rows)):
        past = cdf_at(levels, rows[i], generated[i], caps[i]) if generated[i] > 0.0 else 0.0
        if past >= 1.0 - _OUTLIVED:
            left[i] = max(1.0, OUTLIVED_SHARE * generated[i])
            most[i] = TAIL_CAP * left[i, 0]
            continue
        low = 1.0
        for k in range(len(levels)):
            p = past + (1.0 - past) * levels[k]
            low = max(low, quantile_at(levels, rows[i], p, caps[i]) - generated[i])
            left[i, k] = low
        longest = caps[i] if caps[i] > 0.0 else TAIL_CAP * rows[i, len(levels) - 1]
        most[i] = max(1.0, longest - generated[i])
    return left, most


@njit
def to_come(
    levels: FloatArray, row: FloatArray, generated: float, level: float, strata: FloatArray
) -> float:
    """Tokens to come after ``generated``, at ``level`` of their distribution or on the mean.

    ``level`` is negative for the mean; ``strata (s,)`` is filled with equally likely values.
    """
    last = len(levels) - 1
    if row[0] == row[last]:  # a length that is known
        known = row[0] - generated
        strata[:] = known if known > 0.0 else max(1.0, OUTLIVED_SHARE * generated)
        return float(strata[0])
    past = cdf_at(levels, row, generated) if generated > 0.0 else 0.0
    if past >= 1.0 - 1e-6:  # it has outlived its prediction
        strata[:] = max(1.0, OUTLIVED_SHARE * generated)
        return float(strata[0])
    for s in range(len(strata)):
        at = past + (1.0 - past) * _PLACES[s]
        strata[s] = max(1.0, quantile_at(levels, row, at) - generated)
    if level < 0.0:
        return float(remaining_mean(levels, row, generated))
    return max(1.0, quantile_at(levels, row, past + (1.0 - past) * level) - generated)
