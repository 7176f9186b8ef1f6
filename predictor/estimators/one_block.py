"""Arrays that are read for every request, copied side by side into huge pages.

A server that waited for its next request finds not only its caches cold but also the addresses of
its pages, hundreds of 4 KiB each. numpy asks the kernel for huge pages where an array is 4 MiB or
more, so these are put into one so large; where there are none, nothing is lost but the copy.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

_HUGE_PAGE_BYTES = 2 << 20
_LEAST_BYTES = 4 << 20  # from here on numpy asks for huge pages
_LINE_BYTES = 64


def in_one_block(*arrays: NDArray[np.generic]) -> tuple[NDArray[np.generic], ...]:
    """Equal arrays, contiguous, each at the beginning of a cache line of one block."""
    sizes = [-(-array.nbytes // _LINE_BYTES) * _LINE_BYTES for array in arrays]
    block = np.empty(max(sum(sizes), _LEAST_BYTES) + _HUGE_PAGE_BYTES, np.uint8)
    at = -block.ctypes.data % _HUGE_PAGE_BYTES
    copies = []
    for array, size in zip(arrays, sizes, strict=True):
        copy = block[at : at + array.nbytes].view(array.dtype).reshape(array.shape)
        copy[...] = array
        copies.append(copy)
        at += size
    return tuple(copies)
