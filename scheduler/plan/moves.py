"""The moves of the search: each rewrites a stretch of the order in place.

``kind`` picks the move, ``i`` and ``j`` are positions, ``length`` a block's; the first changed
position is returned, so that the evaluation can restart there. The caller undoes a move by
copying the accepted order back.
"""

from __future__ import annotations

from lengthwise.data.arrays import IntArray, njit

SWAP, INSERT, BLOCK, SQUEEZE, DELAY = range(5)
KINDS = 5


@njit
def _carry(order: IntArray, source: int, target: int) -> None:
    """Take the request at ``source`` out and put it in at ``target``."""
    row = order[source]
    if source < target:
        for p in range(source, target):
            order[p] = order[p + 1]
    else:
        for p in range(source, target, -1):
            order[p] = order[p - 1]
    order[target] = row


@njit
def apply_move(order: IntArray, kind: int, i: int, j: int, length: int) -> int:
    """Change ``order`` in place; returns the first position that differs.

    swap: exchange i and j. insert: carry i to j. block: carry ``length`` requests from the
    later of i and j to the earlier. squeeze: carry the later one to the earlier place, as the
    paper's squeezeLastIter moves a request into a batch before. delay: carry the earlier one
    to the later place, as its delayNextIter does.
    """
    low, high = min(i, j), max(i, j)
    if low == high:
        return len(order)
    if kind == SWAP:
        order[low], order[high] = order[high], order[low]
    elif kind == INSERT:
        _carry(order, i, j)
    elif kind == BLOCK:
        for step in range(min(length, len(order) - high)):
            _carry(order, high + step, low + step)
    elif kind == SQUEEZE:
        _carry(order, high, low)
    else:
        _carry(order, low, high)
    return low
