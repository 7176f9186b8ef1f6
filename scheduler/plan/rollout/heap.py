"""A binary heap of integers on an array, compiled: the least on top."""

from __future__ import annotations

from lengthwise.data.arrays import IntArray, njit


@njit(inline="always")
def push(heap: IntArray, size: int, key: int) -> None:
    """Put ``key`` into a heap of ``size`` entries; it then has one more."""
    i = size
    while i > 0:
        parent = (i - 1) >> 1
        if heap[parent] <= key:
            break
        heap[i] = heap[parent]
        i = parent
    heap[i] = key


@njit(inline="always")
def pop(heap: IntArray, size: int) -> int:
    """Take the least out of a heap of ``size`` entries; it then has one less."""
    top = heap[0]
    size -= 1
    key = heap[size]
    i = 0
    while True:
        child = 2 * i + 1
        if child >= size:
            break
        if child + 1 < size and heap[child + 1] < heap[child]:
            child += 1
        if key <= heap[child]:
            break
        heap[i] = heap[child]
        i = child
    heap[i] = key
    return int(top)
