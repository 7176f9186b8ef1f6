"""Where the parts of a JSON text stand: compiled passes over its bytes, without the interpreter.

They follow brackets, strings and commas and check no more than that: whether what stands between
is JSON, whoever reads it will find.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from lengthwise.data.arrays import njit

Bytes = npt.NDArray[np.uint8]


@njit(nogil=True)
def _after_blanks(text: Bytes, i: int, stop: int) -> int:
    while i < stop and (text[i] == 32 or text[i] == 10 or text[i] == 13 or text[i] == 9):
        i += 1
    return i


@njit(nogil=True)
def _after_string(text: Bytes, i: int, stop: int) -> int:
    """Where the string that begins at i ends; -1 if it does not."""
    i += 1
    while i < stop:
        if text[i] == 34:
            return i + 1
        i += 2 if text[i] == 92 else 1
    return -1


@njit(nogil=True)
def _after_value(text: Bytes, i: int, stop: int) -> int:
    """Where the value that begins at i ends; -1 if it does not."""
    depth = 0
    while i < stop:
        byte = text[i]
        if byte == 34:
            i = _after_string(text, i, stop)
            if i < 0 or depth == 0:
                return i
            continue
        if byte == 123 or byte == 91:
            depth += 1
        elif byte == 125 or byte == 93:
            if depth == 0:
                return i
            depth -= 1
            if depth == 0:
                return i + 1
        elif depth == 0 and (byte == 44 or byte <= 32):
            return i
        i += 1
    return i if depth == 0 else -1


@njit(nogil=True)
def extent(text: Bytes, begin: int) -> tuple[int, int]:
    """Start and stop of the one value that the text is; -1 if it is not one."""
    start = _after_blanks(text, begin, text.size)
    stop = _after_value(text, start, text.size)
    if stop <= start or _after_blanks(text, stop, text.size) < text.size:
        return -1, -1
    return start, stop


@njit(nogil=True)
def _reads_as(text: Bytes, start: int, stop: int, name: Bytes) -> bool:
    """Whether the string text[start:stop] says this ASCII name, padded with zeros; escapes
    included."""
    i, last = start + 1, stop - 1
    for place in range(name.size):
        letter = name[place]
        if letter == 0 or i >= last:
            return letter == 0 and i == last
        if text[i] != 92:
            if text[i] != letter:
                return False
            i += 1
            continue
        if i + 6 > last or text[i + 1] != 117:
            return False
        code = 0
        for j in range(i + 2, i + 6):
            digit = int(text[j])
            code = code * 16 + (digit - 48 if digit <= 57 else (digit | 32) - 87)
        if code != letter:
            return False
        i += 6
    return i == last


@njit(nogil=True)
def find_parts(
    text: Bytes,
    start: int,
    stop: int,
    first: int,
    spans: np.ndarray,
    names: np.ndarray,
    named: np.ndarray,
) -> int:
    """How many parts the object or array has that is text[start:stop]; -1 if it is malformed.

    Rows of `spans`, (n, 4): start and stop of the key (0 in an array), then of the value. The
    first so many stand in order, of the others the last ones, each in the place of an older one.
    Beyond the first, the last member of each of `names`, (m, bytes), also stands in its row of
    `named`, (m, 4).
    """
    keyed = text[start] == 123
    closing = 125 if keyed else 93
    last = len(spans) - first
    count = 0
    i = _after_blanks(text, start + 1, stop)
    if i < stop and text[i] == closing:
        return 0 if i == stop - 1 else -1
    while i < stop:
        key_start, key_stop = 0, 0
        if keyed:
            if text[i] != 34:
                return -1
            key_start, key_stop = i, _after_string(text, i, stop)
            if key_stop < 0:
                return -1
            i = _after_blanks(text, key_stop, stop)
            if i >= stop or text[i] != 58:
                return -1
            i = _after_blanks(text, i + 1, stop)
        value_start = i
        i = _after_value(text, i, stop)
        if i <= value_start:
            return -1
        row = count if count < first else first + (count - first) % last
        spans[row, 0] = key_start
        spans[row, 1] = key_stop
        spans[row, 2] = value_start
        spans[row, 3] = i
        if keyed and count >= first:
            for place in range(len(names)):
                if _reads_as(text, key_start, key_stop, names[place]):
                    named[place] = spans[row]
        count += 1
        i = _after_blanks(text, i, stop)
        if i >= stop:
            return -1
        if text[i] == closing:
            return count if i == stop - 1 else -1
        if text[i] != 44:
            return -1
        i = _after_blanks(text, i + 1, stop)
    return -1


@njit(nogil=True)
def _is_half(text: Bytes, i: int, stop: int, high: bool) -> bool:
    """Whether the escape of half a character stands at i: \\ud8.. to \\udb.., or \\udc.. on."""
    if i + 6 > stop or text[i] != 92 or text[i + 1] != 117 or text[i + 2] | 32 != 100:
        return False
    digit = text[i + 3]
    letter = digit | 32
    if high:
        return digit == 56 or digit == 57 or letter == 97 or letter == 98
    return 99 <= letter <= 102


@njit(nogil=True)
def _after_character(text: Bytes, i: int, stop: int) -> int:
    if text[i] == 92:
        if i + 1 < stop and text[i + 1] == 117:
            pair = _is_half(text, i, stop, True) and _is_half(text, i + 6, stop, False)
            return i + (12 if pair else 6)
        return i + 2
    i += 1
    while i < stop and text[i] & 0xC0 == 0x80:
        i += 1
    return i


@njit(nogil=True)
def ends_of_text(text: Bytes, start: int, stop: int, head: int, tail: int) -> tuple[int, int]:
    """Where the first `head` characters of a string end and its last `tail` begin; -1, -1 where
    these are all of it."""
    count, head_stop = 0, -1
    i = start
    while i < stop:
        if count == head:
            head_stop = i
        i = _after_character(text, i, stop)
        count += 1
    if count <= head + tail:
        return -1, -1
    left = count - tail - head
    i = head_stop
    while left > 0:
        i = _after_character(text, i, stop)
        left -= 1
    return head_stop, i
