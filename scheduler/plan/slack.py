"""Shorter before longer, wherever a deadline leaves room for it.

Serving by deadline keeps promises but makes short answers wait behind long ones for nothing. A
request moves up past longer ones as long as each of these can afford the delay: it spends at
most a share of its slack, the time between its expected start and its latest.
"""

from __future__ import annotations

import numpy as np

from lengthwise.data.arrays import FloatArray, IntArray, njit


@njit
def hasten(
    order: IntArray,
    work_s: FloatArray,
    latest_s: FloatArray,
    claimed_s: FloatArray,
    now_s: float,
    share: float,
) -> IntArray:
    """The order with shorter requests moved up; ``share`` of every slack may be spent.

    ``work_s`` is the time of the whole pool a row takes, ``claimed_s`` what others will take
    before it, both indexed by row. O(n^2) at worst, a few moves a row in practice.
    """
    n = len(order)
    moved = order.copy()
    room = np.empty(n)
    ahead = 0.0
    for place in range(n):
        row = order[place]
        room[place] = share * (latest_s[row] - now_s - claimed_s[row] - ahead)
        ahead += work_s[row]
    for place in range(1, n):
        row, own = moved[place], room[place]
        at = place
        while at > 0:
            before = moved[at - 1]
            if work_s[before] <= work_s[row] or room[at - 1] < work_s[row]:
                break
            moved[at], room[at] = before, room[at - 1] - work_s[row]
            at -= 1
        moved[at], room[at] = row, own
    return moved
