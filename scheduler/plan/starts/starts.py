"""Orders to start from that no single sort key gives: what is worth serving when not all can be.

All let the expected arrivals take part, as rows of their own, and may write some rows off: those
go last.
"""

from __future__ import annotations

import numpy as np

from lengthwise.data.arrays import BoolArray, FloatArray, IntArray
from lengthwise.scheduler.plan.rollout.rows import Snapshot
from lengthwise.scheduler.plan.starts.selection import select


def too_fast(shot: Snapshot) -> BoolArray:
    """Of waiting and expected, who wants tokens faster than a full batch and prompts give them.

    They are met only under limits that cost everybody else.
    """
    return np.asarray(shot.rows.tpot_s[shot.waiting :] < shot.token_s)


def _queued(
    shot: Snapshot, written_off: BoolArray | None
) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Latest start, slot-seconds, and weight where it can still be met, of waiting and expected.

    Who is ``written_off`` weighs nothing.
    """
    latest_s, slot_s = shot.rows.latest_s[shot.waiting :], shot.slot_s[shot.waiting :]
    value = shot.rows.weight[shot.waiting :] * (latest_s >= shot.now_s)
    return latest_s, slot_s, value if written_off is None else value * ~written_off


def selection_order(shot: Snapshot, written_off: BoolArray | None = None) -> IntArray:
    """Moore and Hodgson's choice by latest start, then what else can be met, then the shortest."""
    latest_s, slot_s, value = _queued(shot, written_off)
    by_latest = np.argsort(latest_s, kind="stable").astype(np.int64)
    taken, _ = select(latest_s, slot_s, value, by_latest, shot.now_s, shot.batch)
    rank = np.where((taken > 0) & (value > 0), 0, np.where(value > 0, 1, 2))
    within = np.where(rank < 2, latest_s, slot_s)
    return np.lexsort((within, rank)).astype(np.int64)


def density_order(shot: Snapshot, written_off: BoolArray | None = None) -> IntArray:
    """Most weight per slot-second first; then what can no longer be met, the shortest first."""
    _, slot_s, value = _queued(shot, written_off)
    density = np.where(value > 0, value / np.maximum(slot_s, 1e-9), 0.0)
    return np.lexsort((slot_s, -density)).astype(np.int64)


def balanced_order(
    shot: Snapshot, slot_price: float, written_off: BoolArray | None = None
) -> IntArray:
    """By latest start, plus ``slot_price`` seconds for each slot-second; the late by the latter.

    Between earliest deadline first (a price of 0) and shortest first (without end).
    """
    latest_s, slot_s, value = _queued(shot, written_off)
    key = np.where(value > 0, latest_s + slot_price * slot_s, slot_s)
    return np.lexsort((key, value <= 0)).astype(np.int64)
