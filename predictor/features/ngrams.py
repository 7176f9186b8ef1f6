"""Hashed n-grams of a prompt's tokens: bucket numbers and counts, in one compiled pass.

Buckets hold single tokens, pairs of neighbours, the first tokens once more under a mark of their
own (an instruction's verb usually stands there), and, if asked for, runs of characters in words.
"""

from __future__ import annotations

import numpy as np

from lengthwise.data.arrays import njit
from lengthwise.predictor.features.scan import FNV_OFFSET, FNV_PRIME, NEWLINE, WORD, combine

HEAD_TOKENS = 10
_HEAD_MARK = np.uint64(0x9E3779B97F4A7C15)
_SHIFT = np.uint64(31)


@njit
def _add(
    h: np.uint64,
    total: int,
    slots: np.ndarray,
    buckets: np.ndarray,
    counts: np.ndarray,
    used: int,
) -> int:
    bucket = np.int64((h ^ (h >> _SHIFT)) & np.uint64(total - 1))
    at = bucket & (slots.size - 1)
    while slots[at] != 0:
        place = slots[at] - 1
        if buckets[place] == bucket:
            counts[place] += 1.0
            return used
        at = (at + 1) & (slots.size - 1)
    slots[at] = used + 1
    buckets[used] = bucket
    counts[used] = 1.0
    return used + 1


@njit
def count_ngrams(
    text: np.ndarray,
    kinds: np.ndarray,
    hashes: np.ndarray,
    starts: np.ndarray,
    stops: np.ndarray,
    char_max: int,
    total: int,
) -> tuple[np.ndarray, np.ndarray]:
    """One prompt's n-grams over `total` buckets, a power of two.

    The buckets touched, (u,) int32, in the order of their first n-gram, and how many each has,
    (u,) float32. `char_max` 0 leaves character runs out, else runs of 3 to `char_max` letters
    count too.
    """
    most = 2 * kinds.size + HEAD_TOKENS
    if char_max >= 3:
        most += (char_max - 2) * text.size
    room = min(most, total)
    # a table as large as the prompt needs: one of all buckets would be half a megabyte to clear
    size = 16
    while size < 2 * room and size < total:
        size *= 2
    slots = np.zeros(size, np.int32)  # 1 + where a bucket stands in `buckets`, 0 of an empty slot
    buckets = np.empty(room, np.int32)
    counts = np.empty(room, np.float32)
    used = 0
    previous = np.uint64(0)
    seen = 0
    for t in range(kinds.size):
        if kinds[t] == NEWLINE:
            continue
        h = hashes[t]
        used = _add(h, total, slots, buckets, counts, used)
        if seen > 0:
            used = _add(combine(previous, h), total, slots, buckets, counts, used)
        if seen < HEAD_TOKENS:
            used = _add(combine(_HEAD_MARK, h), total, slots, buckets, counts, used)
        previous = h
        seen += 1
        if char_max >= 3 and kinds[t] == WORD:
            for start in range(starts[t] - 1, stops[t] - 1):
                rolling = FNV_OFFSET
                for offset in range(char_max):
                    at = start + offset
                    if at > stops[t]:
                        break
                    # the edges of a word are marked, so "in" inside "ring" is another run
                    if at < starts[t] or at == stops[t]:
                        byte = 32
                    else:
                        byte = text[at] + 32 if 65 <= text[at] <= 90 else text[at]
                    rolling = (rolling ^ np.uint64(byte)) * FNV_PRIME
                    if offset >= 2:
                        run = combine(rolling, _HEAD_MARK)
                        used = _add(run, total, slots, buckets, counts, used)
    return buckets[:used], counts[:used]
