"""vLLM's prefix cache in numbers: beginnings computed once, kept until their memory is needed.

Memory that no running request holds is a queue: what was freed longest ago is taken first. A
computed beginning that nobody uses stands in that queue with its tokens still readable, so it
can be claimed until it is reached; its end goes first. Owners of such memory are the shared
prefixes ``0..g-1`` and, as ``g + row``, requests that lost their slots and may find their own
tokens again. Only whole blocks can be found, and never a prompt's last token.

``used`` in the engine is the memory that running requests hold, shared beginnings once; the
queue's tokens less ``TAKEN`` are the rest of it.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from lengthwise.data.arrays import FloatArray, IntArray, njit
from lengthwise.scheduler.problem import NO_PREFIX

NOBODY = -1
# marks: where the queue of free memory begins and ends; tokens taken from it but not yet removed.
HEAD, TAIL, TAKEN = range(3)


class PrefixCacheState(NamedTuple):
    """The cache while the engine runs; all arrays int64, changed in place.

    ``prefix (n,)`` the prefix of each row or -1, ``shareable (n,)`` its whole blocks in tokens;
    ``shared (n,)`` tokens of the row's context that the prefix holds; ``users (g,)`` running
    rows of each prefix; ``resident (g + n,)`` tokens of each owner in memory, ``place (g + n,)``
    where they stand in the queue, -1 in use or gone; ``owner``, ``tokens (m,)`` the queue.
    """

    block: int
    prefix: IntArray
    shareable: IntArray
    shared: IntArray
    users: IntArray
    resident: IntArray
    place: IntArray
    owner: IntArray
    tokens: IntArray
    marks: IntArray


def empty_cache(
    block: int, kv_tokens: int, prefix_id: IntArray, prefix_tokens: IntArray
) -> PrefixCacheState:
    """A cache that holds nothing, for rows with these prefixes (-1 for none)."""
    n = len(prefix_id)
    known, prefix = np.unique(np.append(prefix_id, NO_PREFIX), return_inverse=True)
    g = len(known) - 1
    size = 4 * (g + n) + 16
    owner, tokens = np.full(size, NOBODY, dtype=np.int64), np.zeros(size, dtype=np.int64)
    tokens[0] = kv_tokens
    return PrefixCacheState(
        block=block,
        prefix=prefix[:n].astype(np.int64) - 1,
        shareable=(np.where(prefix_id == NO_PREFIX, 0, prefix_tokens) // block * block).astype(
            np.int64
        ),
        shared=np.zeros(n, dtype=np.int64),
        users=np.zeros(g, dtype=np.int64),
        resident=np.zeros(g + n, dtype=np.int64),
        place=np.full(g + n, NOBODY, dtype=np.int64),
        owner=owner,
        tokens=tokens,
        marks=np.array([0, 1, 0], dtype=np.int64),
    )


@njit
def settle(cache: PrefixCacheState) -> None:
    """Remove from the queue what has been taken: the oldest first, of each owner the end first."""
    marks, owner, tokens = cache.marks, cache.owner, cache.tokens
    while marks[TAKEN] > 0 and marks[HEAD] < marks[TAIL]:
        at = marks[HEAD]
        gone = min(marks[TAKEN], tokens[at])
        tokens[at] -= gone
        marks[TAKEN] -= gone
        if owner[at] != NOBODY:
            cache.resident[owner[at]] -= gone
            if tokens[at] == 0:
                cache.place[owner[at]] = NOBODY
                owner[at] = NOBODY
        if tokens[at] == 0:
            marks[HEAD] += 1


@njit
def put(cache: PrefixCacheState, who: int, count: int) -> None:
    """``count`` tokens, in memory of ``who`` or of NOBODY, are free from now on."""
    marks, owner, tokens = cache.marks, cache.owner, cache.tokens
    if count == 0:
        return
    tail = marks[TAIL]
    if who == NOBODY and tail > marks[HEAD] and owner[tail - 1] == NOBODY:
        tokens[tail - 1] += count
        return
    if tail == len(owner):  # close the gaps
        kept = 0
        for at in range(marks[HEAD], tail):
            if tokens[at] > 0:
                owner[kept], tokens[kept] = owner[at], tokens[at]
                if owner[kept] != NOBODY:
                    cache.place[owner[kept]] = kept
                kept += 1
        marks[HEAD], tail = 0, kept
    owner[tail], tokens[tail] = who, count
    if who != NOBODY:
        cache.place[who] = tail
    marks[TAIL] = tail + 1


@njit
def claim(cache: PrefixCacheState, who: int, count: int) -> int:
    """Take ``count`` of the owner's tokens out of the queue, for use; what else it has is lost.

    Returns the tokens claimed: 0 where they are in use already.
    """
    at = cache.place[who]
    if at == NOBODY:
        return 0
    cache.tokens[at] -= count
    cache.owner[at] = NOBODY
    cache.place[who] = NOBODY
    cache.resident[who] = count
    return count


@njit
def found(cache: PrefixCacheState, row: int, all_tokens: int) -> tuple[int, int]:
    """(tokens of the prefix, tokens of its own) that a waiting row would find now.

    ``all_tokens`` are those it has to have computed. The queue must be settled.
    """
    block = cache.block
    most = (all_tokens - 1) // block * block
    prefix = cache.prefix[row]
    g = len(cache.users)
    shared = 0
    if prefix >= 0:
        shared = min(min(cache.shareable[row], cache.resident[prefix] // block * block), most)
    before = cache.shared[row]  # its own tokens go on where these end
    own = min(cache.resident[g + row] // block * block, most - before)
    if own > 0 and shared >= before and before + own > shared:
        return before, own
    return shared, 0


@njit
def would_use(cache: PrefixCacheState, row: int, own: int) -> int:
    """Free tokens that become used when the row begins with ``own`` of its own and its prefix."""
    prefix = cache.prefix[row]
    if prefix >= 0 and cache.users[prefix] == 0:
        return own + cache.resident[prefix] // cache.block * cache.block
    return own


@njit
def begin(cache: PrefixCacheState, row: int, shared: int, own: int) -> None:
    """The row gets a slot and uses what it found."""
    g = len(cache.users)
    claim(cache, g + row, own)
    cache.resident[g + row] = 0
    cache.shared[row] = shared
    prefix = cache.prefix[row]
    if prefix >= 0:
        if cache.users[prefix] == 0:
            claim(cache, prefix, cache.resident[prefix] // cache.block * cache.block)
        cache.users[prefix] += 1


@njit
def compute(cache: PrefixCacheState, row: int, computed: int, new: int) -> None:
    """The row takes ``new`` free tokens; ``computed`` is its context with them.

    What it computes of its prefix beyond all that is there is the others' at once, as in vLLM.
    """
    cache.marks[TAKEN] += new
    prefix = cache.prefix[row]
    if prefix >= 0 and cache.shared[row] == cache.resident[prefix]:
        reached = min(cache.shareable[row], computed) // cache.block * cache.block
        if reached > cache.shared[row]:
            cache.shared[row] = cache.resident[prefix] = reached


@njit
def end(cache: PrefixCacheState, row: int, computed: int, finished: bool) -> int:
    """The row gives up its slot with ``computed`` tokens of context; returns the tokens freed.

    One that has not finished keeps what it shared and may find its own tokens again.
    """
    g = len(cache.users)
    own = computed - cache.shared[row]
    freed = own
    if finished:
        put(cache, NOBODY, own)
    else:
        cache.resident[g + row] = own
        put(cache, g + row, own)
    prefix = cache.prefix[row]
    if prefix >= 0:
        cache.users[prefix] -= 1
        if cache.users[prefix] == 0:
            freed += cache.resident[prefix]
            put(cache, prefix, cache.resident[prefix])
    return freed


@njit
def give_up(cache: PrefixCacheState, victims: IntArray, computed: IntArray) -> None:
    """Rows lose their slots to a plan; ``computed (k,)`` is the context of each."""
    for i in range(len(victims)):
        end(cache, victims[i], computed[i], False)


@njit
def cached_tokens(cache: PrefixCacheState, waiting: IntArray, all_tokens: IntArray) -> FloatArray:
    """What each waiting row would find now ``(k,)``; ``all_tokens (k,)`` is what it must have."""
    settle(cache)
    result = np.empty(len(waiting), dtype=np.float64)
    for i in range(len(waiting)):
        shared, own = found(cache, waiting[i], all_tokens[i])
        result[i] = shared + own
    return result
