"""The hard bound on waiting: who has waited too long goes first, oldest first."""

from __future__ import annotations

import numpy as np

from scheduler.problem import FloatArray, IntArray


def overdue_first(
    order: IntArray, arrival_s: FloatArray, now_s: float, max_wait_s: float
) -> tuple[IntArray, int]:
    """``order`` with the overdue moved to the front by age, and how many they are.

    A wait is counted from arrival to ``now_s``; arrivals in the future (a clock that stepped
    back) have waited 0.
    """
    overdue = now_s - arrival_s > max_wait_s
    count = int(overdue.sum())
    if count == 0:
        return order, 0
    rows = np.flatnonzero(overdue)
    oldest = rows[np.argsort(arrival_s[rows], kind="stable")]
    return np.concatenate([oldest, order[~overdue[order]]]), count
