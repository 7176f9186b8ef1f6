"""KV memory of shared beginnings, compiled: a prefix counts once, however many run on it.

``sharers`` and ``common`` are how many run on each prefix and how many tokens of it they hold;
``prefix`` is negative where there is none. Arrays come one by one: a tuple of twenty costs more to
hand over than the call does.
"""

from __future__ import annotations

from lengthwise.data.arrays import FloatArray, IntArray, njit


@njit
def join(sharers: IntArray, common: FloatArray, prefix: int, shared: float) -> float:
    """One more runs on a prefix's memory, ``shared`` tokens of it; the KV tokens that takes."""
    sharers[prefix] += 1
    grown = max(0.0, shared - common[prefix])
    common[prefix] += grown
    return grown


@njit
def leave(sharers: IntArray, common: FloatArray, prefix: int, shared: float) -> float:
    """One runs on it no more; the KV tokens that nobody shares now."""
    if prefix < 0 or shared <= 0.0:
        return 0.0
    sharers[prefix] -= 1
    if sharers[prefix] > 0:
        return 0.0
    freed = common[prefix]
    common[prefix] = 0.0
    return float(freed)


@njit
def publish(
    sharers: IntArray, common: FloatArray, prefix: int, shared: float, whole: float
) -> float:
    """A row that held ``shared`` of its prefix has computed the ``whole``, which is the others'
    too from now on; the KV tokens that takes more, or less."""
    if shared > 0.0:
        sharers[prefix] -= 1
    return join(sharers, common, prefix, whole) - (whole - shared)
