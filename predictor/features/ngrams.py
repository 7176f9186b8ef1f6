"""Hashed n-grams of a prompt's tokens: bucket numbers and counts, in one compiled pass.

Buckets hold single tokens, pairs of neighbours, the first tokens once more under a mark of their
own (an instruction's verb usually stands there), and, if asked for, runs of characters in words.
"""

from __future__ import annotations

import numpy as np

from lengthwise.data.arrays import njit
from lengthwise.predictor.features.scan import NEWLINE, WORD, combine

HEAD_TOKENS = 10
_HEAD_MARK = np.uint64(0x9E3779B97F4A7C15)
_FNV_OFFSET = np.uint64(0xCBF29CE484222325)
_FNV_PRIME = np.uint64(0x100000001B3)
_SHIFT = np.uint64(31)


@njit
def _add(h: np.uint64, counts: np.ndarray, touched: np.ndarray, used: int) -> int:
    bucket = np.int64((h ^ (h >> _SHIFT)) & np.uint64(counts.size - 1))
    if counts[bucket] == 0.0:
        touched[used] = bucket
        used += 1
    counts[bucket] += 1.0
    return used


@njit
def count_ngrams(
    text: np.ndarray,
    kinds: np.ndarray,
    hashes: np.ndarray,
    starts: np.ndarray,
    stops: np.ndarray,
    char_max: int,
    counts: np.ndarray,
    touched: np.ndarray,
) -> int:
    """Add one prompt's n-grams to `counts`, (buckets,) float32 zeros, buckets a power of two.

    Returns how many buckets were touched; their numbers stand in `touched`, (buckets,) int32.
    `char_max` 0 leaves character runs out, else runs of 3 to `char_max` letters count too.
    """
    used = 0
    previous = np.uint64(0)
    seen = 0
    for t in range(kinds.size):
        if kinds[t] == NEWLINE:
            continue
        h = hashes[t]
        used = _add(h, counts, touched, used)
        if seen > 0:
            used = _add(combine(previous, h), counts, touched, used)
        if seen < HEAD_TOKENS:
            used = _add(combine(_HEAD_MARK, h), counts, touched, used)
        previous = h
        seen += 1
        if char_max >= 3 and kinds[t] == WORD:
            for start in range(starts[t] - 1, stops[t] - 1):
                rolling = _FNV_OFFSET
                for offset in range(char_max):
                    at = start + offset
                    if at > stops[t]:
                        break
                    # the edges of a word are marked, so "in" inside "ring" is another run
                    if at < starts[t] or at == stops[t]:
                        byte = 32
                    else:
                        byte = text[at] + 32 if 65 <= text[at] <= 90 else text[at]
                    rolling = (rolling ^ np.uint64(byte)) * _FNV_PRIME
                    if offset >= 2:
                        used = _add(combine(rolling, _HEAD_MARK), counts, touched, used)
    return used
