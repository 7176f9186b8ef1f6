"""Cut a prompt into tokens: one compiled pass over its UTF-8 bytes.

A token is a run of letters (a *word*), a run of digits (a *number*), one other visible
character (*punctuation*) or a line break. Chinese, Japanese and Korean characters are words
of their own. The same pass serves training and serving, so the two cannot drift apart.

    encode(text) -> scan() -> kinds, hashes, values, starts, stops   (one row a token)
"""

from __future__ import annotations

import re

import numpy as np

from lengthwise.data.arrays import njit

WORD, NUMBER, PUNCTUATION, NEWLINE = 0, 1, 2, 3

HEAD_CHARS = 24_000
TAIL_CHARS = 8_000

FNV_OFFSET = np.uint64(0xCBF29CE484222325)
FNV_PRIME = np.uint64(0x100000001B3)
_SHIFT = np.uint64(29)
_MASK = (1 << 64) - 1
_MIX = np.uint64(0xBF58476D1CE4E5B9)


def shortened(prompt: str) -> str:
    """The prompt; beyond 32,000 characters its middle is left out. Idempotent."""
    if len(prompt) > HEAD_CHARS + TAIL_CHARS:
        return prompt[:HEAD_CHARS] + "\n" + prompt[-TAIL_CHARS:]
    return prompt


def uncut(prompt: str) -> str:
    """Of a prompt that `shortened` may have cut, what surely stands together from its start."""
    return prompt[:HEAD_CHARS] if len(prompt) > HEAD_CHARS + TAIL_CHARS else prompt


def encode(prompt: str) -> np.ndarray:
    """Bytes of a prompt as `shortened`, (b,) uint8; what UTF-8 cannot say is a question mark."""
    return np.frombuffer(shortened(prompt).encode("utf-8", "replace"), dtype=np.uint8)


@njit
def combine(left: np.uint64, right: np.uint64) -> np.uint64:
    """Hash of an ordered pair of hashes."""
    mixed = (left * FNV_PRIME) ^ (right + (left >> _SHIFT))
    mixed = (mixed ^ (mixed >> _SHIFT)) * _MIX
    return mixed ^ (mixed >> _SHIFT)


@njit
def _is_word_byte(byte: int) -> bool:
    return (97 <= byte <= 122) or (65 <= byte <= 90) or byte == 95 or byte >= 128


@njit
def scan(
    text: np.ndarray,
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Tokens of `text`, (b,) uint8: kinds, hashes, values, starts, stops, each (t,).

    `values` holds what a number says, else 0. Numbers above 20 share one hash per count of
    digits, so that "137 apples" and "214 apples" look alike. Latin letters hash in lower case.
    """
    size = text.size
    kinds = np.empty(size, np.uint8)
    hashes = np.empty(size, np.uint64)
    values = np.empty(size, np.float64)
    starts = np.empty(size, np.int32)
    stops = np.empty(size, np.int32)
    count = 0
    i = 0
    while i < size:
        byte = text[i]
        start = i
        value = 0.0
        h = FNV_OFFSET
        if byte == 10:
            kind = NEWLINE
            h = (h ^ np.uint64(byte)) * FNV_PRIME
            i += 1
        elif byte <= 32 or byte == 127:
            i += 1
            continue
        elif 48 <= byte <= 57:
            kind = NUMBER
            while i < size and (
                48 <= text[i] <= 57
                or (
                    text[i] == 44
                    and i + 3 < size
                    and 48 <= text[i + 1] <= 57
                    and i > start
                    and 48 <= text[i + 2] <= 57
                    and 48 <= text[i + 3] <= 57
                )
            ):
                if text[i] != 44 and value < 1e15:
                    value = value * 10.0 + (text[i] - 48)
                i += 1
            code = value if value <= 20.0 else 100.0 + np.floor(np.log10(value))
            h = combine(h, np.uint64(code))
        elif _is_word_byte(byte):
            kind = WORD
            if 0xE3 <= byte <= 0xED:  # one CJK character is one word
                stop = min(i + 3, size)
                while i < stop:
                    h = (h ^ np.uint64(text[i])) * FNV_PRIME
                    i += 1
            else:
                while i < size and _is_word_byte(text[i]) and not 0xE3 <= text[i] <= 0xED:
                    letter = text[i] + 32 if 65 <= text[i] <= 90 else text[i]
                    h = (h ^ np.uint64(letter)) * FNV_PRIME
                    i += 1
            h = (h ^ (h >> _SHIFT)) * _MIX
            h = h ^ (h >> _SHIFT)
        else:
            kind = PUNCTUATION
            h = (h ^ np.uint64(byte)) * FNV_PRIME
            h = (h ^ (h >> _SHIFT)) * _MIX
            h = h ^ (h >> _SHIFT)
            i += 1
        kinds[count] = kind
        hashes[count] = h
        values[count] = value
        starts[count] = start
        stops[count] = i
        count += 1
    return kinds[:count], hashes[:count], values[:count], starts[:count], stops[:count]


def tokens_of(phrase: str) -> list[str]:
    """The words, digits and marks of a phrase of the lexicon."""
    return re.findall(r"[a-z_]+|\d|[^\w\s]", phrase.lower())


def word_hash(phrase: str) -> np.uint64:
    """The hash of a word, or for a phrase the fold of its tokens' hashes, as `scan` computes them.

    Plain Python, so that reading the lexicon compiles nothing.
    """
    folded: int | None = None
    for token in tokens_of(phrase):
        h = 0xCBF29CE484222325
        for byte in token.encode():
            h = ((h ^ byte) * 0x100000001B3) & _MASK
        h = _python_mix(h)
        if folded is None:
            folded = h
        else:
            mixed = ((folded * 0x100000001B3) & _MASK) ^ ((h + (folded >> 29)) & _MASK)
            folded = _python_mix(mixed)
    if folded is None:
        raise ValueError(f"a lexicon entry must hold a word, got {phrase!r}")
    return np.uint64(folded)


def _python_mix(h: int) -> int:
    h = ((h ^ (h >> 29)) * 0xBF58476D1CE4E5B9) & _MASK
    return h ^ (h >> 29)
